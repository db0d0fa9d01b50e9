"""Records what each layer works on: what `nn.flops` counts, and how many layers ran."""

from __future__ import annotations

from torch import Tensor

from vla_policy_node.nn.flops import LayerRows
from vla_policy_node.nn.hooks import PassHooks
from vla_policy_node.nn.sequence import TokenSequence


class RowRecorder(PassHooks):
    """Changes nothing; comes last in the pass, so it sees what the methods left.

    layer_rows: of each layer that ran in the last pass, in order.
    """

    def __init__(self):
        self.layer_rows: list[LayerRows] = []
        self._new = self._seen = 0

    def begin_pass(self) -> None:
        """Forget the last pass."""
        self.layer_rows = []

    def keys_values(
        self, index: int, sequence: TokenSequence, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Count the rows, and the keys that they see."""
        self._new, self._seen = sequence.states.shape[1], key.shape[2]
        return key, value

    def watch_output(self, index: int, sequence: TokenSequence, output: Tensor) -> None:
        """Count the rows that asked."""
        self.layer_rows.append(LayerRows(output.shape[1], self._new, self._seen))
