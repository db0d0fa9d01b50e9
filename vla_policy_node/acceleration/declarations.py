"""What methods declare: effects, assumptions, and checks that they and a policy fit together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING

from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.policy.interface import EXECUTION_MODES, Quantity

if TYPE_CHECKING:
    from vla_policy_node.acceleration.base import Method
    from vla_policy_node.nn.config import ModelConfig


class Effect(Enum):
    """Something that a method may do, as configured; `test_methods_declare.py` checks it.

    DROPS_TOKENS: before the first layer; DROPS_TOKENS_LATER: before another one.
    READS_OUTPUTS: what attention adds to the rows.
    COST_VARIES: the remaining computation depends on what the policy sees or does.
    FIXED_SHAPES: it can choose in shapes that do not depend on the choice (`select_static`).
    """

    CHANGES_WEIGHTS = auto()
    ANSWERS_STEPS = auto()
    REUSES_FEATURES = auto()
    DROPS_TOKENS = auto()
    DROPS_TOKENS_LATER = auto()
    READS_ATTENTION = auto()
    READS_OUTPUTS = auto()
    REUSES_KEYS_VALUES = auto()
    SKIPS_LAYERS = auto()
    EXITS_EARLY = auto()
    REUSES_DENOISING = auto()
    COST_VARIES = auto()
    FIXED_SHAPES = auto()


class Assumption(Enum):
    """What a method relies on in how actions are executed; continues 'It takes it that ...'."""

    WHOLE_CHUNKS = 'a chunk is executed to its end before the next inference'


# Execution mode -> the assumptions that hold in it.
HOLDS = {mode: frozenset(Assumption) if mode == 'sync' else frozenset()
         for mode in EXECUTION_MODES}

DROPS = {Effect.DROPS_TOKENS, Effect.DROPS_TOKENS_LATER}
# Effects that happen in a certain layer, which must then run.
IN_LAYERS = {
    Effect.DROPS_TOKENS_LATER, Effect.READS_ATTENTION, Effect.READS_OUTPUTS,
    Effect.REUSES_KEYS_VALUES}
IN_PASS = {*Effect} - {
    Effect.CHANGES_WEIGHTS, Effect.ANSWERS_STEPS, Effect.COST_VARIES, Effect.FIXED_SHAPES}
REFUSALS = {
    Capability.DENOISING:
        '{name} needs a policy whose action head denoises, such as CogACT or pi0; this one is '
        '{architecture}.',
    Capability.EARLY_ANSWERS:
        '{name} asks the action head at every exit, which for a head that denoises costs more '
        'than the layers it saves; choose an OpenVLA-OFT policy.',
}
REFUSAL = '{name} needs a policy whose {need}; this one is {architecture}.'


def check_together(methods: Sequence[Method]) -> None:
    """Raise ValueError with one sentence for methods that cannot run together.

    A cross-frame cache of keys and values would have holes where tokens were dropped or layers
    left out, and a method that relies on one layer must not find it skipped.
    """
    for first in methods:
        for second in methods:
            if first is second:
                continue
            if Effect.REUSES_KEYS_VALUES in first.does:
                if Effect.EXITS_EARLY in second.does:
                    raise ValueError(
                        f'{first.name} reuses keys and values of the last step, which are missing '
                        f'where {second.name} left out layers; choose one of the two.'
                    )
                if second.does & {*DROPS, Effect.REUSES_KEYS_VALUES}:
                    raise ValueError(
                        f'{first.name} reuses keys and values of the last step, among which those '
                        f'of the tokens that {second.name} drops are missing; choose one of the '
                        'two.'
                    )
            if Effect.SKIPS_LAYERS in first.does and second.does & IN_LAYERS:
                raise ValueError(
                    f'{first.name} skips layers that {second.name} looks at; choose one of the '
                    'two.'
                )


def check_policy(methods: Sequence[Method], config: ModelConfig) -> None:
    """Raise ValueError with one sentence for a method that needs what a policy does not offer."""
    offered = config.family.capabilities
    for method in methods:
        for need in Capability:
            if need in method.needs - offered:
                own = need == Capability.DENOISING or Capability.DENOISING in offered
                raise ValueError((REFUSALS.get(need, REFUSAL) if own else REFUSAL).format(
                    name=method.name, need=need.value, architecture=config.architecture))
        _check_numbers(method.name, 'state', method.reads_state, config.spec.state)
        _check_numbers(method.name, 'actions', method.reads_actions, config.spec.actions)


def _check_numbers(
    name: str, kind: str, read: Sequence[str], numbers: Sequence[Quantity]
) -> None:
    """Refuse numbers of another meaning; a state that the policy is not told is the default."""
    found = [quantity.name for quantity in numbers[: len(read)]]
    if found and found != [*read]:
        raise ValueError(
            f'{name} goes by the {kind} {", ".join(read)}; those of this policy begin with '
            f'{", ".join(found)}.')


def check_execution(methods: Iterable[type[Method]], mode: str) -> None:
    """Raise ValueError with one sentence for a method whose assumptions a mode does not keep."""
    for method in methods:
        for assumption in sorted(method.assumes - HOLDS[mode], key=lambda entry: entry.name):
            right = ' or '.join(f'{name!r}' for name in execution_modes([method]))
            raise ValueError(
                f'{method.name} takes it that {assumption.value}: set execution_mode to {right}, '
                f'it is {mode!r}, or choose another method.')


def execution_modes(methods: Iterable[type[Method]]) -> tuple[str, ...]:
    """Execution modes that keep all that these methods assume."""
    assumed = frozenset[Assumption]().union(*(method.assumes for method in methods))
    return tuple(mode for mode in EXECUTION_MODES if assumed <= HOLDS[mode])


def check_fixed_shapes(methods: Sequence[Method]) -> None:
    """Raise ValueError with one sentence for methods that cannot run in fixed shapes.

    methods: prepared, because what they choose may depend on what they have learnt.
    """
    choosing = [method for method in methods if method.acts_in_pass]
    if len(choosing) > 1:
        raise ValueError(
            "Fixed shapes are for one acceleration method; choose optimisation 'fused' for "
            f'{"+".join(method.name for method in methods)}.')
    for method in choosing:
        if Effect.FIXED_SHAPES not in method.does:
            raise ValueError(
                f'{method.name}, as it is set, cannot run in fixed shapes; choose '
                "optimisation 'fused'.")
