"""What a layer attends to, for whoever asks; who does not ask pays nothing."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vla_policy_node.nn.masks import asked


class LazyAttention:
    """What a layer attends to, computed when called.

    queries: rows of the sequence -> their queries, [B, heads, rows, head width]. key: [B, heads,
        keys, head width]. mask: added to the logits. width: of the rows that queries are made of.
    last: whether this is the last layer that runs. Of itself it asks only for the rows that the
        head reads, so `queries` makes those of any others.
    """

    def __init__(
        self,
        queries: Callable[[slice], Tensor],
        key: Tensor,
        mask: Tensor | None,
        last: bool,
        width: int,
    ):
        self._queries = queries
        self._key = key
        self._mask = mask
        self._width = width
        self.last = last

    def __call__(self, asking: slice) -> Tensor:
        """Rows that ask -> [B, heads, rows, keys] float32, each row sums to 1."""
        query = self._queries(asking)
        logits = query @ self._key.mT / query.shape[-1] ** 0.5
        hidden = asked(self._mask, asking)
        return (logits if hidden is None else logits + hidden).float().softmax(dim=-1)

    def flops(self, rows: int) -> int:
        """What a call for so many rows costs, two FLOPs per multiply-accumulate, batch 1."""
        _, heads, keys, head_width = self._key.shape
        return 2 * rows * heads * head_width * (keys + self._width * self.last)
