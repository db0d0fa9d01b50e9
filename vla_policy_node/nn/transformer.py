"""The decoder of every policy: Llama, Gemma and SmolLM are settings of it.

Which rows see which, the policy says (`nn.masks`): in OpenVLA-OFT all see all, CogACT and OpenVLA
are causal, the prefix of a flow policy is a block of its own. A model run with another mask than
it was trained with loads, runs, and fails on the robot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.nn import initial
from vla_policy_node.nn.hooks import NO_HOOKS, LayerHooks
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.nn.masks import (
    BIDIRECTIONAL,
    Visibility,
    asked,
    make_mask,
    with_appended,
    with_past,
)
from vla_policy_node.nn.norms import AdaptiveRmsNorm, RmsNorm, apply_norm
from vla_policy_node.nn.sequence import TokenSequence

ALL_ROWS = slice(None)


class Place(NamedTuple):
    """Where in a pass a layer runs: its number and input, who watches, what it remembers."""

    index: int  # type: ignore[assignment]  # a tuple has a method of this name
    sequence: TokenSequence
    visibility: Visibility = BIDIRECTIONAL
    hooks: LayerHooks = NO_HOOKS
    cache: KvCache | None = None


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and style of a decoder; the defaults are those of Llama-2-7B in `transformers`.

    vocabulary: 0 for a decoder without words, such as an action expert. key_heads: heads of keys
        and values, which groups of query heads share; 0: as many as `heads`. head_width: 0:
        width / heads. activation: of the gate, 'silu' (Llama, SmolLM) or 'gelu_tanh' (Gemma).
    norm_offset: norms multiply with 1 + weight instead of the weight (Gemma).
    embedding_scale: of the words' embeddings (Gemma: the root of the width).
    condition_width: of what modulates the norms (adaRMS, pi0.5's expert); 0: nothing does.
    """

    width: int = 4096
    layers: int = 32
    heads: int = 32
    mlp_width: int = 11008
    vocabulary: int = 32064
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    context_length: int = 2048
    key_heads: int = 0
    head_width: int = 0
    activation: str = 'silu'
    norm_offset: bool = False
    embedding_scale: float = 1.0
    condition_width: int = 0

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.head_width or self.width // self.heads

    @property
    def query_width(self) -> int:
        """Of all query heads, side by side."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Of all key heads, side by side; values are as wide."""
        return (self.key_heads or self.heads) * self.head_dim


class Rope:
    """Rotary embedding for one set of positions (Su et al. 2021, halves rotated as in Llama)."""

    def __init__(self, positions: Tensor, head_width: int, theta: float, dtype: torch.dtype):
        steps = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32)
        angles = positions[:, None, :, None] * theta ** (-steps / head_width)
        angles = torch.cat([angles, angles], dim=-1)
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    @classmethod
    def of(cls, config: DecoderConfig, positions: Tensor, dtype: torch.dtype) -> Rope:
        """Make the one of a decoder."""
        return cls(positions, config.head_dim, config.rope_theta, dtype)

    def __call__(self, x: Tensor, rows: slice = ALL_ROWS) -> Tensor:
        """[B, heads, T, head_width], whose rows are `rows` of the sequence -> same, rotated."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        return x * self.cos[:, :, rows] + turned * self.sin[:, :, rows]


class SelfAttention(nn.Module):
    """Attention with as many key heads as query heads, or fewer (grouped queries)."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.heads, self.head_width = config.heads, config.head_dim
        self.query_width, self.key_width = config.query_width, config.key_width
        self.q_proj = nn.Linear(config.width, config.query_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.key_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.key_width, bias=False)
        self.o_proj = nn.Linear(config.query_width, config.width, bias=False)

    def forward(
        self, x: Tensor, rope: Rope, mask: Tensor | None, rows: slice, place: Place | None = None
    ) -> Tensor:
        """[B, T, width] -> [B, rows, width]: queries of `rows` only, keys and values of all.

        place: for hooks and a cache, None where there is neither.
        """
        query, key, value = self.project(x, rope, rows)
        if place is not None:
            key, value, mask = self._seen(place, x, rope, mask, rows, (query, key, value))
        return self.o_proj(attend(query, key, value, asked(mask, rows)))

    def _seen(
        self,
        place: Place,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None,
        rows: slice,
        made: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask after the hooks had their turn and the cache added the past."""
        index, sequence, visibility, hooks, cache = place
        query, key, value = made
        key, value = hooks.keys_values(index, sequence, key, value)
        positions = None
        if key.shape[2] > x.shape[1]:
            positions = hooks.appended_positions(index, sequence)
            mask = with_appended(mask, sequence, key.shape[2], positions, visibility)
        last = rows != ALL_ROWS
        queries = (lambda asking: self.queries(x, rope, asking)) if last else (
            lambda asking: query[:, :, asking])
        hooks.watch_attention(index, sequence, LazyAttention(
            queries, share(key, query.shape[1]), mask, last, x.shape[2]))
        if cache is None:
            return key, value, mask
        past, bias = cache.rows(index), cache.bias(index)
        key, value = cache.append(index, key, value, *_described(sequence, positions))
        return key, value, with_past(mask, key, past, bias)

    def project(self, x: Tensor, rope: Rope, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of `rows`, keys and values of all, [B, heads, rows or T, head width]."""
        key, value = rope(self._heads(self.k_proj(x))), self._heads(self.v_proj(x))
        return self.queries(x, rope, rows), key, value

    def queries(self, x: Tensor, rope: Rope, rows: slice) -> Tensor:
        """Queries of `rows` alone, [B, heads, rows, head width]."""
        return rope(self._heads(self.bare_queries(x[:, rows])), rows)

    def bare_queries(self, x: Tensor) -> Tensor:
        """Queries before rotation, heads side by side, [..., width] -> [..., heads' width]."""
        return self.q_proj(x)

    def bare_keys(self, x: Tensor) -> Tensor:
        """Keys, likewise."""
        return self.k_proj(x)

    def _heads(self, x: Tensor) -> Tensor:
        heads = x.shape[2] // self.head_width
        return x.view(*x.shape[:2], heads, self.head_width).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """[B, heads, T, head width] -> heads side by side, [B, T, heads' width]."""
    heads = query.shape[1]
    mixed = functional.scaled_dot_product_attention(
        query, share(key, heads), share(value, heads), attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def share(x: Tensor, heads: int) -> Tensor:
    """Keys or values [B, key heads, T, head width] as each query head sees them."""
    groups = heads // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _described(
    sequence: TokenSequence, appended: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Positions and bias of a layer's keys; appended: positions of those behind the rows' own."""
    positions, bias = sequence.positions, sequence.key_bias
    if appended is not None:
        positions = torch.cat([positions, appended.expand(len(positions), -1)], dim=1)
        bias = None if bias is None else functional.pad(bias, (0, appended.shape[-1]))
    return positions, bias


class GatedMlp(nn.Module):
    """Gated feed-forward layer: SwiGLU, or GeGLU with the tanh form of GELU."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.activation = config.activation
        self.gate_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.mlp_width, bias=False)
        self.down_proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        return self.down_proj(activate(self.gate_proj(x), self.activation) * self.up_proj(x))


def activate(x: Tensor, activation: str) -> Tensor:
    """Element by element, 'silu' or 'gelu_tanh'."""
    return functional.silu(x) if activation == 'silu' else functional.gelu(x, approximate='tanh')


class DecoderLayer(nn.Module):
    """A pre-norm layer: attention, then the gated feed-forward layer."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = GatedMlp(config)

    def forward(
        self,
        x: Tensor,
        rope: Rope,
        mask: Tensor | None,
        rows: slice = ALL_ROWS,
        place: Place | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """[B, T, width] -> [B, rows, width]; condition: [B, condition width]."""
        x, added = self.advance(x, None, rope, mask, rows, place, condition)
        return x + added

    def advance(
        self,
        x: Tensor,
        added: Tensor | None,
        rope: Rope,
        mask: Tensor | None,
        rows: slice = ALL_ROWS,
        place: Place | None = None,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, from and to a sum that is not done yet; added: None for nothing."""
        x = x if added is None else x + added
        normed, gate = apply_norm(self.input_layernorm, x, condition)
        attended = self.self_attn(normed, rope, mask, rows, place)
        if place is not None:
            place.hooks.watch_output(place.index, place.sequence, attended)
        return self.feed(x[:, rows] + gated(attended, gate), condition)

    def feed(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows after attention, and what the feed-forward layer adds to them."""
        normed, gate = apply_norm(self.post_attention_layernorm, x, condition)
        return x, gated(self.mlp(normed), gate)


def make_norm(config: DecoderConfig) -> nn.Module:
    """Make a norm of the decoder's style."""
    if config.condition_width:
        return AdaptiveRmsNorm(config.width, config.norm_eps, config.condition_width)
    return RmsNorm(config.width, config.norm_eps, config.norm_offset)


def gated(x: Tensor, gate: Tensor | None) -> Tensor:
    """Rows times the gate, if there is one."""
    return x if gate is None else gate * x


class Decoder(nn.Module):
    """Embedding table, layers and final norm; heads are the policy's.

    visibility: which rows see which.
    """

    def __init__(self, config: DecoderConfig, visibility: Visibility = BIDIRECTIONAL):
        super().__init__()
        self.config = config
        self.visibility = visibility
        if config.vocabulary:
            self.embed_tokens = nn.Embedding.from_pretrained(
                initial.normal(config.vocabulary, config.width), freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = make_norm(config)

    def embed_words(self, ids: Tensor) -> Tensor:
        """Words as rows, [B, L] int64 -> [B, L, width], scaled as the layers expect them."""
        rows, scale = self.embed_tokens(ids), self.config.embedding_scale
        return rows if scale == 1 else rows * scale

    def forward(
        self,
        sequence: TokenSequence,
        rows: slice = ALL_ROWS,
        hooks: LayerHooks = NO_HOOKS,
        cache: KvCache | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states of `rows` after the final norm, [B, rows, width].

        Arguments are those of `run_layers`.
        """
        return self.finish(self.run_layers(sequence, rows, hooks, cache, condition), condition)

    def run_layers(
        self,
        sequence: TokenSequence,
        rows: slice = ALL_ROWS,
        hooks: LayerHooks = NO_HOOKS,
        cache: KvCache | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states of `rows` behind the last layer that runs, [B, rows, width].

        rows: counted from the end if rows may be dropped on the way; none where only the cache is
            of use, and of the last layer then keys and values alone are computed.
        cache: keeps keys and values. Where it holds rows already, those come before these, the
            same layers run as did for them, and the hooks, which had their turn then, have none.
        condition: [B, condition width], where the norms are adaptive.
        """
        rope, mask = self._rope(sequence), make_mask(sequence, self.visibility)
        if cache is not None and cache.layers:
            layers, hooks = cache.layers, NO_HOOKS
        else:
            layers = hooks.select_layers(sequence, range(len(self.layers)))
        asking = ALL_ROWS
        for index in layers:
            states = sequence.states
            if index and hooks.should_exit(
                    index, lambda x=states: self.finish(x[:, rows], condition)):
                break
            changed = hooks.before_layer(index, sequence) if index else sequence
            if changed is not sequence:
                sequence, states = changed, changed.states
                rope, mask = self._rope(sequence), make_mask(sequence, self.visibility)
            # What the last layer makes of other rows, nobody reads.
            asking = rows if index == layers[-1] else ALL_ROWS
            place = None
            if hooks is not NO_HOOKS or cache is not None:
                place = Place(index, sequence, self.visibility, hooks, cache)
            states = self.layers[index](states, rope, mask, asking, place, condition)
            sequence = replace(sequence, states=states)
        states = sequence.states
        return states if asking == rows else states[:, rows]

    def finish(self, states: Tensor, condition: Tensor | None = None) -> Tensor:
        """Apply the final norm."""
        return apply_norm(self.norm, states, condition)[0]

    def _rope(self, sequence: TokenSequence) -> Rope:
        return Rope.of(self.config, sequence.positions, sequence.states.dtype)
