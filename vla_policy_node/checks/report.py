"""Runs all checks of one checkpoint, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from vla_policy_node.checks import assumed, behaviour, decoding, files, values
from vla_policy_node.checks.behaviour import PrismaticRun
from vla_policy_node.checks.findings import FAIL, Finding
from vla_policy_node.families import read_model_config
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.runtime.loading import load_model


def check_checkpoint(
    directory: Path,
    suite: str = '',
    statistics_key: str = '',
    device: str = 'cpu',
    dtype: str = 'float32',
    progress: Callable[[float], None] = lambda share: None,
    recorded: bool = False,
) -> Iterator[Finding]:
    """Yield a finding per check; what cannot be read at all ends the list with a failure.

    progress: called with the share of the weights that is loaded. recorded: prompts come from
    recordings, and a checkpoint without a tokenizer will do.
    """
    try:
        config = read_model_config(directory)
        yield Finding('policy', 'pass', config.architecture)
        yield files.check_files(directory, config)
        yield files.check_statistics(directory, config, suite, statistics_key)
        yield from values.check_values(directory, config, statistics_key)
        found = assumed.all_assumptions(directory, suite, statistics_key)
        yield assumed.check_assumptions(directory, config, found)
        yield assumed.check_proprio(directory, config)
        yield files.check_normalisation(directory, config)
        yield files.check_prompt_ids(directory, config, recorded)
        model = load_model(directory, config, device, dtype, progress)
        kinds = files.check_dtypes(directory, model, dtype)
        yield kinds
        if kinds.verdict == FAIL:  # of weights that are not finite, nothing else can be said
            return
        if isinstance(model, PrismaticVla):
            yield decoding.check_decoding(PrismaticRun.prepare(directory, model), found[0])
        yield from behaviour.check_behaviour(directory, model, recorded)
    except ValueError as error:
        yield Finding('loading', FAIL, str(error))
