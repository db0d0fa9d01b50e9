"""The Llama decoder: every row attends to every row for OpenVLA-OFT, causally for CogACT.

OpenVLA-OFT decodes the whole chunk in one pass, which needs bidirectional attention over the
whole sequence (openvla-oft issue 27). A causal mask loads and runs as well, and fails on the
robot, hence the head of the checkpoint decides and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.models.config import LanguageModelConfig
from vla_policy_node.nn.hooks import NO_HOOKS, LayerHooks
from vla_policy_node.nn.sequence import TokenSequence


class RmsNorm(nn.Module):
    """Root-mean-square norm, computed in float32 at least."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Rope:
    """Rotary embedding for one set of positions (Su et al. 2021, halves rotated as in Llama)."""

    def __init__(self, positions: Tensor, head_width: int, theta: float, dtype: torch.dtype):
        steps = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32)
        angles = positions[:, None, :, None] * theta ** (-steps / head_width)
        angles = torch.cat([angles, angles], dim=-1)
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def __call__(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """[B, heads, T, head_width], whose rows are `rows` of the sequence -> same, rotated."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return x * self.cos[:, :, rows] + turned * self.sin[:, :, rows]


class Attention:
    """What a layer attends to, computed when called.

    queries: rows of the sequence -> their queries, [B, heads, rows, head width]. key: [B, heads,
        keys, head width]. mask: added to the logits.
    last: whether this is the last layer that runs. Of itself it asks only for the rows that the
        head reads, so `queries` makes those of any others.
    """

    def __init__(
        self, queries: Callable[[slice], Tensor], key: Tensor, mask: Tensor | None, last: bool
    ):
        self._queries = queries
        self._key = key
        self._mask = mask
        self.last = last

    def __call__(self, asking: slice) -> Tensor:
        """Rows that ask -> [B, heads, rows, keys] float32, each row sums to 1."""
        query = self._queries(asking)
        logits = query @ self._key.mT / query.shape[-1] ** 0.5
        hidden = _asked(self._mask, asking)
        return (logits if hidden is None else logits + hidden).float().softmax(dim=-1)

    def flops(self, rows: int) -> int:
        """What a call for so many rows costs, counted as in `models.flops`, batch 1."""
        _, heads, keys, head_width = self._key.shape
        width = heads * head_width
        return 2 * rows * width * (keys + width * self.last)


class SelfAttention(nn.Module):
    """Multi-head attention, bidirectional but for what the mask hides."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None,
        rows: slice,
        hooks: LayerHooks = NO_HOOKS,
        *place: object,
    ) -> Tensor:
        """[B, T, width] -> [B, rows, width]: only `rows` ask, all rows answer.

        place: index and input of the layer, for the hooks.
        """
        query, key, value = self.project(x, rope, rows)
        if place:
            key, value = hooks.keys_values(*place, key, value)
            if mask is not None and key.shape[2] > mask.shape[3]:
                mask = _with_more_keys(mask, key.shape[2], hooks, *place)
            last = rows != slice(None)
            queries = (lambda asking: self.queries(x, rope, asking)) if last else (
                lambda asking: query[:, :, asking])
            hooks.watch_attention(*place, Attention(queries, key, mask, last))
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=_asked(mask, rows))
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, rope: Rope, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `rows`, keys and values of all, [B, heads, rows or T, head width]."""
        key, value = rope(self._heads(self.k_proj(x))), self._heads(self.v_proj(x))
        return self.queries(x, rope, rows), key, value

    def queries(self, x: Tensor, rope: Rope, rows: slice) -> Tensor:
        """Queries of `rows` alone, [B, heads, rows, head width]."""
        return rope(self._heads(self.bare_queries(x[:, rows])), rows)

    def bare_queries(self, x: Tensor) -> Tensor:
        """Queries before rotation, heads side by side, [..., width] -> [..., width]."""
        return self.q_proj(x)

    def bare_keys(self, x: Tensor) -> Tensor:
        """Keys, likewise."""
        return self.k_proj(x)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def _asked(mask: Tensor | None, rows: slice) -> Tensor | None:
    """Of a mask [B, 1, T or 1, keys] what `rows` need."""
    return mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]


def _with_more_keys(
    mask: Tensor, keys: int, hooks: LayerHooks, index: int, sequence: TokenSequence
) -> Tensor:
    """A mask for so many keys, of which some were appended.

    All rows see those, but in a causal model only rows at or behind their positions. ValueError if
    nobody says what these are.
    """
    more = keys - mask.shape[3]
    if mask.shape[2] == 1:
        return functional.pad(mask, (0, more))
    positions = hooks.appended_positions(index, sequence)
    if positions is None or positions.shape[-1] != more:
        raise ValueError(
            'Keys of rows that are no longer in the sequence need positions in a causal language '
            'model; choose another acceleration method for this policy.')
    hidden = _hide_later(positions.expand(len(mask), -1), sequence.positions)
    return torch.cat([mask, hidden.to(mask.dtype)], dim=3)


def _hide_later(keys: Tensor, rows: Tensor) -> Tensor:
    """Positions [B, K] and [B, T] -> [B, 1, T, K], -inf where a key is behind a row."""
    later = keys[:, None, None, :] > rows[:, None, :, None]
    return torch.zeros(later.shape, device=later.device).masked_fill(later, -torch.inf)


class SwiGlu(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """A pre-norm Llama layer."""

    def __init__(self, config: LanguageModelConfig):
        super().__init__()
        self.input_layernorm = RmsNorm(config.width, config.norm_eps)
        self.self_attn = SelfAttention(config.width, config.heads)
        self.post_attention_layernorm = RmsNorm(config.width, config.norm_eps)
        self.mlp = SwiGlu(config.width, config.mlp_width)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None,
        rows: slice,
        hooks: LayerHooks = NO_HOOKS,
        *place: object,
    ) -> Tensor:
        """[B, T, width] -> [B, rows, width]; place: index and input of the layer."""
        x, added = self.advance(x, None, rope, mask, rows, hooks, *place)
        return x + added

    def advance(
        self,
        x: Tensor,
        added: Tensor | None,
        rope: Rope,
        mask: Tensor | None,
        rows: slice,
        hooks: LayerHooks = NO_HOOKS,
        *place: object,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, from and to a sum that is not done yet; added: None for nothing."""
        x = x if added is None else x + added
        attended = self.self_attn(self.input_layernorm(x), rope, mask, rows, hooks, *place)
        if place:
            hooks.watch_output(*place, attended)
        x = x[:, rows] + attended
        return x, self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Embedding table, decoder layers and final norm; no vocabulary head, actions need none.

    causal: whether a row sees only itself and what is before it, by position.
    """

    def __init__(self, config: LanguageModelConfig, causal: bool = False):
        super().__init__()
        self.config = config
        self.causal = causal
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RmsNorm(config.width, config.norm_eps)

    def forward(
        self,
        sequence: TokenSequence,
        rows: slice = slice(None),
        hooks: LayerHooks = NO_HOOKS,
    ) -> Tensor:
        """Return the hidden states of `rows` after the final norm, [B, rows, width].

        rows: counted from the end if rows may be dropped on the way.
        """
        rope, mask = self._rope(sequence), self._mask(sequence)
        layers = hooks.select_layers(sequence, range(len(self.layers)))
        asked = slice(None)
        for index in layers:
            states = sequence.states
            if index and hooks.should_exit(index, lambda x=states: self.norm(x[:, rows])):
                break
            changed = hooks.before_layer(index, sequence) if index else sequence
            if changed is not sequence:
                sequence, rope, mask = changed, self._rope(changed), self._mask(changed)
                states = sequence.states
            # What the last layer makes of other rows, nobody reads.
            asked = rows if index == layers[-1] else slice(None)
            place = () if hooks is NO_HOOKS else (hooks, index, sequence)
            states = self.layers[index](states, rope, mask, asked, *place)
            sequence = replace(sequence, states=states)
        states = sequence.states
        return self.norm(states if asked == rows else states[:, rows])

    def _rope(self, sequence: TokenSequence) -> Rope:
        head_width = self.config.width // self.config.heads
        return Rope(sequence.positions, head_width, self.config.rope_theta, sequence.states.dtype)

    def _mask(self, sequence: TokenSequence) -> Tensor | None:
        """Added to the attention logits, [B, 1, T or 1, T]."""
        bias = sequence.key_bias
        mask = None if bias is None else bias[:, None, None, :]
        if self.causal:
            unseen = _hide_later(sequence.positions, sequence.positions)
            mask = unseen if mask is None else mask + unseen
        return None if mask is None else mask.to(sequence.states.dtype)
