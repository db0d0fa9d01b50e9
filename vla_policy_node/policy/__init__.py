"""Public inference API: `load_policy` and the interface of policies. Needs neither torch nor ROS.

`load_policy` loads a checkpoint into this process, `read_spec` says what that would need, and
`interface` what every policy is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vla_policy_node.policy.interface import Policy, PolicySpec


def load_policy(
    checkpoint: Path | str, execution_mode: str = '', logger: logging.Logger | Any = None,
    **options: Any
) -> Policy:
    """Load a checkpoint; options are those of `local.LocalPolicy.load`, which has the details.

    Methods that answer some steps without the network are put round it.

    execution_mode: methods that it does not suit are refused before anything is read; '' for any.
    logger: `logging`'s or rclpy's; is told what no file says and had to be guessed, one line each.
    """
    from vla_policy_node import acceleration
    from vla_policy_node.policy.answering import AnsweringPolicy
    from vla_policy_node.policy.interface import EXECUTION_MODES
    from vla_policy_node.policy.local import LocalPolicy

    if execution_mode:
        if execution_mode not in EXECUTION_MODES:
            raise ValueError(
                f'Execution mode {execution_mode!r} is unknown; use one of '
                f'{", ".join(EXECUTION_MODES)}.')
        acceleration.check_execution(options.get('methods', ()), execution_mode)
    policy = LocalPolicy.load(checkpoint, **options)
    for one in policy.taken:
        (logger or logging.getLogger(__name__)).warning(str(one))
    answers = [method.answers for method in policy.methods if method.answers is not None]
    return AnsweringPolicy(policy, answers) if answers else policy


def read_spec(checkpoint: Path | str, methods: Sequence[str] = ()) -> PolicySpec:
    """Return what `load_policy` of these would need and answer with, without reading weights.

    Raises ValueError with one sentence for a checkpoint or a method that there is not.
    """
    from vla_policy_node import acceleration, families
    from vla_policy_node.checkpoints.hub import find_checkpoint
    from vla_policy_node.policy.describe import spec_with

    config = families.read_model_config(find_checkpoint(checkpoint))
    return spec_with(config, [acceleration.named(name) for name in methods])
