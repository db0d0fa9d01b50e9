"""Builds the policy that parameters describe: loaded, checked, warmed up, optionally shadowed."""

from __future__ import annotations

import logging
import os
from typing import Any

from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.loop.shadowed import ShadowedPolicy
from vla_policy_node.policy.interface import ActionChunk, Policy
from vla_policy_node.policy.warm_up import warm_up
from vla_policy_node.policy.wrapper import innermost


def load_ready(
    parameters: PolicyParameters, logger: logging.Logger | Any
) -> tuple[Policy, ShadowedPolicy | None]:
    """Return a policy whose next inference is not slow for being the first, and its shadow.

    The shadow, if the parameters want one, is the policy itself with a plain one beside it.
    logger: `logging`'s or rclpy's. Raises ValueError with one sentence if anything does not fit.
    """
    logger.info(f'Loading {parameters.checkpoint} ...')
    policy = parameters.load_policy(
        parameters.threads or max(1, len(os.sched_getaffinity(0)) - 1), logger=logger)
    try:
        return _ready(policy, parameters, logger)
    except Exception:
        policy.close()
        raise


def _ready(
    policy: Policy, parameters: PolicyParameters, logger: logging.Logger | Any
) -> tuple[Policy, ShadowedPolicy | None]:
    description = policy.description
    if all(description.action_range):
        parameters.action_spec().check_range(*description.action_range)
    chunk = _warm_up(policy, parameters, parameters.warmup_inferences, logger)
    logger.info(
        f'{description.architecture}, {description.parameters / 1e6:.1f} M parameters, '
        f'{chunk.method}, {sum(chunk.stage_ms.values()):.0f} ms after warm-up'
        + ('' if description.trained else '; UNTRAINED random weights')
    )
    if (sentence := _too_late(chunk, parameters)) and parameters.pacing == 'timer':
        logger.warning(sentence)
    if not parameters.shadow_every:
        return policy, None
    shadowed = _shadowed(policy, parameters, logger)
    return shadowed, shadowed


def _too_late(chunk: ActionChunk, parameters: PolicyParameters) -> str:
    """Return the sentence for a policy no action of which can be in time, '' for any other.

    The first action is sent while its picture is younger than half a period (`executors`), and
    each of the others for one period more.
    """
    count, took_s = len(chunk.actions), sum(chunk.stage_ms.values()) / 1e3
    if took_s < (count - 0.5) * parameters.period_ns / 1e9:
        return ''
    return (f'An inference takes {took_s * 1e3:.0f} ms, too long for {count} '
            f'{"actions" if count > 1 else "action"} at {parameters.control_rate_hz:g} Hz: none '
            f'will be in time; set control_rate_hz below {(count - 0.5) / took_s:.2g}.')


def _shadowed(
    policy: Policy, parameters: PolicyParameters, logger: logging.Logger | Any
) -> ShadowedPolicy:
    make_plain = getattr(innermost(policy), 'plain', None)
    if make_plain is None:
        raise ValueError('Only a policy in this process has a plain one beside it; set '
                         'shadow_every to 0.')
    plain = make_plain()
    _warm_up(plain, parameters, 0, logger)
    return ShadowedPolicy(policy, plain, parameters.end_effector_spec(), parameters.shadow_every,
                          parameters.latency_window, logger)


def _warm_up(
    policy: Policy, parameters: PolicyParameters, inferences: int, logger: logging.Logger | Any
) -> ActionChunk | Any:
    instructions = list(filter(None, parameters.warmup_instructions))
    for text in instructions:
        logger.info(f'Getting ready for instructions as long as {text!r} ...')
    return warm_up(policy, inferences, instructions)
