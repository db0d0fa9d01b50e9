"""What the comparisons of pi0, pi0.5 and SmolVLA with recordings have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.checks.findings import Comparison, Rule, compare, relative
from vla_policy_node.nn.hooks import LayerHooks
from vla_policy_node.nn.masks import Visibility, make_mask
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import Decoder

FLOAT = relative(5e-5)


class Watch(LayerHooks):
    """Keeps keys [B, heads, T, head width], rotated, and values of every layer of a pass."""

    def __init__(self):
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def keys_values(
        self, index: int, sequence: TokenSequence, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Look, and change nothing."""
        self.keys.append(key)
        self.values.append(value)
        return key, value


class LayerInputs:
    """Context in which the inputs of all layers of a decoder are kept, [layers, B, T, width]."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._seen: list[Tensor] = []

    def __enter__(self) -> LayerInputs:
        def note(_, arguments: tuple) -> None:
            self._seen.append(arguments[0])

        self._handles = [
            layer.register_forward_pre_hook(note) for layer in self._decoder.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def states(self) -> Tensor:
        """What went in so far."""
        return torch.stack(self._seen)


def allowed(
    parts: Sequence[TokenSequence], valid: Tensor, visibility: Visibility
) -> Tensor:
    """Who may see whom in a pass over all parts, [B, T, T] bool; rows that are not valid nobody.

    valid: [B, T], of all parts.
    """
    bias = torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, -torch.inf)
    sequence = TokenSequence(
        bias[..., None],  # for its dtype
        torch.cat([part.positions for part in parts], dim=1),
        tuple(span for part in parts for span in part.spans), bias)
    mask = make_mask(sequence, visibility)
    assert mask is not None  # there is a bias
    return (mask[:, 0] == 0) & valid[:, :, None]


class Case:
    """A recorded inference: its arrays are inputs, or compared, or left over."""

    def __init__(self, name: str, recording: Mapping[str, np.ndarray], device: str):
        self.name, self._recording, self._device = name, recording, device
        self._used: set[str] = set()
        self._lent: dict[str, np.ndarray] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._recording or key in self._lent

    def __getitem__(self, key: str) -> Tensor:
        """An array as an input; KeyError if it was not recorded."""
        self._used.add(key)
        array = self._recording[key] if key in self._recording else self._lent[key]
        return torch.from_numpy(array).to(self._device)

    def compare(
        self, stage: str, rule: Rule, value: Tensor, key: str, valid: Tensor | None = None,
        part: tuple[slice, ...] = (),
    ) -> Iterator[Comparison]:
        """Compare with an array, if it was recorded.

        valid: bool, what of both counts, in a shape that can be expanded to theirs. part: what of
        the recorded array is compared; () for all.
        """
        if key in self:
            reference = self[key][part]
            if valid is not None and value.shape == reference.shape:
                value, reference = (x.masked_fill(~valid, 0) for x in (value, reference))
            yield compare(stage, rule, value, reference, self.name)

    def text(self, key: str) -> str:
        """A recorded string; KeyError if it was not recorded."""
        self._used.add(key)
        return str(self._recording[key])

    def add(self, key: str, array: np.ndarray) -> None:
        """Take an input from another recording, unless this one has it."""
        if key not in self._recording:
            self._lent[key] = array

    def rest(self) -> list[str]:
        """Arrays of its own that nobody looked at."""
        return sorted(self._recording.keys() - self._used)
