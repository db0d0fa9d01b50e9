"""Where others can take part in a forward pass, which `PassHooks.begin_pass` opens.

    PrefixHooks     before layer 0
    LayerHooks      between and inside the layers
    DenoisingHooks  each step of an action head that denoises

All of them do nothing by themselves. A hook of the layers says, where it is defined, how those of
several owners combine: `HookChain` follows that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vla_policy_node.nn.denoising import DenoisingStep
    from vla_policy_node.nn.lazy_attention import LazyAttention
    from vla_policy_node.nn.sequence import TokenSequence

Hook = Callable[..., Any]


def combined(rule: Callable[..., Any]) -> Callable[[Hook], Hook]:
    """Mark a hook with the rule that turns several of its kind and their arguments into one."""
    def mark(hook: Hook) -> Hook:
        hook.rule = rule  # type: ignore[attr-defined]
        return hook

    return mark


def in_turn(hooks: Sequence[Hook], *arguments: Any, changed: int = 1) -> Any:
    """Each changes what those before it made: the last argument, or more of them."""
    given, made = arguments[:-changed], arguments[-changed:]
    for hook in hooks:
        result = hook(*given, *made)
        made = (result,) if changed == 1 else result
    return made[0] if changed == 1 else made


def anyone(hooks: Sequence[Hook], *arguments: Any) -> bool:
    """Whether one of them says so; those behind it are not asked."""
    return any(hook(*arguments) for hook in hooks)


def side_by_side(hooks: Sequence[Hook], *arguments: Any) -> Tensor | None:
    """What they say in their order, None if nobody says anything."""
    said = [result for hook in hooks if (result := hook(*arguments)) is not None]
    return torch.cat(said, dim=-1) if said else None


def everyone(hooks: Sequence[Hook], *arguments: Any) -> None:
    """All are shown the same."""
    for hook in hooks:
        hook(*arguments)


@dataclass(frozen=True)
class Choice:
    """Which visual rows stay, in tensors whose shapes do not depend on what was chosen.

    kept: [V] bool. scores: [V], what the rows were ranked by. bias: [V] float32 to add to the
    attention logits of a kept row, None for nothing. flops: what choosing cost.
    """

    kept: Tensor
    scores: Tensor
    bias: Tensor | None = None
    flops: int = 0


class PrefixHooks:
    """Before layer 0."""

    def visual_features(self, features: Tensor) -> Tensor:
        """Features of all vision encoders before the projector, [1, V, features] -> same."""
        return features

    def select_tokens(self, sequence: TokenSequence) -> TokenSequence:
        """Drop visual tokens before layer 0; called once per pass."""
        return sequence

    def select_static(self, sequence: TokenSequence) -> Choice | None:
        """Choose what `select_tokens` would keep, in shapes that do not depend on the picture.

        A device replays this as part of a graph (`runtime.static_forward`): it neither waits for
        the device nor reads anything of the host that changes, except tensors that `begin_pass`
        writes into. Nothing is remembered; the result is passed to `record_selection`.

        sequence: with all visual tokens, and rows that only fill it up (`context_hidden`).
        None: the method, as it is set, cannot.
        """
        return None

    def record_selection(self, choice: Choice) -> None:
        """Take a choice of `select_static` for that of the last pass; `report` speaks of it."""


class LayerHooks:
    """The hooks of a decoder; these do nothing.

    index counts layers from 0; sequence is the layer's input, whose rows other owners of hooks may
    have dropped from.
    """

    @combined(in_turn)
    def select_layers(self, sequence: TokenSequence, layers: Sequence[int]) -> Sequence[int]:
        """Choose which of the layers to run, in order; called once per pass."""
        return layers

    @combined(anyone)
    def should_exit(self, index: int, answer: Answer) -> bool:
        """Whether to leave out layer `index` (1, 2, ...) and all behind it.

        answer: computes what the pass would end with, were it to end here: of a decoder by itself
        the states that it was asked for, of a policy its normalised actions [B, K, A], which
        costs the head: `answer.flops`.
        """
        return False

    @combined(in_turn)
    def before_layer(self, index: int, sequence: TokenSequence) -> TokenSequence:
        """Drop visual tokens, or change states, before layer `index` (1, 2, ...)."""
        return sequence

    @combined(partial(in_turn, changed=2))
    def keys_values(
        self, index: int, sequence: TokenSequence, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change what layer `index` (0, 1, ...) attends to.

        key, value: [B, heads, T, head width] of the rows of `sequence`, keys rotated. Those of
        tokens that are no rows of it may be appended; `appended_positions` says which they are. No
        value may be larger than the layer could make one: products of 8-bit floats rely on it.
        """
        return key, value

    @combined(side_by_side)
    def appended_positions(self, index: int, sequence: TokenSequence) -> Tensor | None:
        """Say which tokens `keys_values` has just appended: their positions, [B or 1, N] int64.

        None: it appended nothing. Only causal models ask, where a row sees no key behind it.
        """
        return None

    @combined(everyone)
    def watch_attention(
        self, index: int, sequence: TokenSequence, attention: LazyAttention
    ) -> None:
        """See what layer `index` (0, 1, ...) attends to; comes after `keys_values`.

        attention: rows of the sequence that ask -> [B, heads, rows, keys] float32, each row sums
        to 1. It is computed when called; `attention.flops` says what that costs. In the last
        layer that runs (`attention.last`), the queries of the rows come on top.
        """

    @combined(everyone)
    def watch_output(self, index: int, sequence: TokenSequence, output: Tensor) -> None:
        """See what attention adds in layer `index` to the rows that ask, [B, rows, width].

        All rows of the sequence ask, except in the last layer.
        """


class DenoisingHooks:
    """Inside an action head that denoises."""

    def denoise(self, state: DenoisingStep) -> Tensor | None:
        """Predict the noise or velocity of one step, [B, K, A]; None: run the whole head.

        The first result that is not None is used. Steps come in order, from index 0.
        """
        return None


class PassHooks(PrefixHooks, LayerHooks, DenoisingHooks):
    """A part in the forward pass."""

    def begin_pass(self) -> None:
        """A forward pass of the network begins: forget the last one."""


def hooks_of(*interfaces: type) -> Iterator[str]:
    """Names of the hooks that these interfaces define or inherit."""
    for interface in interfaces:
        for name in dir(interface):
            if not name.startswith('_'):
                yield name


NO_HOOKS = LayerHooks()
_LAYER_HOOKS: dict[str, Hook] = {name: getattr(LayerHooks, name) for name in hooks_of(LayerHooks)}


@dataclass(frozen=True)
class Answer:
    """What the policy would answer now; computed when called. flops: what that costs."""

    compute: Callable[[], Tensor]
    flops: int

    def __call__(self) -> Tensor:
        """Normalised actions [B, K, A]."""
        return self.compute()


class HookChain(LayerHooks):
    """Several owners of hooks as one, in their order; a hook that none of them has does nothing.

    head: states of the rows that the decoder was asked for -> what the policy would answer.
    head_flops: what that costs.
    """

    def __init__(
        self, owners: Sequence[LayerHooks], head: Callable[[Tensor], Tensor], head_flops: int = 0
    ):
        for name, nothing in _LAYER_HOOKS.items():
            own = [hook for owner in owners
                   if getattr(hook := getattr(owner, name), '__func__', None) is not nothing]
            if own:
                setattr(self, name, partial(nothing.rule, own))  # type: ignore[attr-defined]
        if 'should_exit' in vars(self):
            ask = self.should_exit
            self.should_exit = (  # type: ignore[method-assign]
                lambda index, states: ask(index, Answer(lambda: head(states()), head_flops)))
