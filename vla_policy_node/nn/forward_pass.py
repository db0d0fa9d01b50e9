"""One pass through the network of a policy: who takes part in it, and what it ran."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from vla_policy_node.nn.flops import LayerRows
from vla_policy_node.nn.hooks import HookChain, LayerHooks

if TYPE_CHECKING:
    from vla_policy_node.nn.denoising import DenoisingStep
    from vla_policy_node.nn.hooks import PassHooks
    from vla_policy_node.nn.sequence import TokenSequence


class ForwardPass:
    """What goes with the tensors through embed, prefill and decode; one for each pass.

    methods: whose hooks have their turn, in this order.
    action_rows: which rows the action head reads, where a family knows several conventions
        (`families.prismatic.ACTION_ROWS`).
    mark: called with the name of each stage as it ends: 'vision', 'select', 'language_model'.
    layer_rows: what each layer of the language model that ran worked on, in order; `nn.flops`
        counts it.
    """

    def __init__(
        self,
        methods: Sequence[PassHooks] = (),
        action_rows: str = 'oft',
        mark: Callable[[str], None] = lambda stage: None,
    ):
        self.methods = tuple(methods)
        self.action_rows = action_rows
        self.mark = mark
        self.layer_rows: list[LayerRows] = []

    def begin(self) -> None:
        """Tell the methods that a pass begins."""
        for method in self.methods:
            method.begin_pass()

    def change_features(self, features: Tensor) -> Tensor:
        """Features of the vision encoders as the methods want them, see `PrefixHooks`."""
        for method in self.methods:
            features = method.visual_features(features)
        return features

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop visual tokens before layer 0, see `PrefixHooks`."""
        for method in self.methods:
            sequence = method.select_tokens(sequence)
        return sequence

    def layers(self, head: Callable[[Tensor], Tensor], head_flops: int = 0) -> LayerHooks:
        """Make the hooks of a decoder; the arguments are those of `HookChain`."""
        return HookChain((*self.methods, _RowRecorder(self.layer_rows)), head, head_flops)

    def denoise(self, state: DenoisingStep) -> Tensor:
        """Predict one step, by the first method that does or else by the head."""
        for method in self.methods:
            noise = method.denoise(state)
            if noise is not None:
                return noise
        return state.run()[0]


class _RowRecorder(LayerHooks):
    """Notes the rows of each layer; comes last in the chain, so it sees what the methods left."""

    def __init__(self, layer_rows: list[LayerRows]):
        self._layer_rows = layer_rows
        self._rows = self._seen = 0

    def keys_values(
        self, index: int, sequence: TokenSequence, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Count the rows, and the keys that they see."""
        self._rows, self._seen = sequence.states.shape[1], key.shape[2]
        return key, value

    def watch_output(self, index: int, sequence: TokenSequence, output: Tensor) -> None:
        """Count the rows that asked."""
        self._layer_rows.append(LayerRows(output.shape[1], self._rows, self._seen))
