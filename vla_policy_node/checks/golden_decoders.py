"""Decoders of policies of which the rest is not here yet: their weights and recorded passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.checkpoints.reading import listed, plain
from vla_policy_node.checkpoints.tensor_files import check_dtype, check_weights, open_safetensors
from vla_policy_node.checks.findings import Comparison, Rule, compare, relative
from vla_policy_node.nn.hooks import LayerHooks
from vla_policy_node.nn.masks import Visibility, make_mask
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.nn.transformer import Decoder, DecoderConfig

WEIGHTS = 'model.safetensors'
FLOAT = relative(5e-5)
MOST_LAYERS = 1000
_LAYERS = 'layers.'


def read_part(directory: Path, prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors of the checkpoint whose names begin so, in float32, with what replaces that.

    ValueError with one sentence for a file that is damaged or has none of them.
    """
    path, tensors = directory / WEIGHTS, {}
    with open_safetensors(path) as (names, get, _):
        for name in names:
            for prefix, short in prefixes.items():
                if name.startswith(prefix):
                    tensor = get(name)
                    check_weights(path, name, tensor)
                    check_dtype(path, name, tensor)
                    tensors[short + name.removeprefix(prefix)] = tensor.float()
    if not tensors:
        raise ValueError(f'{path} has no tensors named {next(iter(prefixes))}*.')
    return tensors


def sizes_of(tensors: Mapping[str, Tensor], heads: int) -> DecoderConfig:
    """Sizes of a decoder from the shapes of its first layer; its style is still to be said."""
    query, key, gate = (
        tensors[f'{_LAYERS}0.{name}.weight']
        for name in ('self_attn.q_proj', 'self_attn.k_proj', 'mlp.gate_proj'))
    head_width = max(1, len(query) // heads)
    layers = len({name.split('.')[1] for name in tensors if name.startswith(_LAYERS)})
    if layers > MOST_LAYERS:
        raise ValueError(f'{WEIGHTS} has {layers} layers; no decoder has more than {MOST_LAYERS}.')
    words = tensors.get('embed_tokens.weight')
    return DecoderConfig(
        width=query.shape[1],
        layers=layers,
        heads=heads,
        head_width=head_width,
        key_heads=max(1, len(key) // head_width),
        mlp_width=len(gate),
        vocabulary=0 if words is None else len(words),
    )


def make_decoder(
    tensors: Mapping[str, Tensor], config: DecoderConfig, visibility: Visibility, device: str
) -> Decoder:
    """Build a decoder around its weights; ValueError if they are not exactly those it has."""
    with torch.device('meta'):
        decoder = Decoder(config, visibility)
    try:
        decoder.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        reason = plain(str(error).splitlines()[-1].strip())
        raise ValueError(
            f'{WEIGHTS} holds another decoder than its kind has: {reason}') from error
    return decoder.eval().requires_grad_(False).to(device)


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


def padded_sequence(
    rows: Mapping[str, Tensor], valid: Tensor, after: Tensor | None = None
) -> TokenSequence:
    """Rows by the names of their spans; those that are not valid are hidden and take no position.

    valid: [B, T] bool. after: [B], how many valid rows come before these; None for none.
    """
    states = torch.cat([*rows.values()], dim=1)
    positions = valid.cumsum(1) - 1 + (0 if after is None else after[:, None])
    bias = torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, -torch.inf)
    spans = lay_out({name: part.shape[1] for name, part in rows.items()})
    return TokenSequence(states, positions, spans, None if valid.all() else bias)


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

    def __contains__(self, key: str) -> bool:
        return key in self._recording

    def __getitem__(self, key: str) -> Tensor:
        """An array as an input; KeyError if it was not recorded."""
        self._used.add(key)
        return torch.from_numpy(self._recording[key]).to(self._device)

    def compare(
        self, stage: str, rule: Rule, value: Tensor, key: str, valid: Tensor | None = None
    ) -> Iterator[Comparison]:
        """Compare with an array, if it was recorded.

        valid: bool, what of both counts, in a shape that can be expanded to theirs.
        """
        if key in self:
            reference = self[key]
            if valid is not None and value.shape == reference.shape:
                value, reference = (x.masked_fill(~valid, 0) for x in (value, reference))
            yield compare(stage, rule, value, reference, self.name)

    def rest(self) -> list[str]:
        """Arrays that nobody looked at."""
        return sorted(self._recording.keys() - self._used)


def not_compared(cases: Iterable[Case], others: Iterable[str]) -> Iterator[Comparison]:
    """Say what of a pack is for parts that are not here yet."""
    arrays = sorted({name for case in cases for name in case.rest()})
    for what, names in (('arrays', arrays), ('recordings', sorted(others))):
        if names:
            yield Comparison(f'other {what}', 0.0, np.inf, '', f'not compared: {listed(names)}')
