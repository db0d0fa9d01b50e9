"""`vla eval`: runs a plan, or what is left of it, and shows success, comparisons and cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from vla_policy_node.checkpoints.hub import find_checkpoint
from vla_policy_node.checkpoints.layout import statistics_key
from vla_policy_node.checkpoints.reading import read_json
from vla_policy_node.common.terminal import fitted
from vla_policy_node.evaluation.contenders import parse_contender, state_only_contender
from vla_policy_node.evaluation.lock_step import node_parameters
from vla_policy_node.evaluation.plan import DEFAULT_EPISODES, Plan
from vla_policy_node.evaluation.results import COMMAND, Results
from vla_policy_node.evaluation.run_plan import run_plan
from vla_policy_node.evaluation.summary import describe_policy, summarise
from vla_policy_node.evaluation.tables import tables
from vla_policy_node.outputs.files import write_text
from vla_policy_node.outputs.folder import claimed, seal
from vla_policy_node.runtime.loading import find_device
from vla_policy_node.world.layouts import HELD_OUT_STATES
from vla_policy_node.world.libero_world import tasks


def make_plan(
    methods: Sequence[str] = (),
    state_only: Path | None = None,
    arguments: Mapping[str, str] | None = None,
    suite: str = 'libero_object',
    layout: str = 'shuffled',
    task_ids: Sequence[int] = (),
    episodes: int = 0,
    changes: Mapping[str, object] | None = None,
    **settings: object,
) -> Plan:
    """Return the plan of an evaluation from command-line values.

    methods: as `contenders` describes; 'dense' if neither methods nor a baseline are given.
    arguments: 'checkpoint', 'config', 'device'. task_ids: () for all. episodes: 0 for the
        default.
    changes: parameters of the node to override. settings: other fields of `Plan`.
    Raises ValueError with one sentence for an impossible request.
    """
    contenders = [parse_contender(text) for text in methods]
    if state_only is not None:
        contenders.append(state_only_contender(state_only))
    parameters, image_size = node_parameters(arguments or {}, **(changes or {}))
    find_device(parameters.device)
    checkpoint = parameters.checkpoint
    directory = find_checkpoint(checkpoint)
    parameters = replace(parameters, checkpoint=str(directory))
    if not parameters.statistics_key:
        parameters = replace(parameters, statistics_key=statistics_key(directory, suite))
        contenders = [
            replace(c, statistics_key=statistics_key(c.checkpoint, suite)) if c.checkpoint else c
            for c in contenders]
    if not episodes:
        episodes = HELD_OUT_STATES if layout == 'standard' else DEFAULT_EPISODES
    return Plan(
        contenders=tuple(contenders or [parse_contender('dense')]),
        parameters=parameters,
        checkpoint=checkpoint,
        image_size=image_size,
        suite=suite,
        layout=layout,
        task_ids=tuple(task_ids) or tuple(range(len(tasks(suite)))),
        episodes=episodes,
        **settings,
    )


def evaluate(
    plan: Plan, workers: int, console: Console, file: Path | None = None,
    plots: Path | None = None,
) -> dict:
    """Run the missing episodes, print the tables, write the files; return the document.

    file: of the document; while it is made, finished episodes are kept beside it. plots:
        directory for pictures. Raises ValueError if a file of these names is not ours.
    """
    from vla_policy_node.evaluation.plots import plot_names, write_plots

    with ExitStack() as claims:
        if file is not None:
            claims.enter_context(claimed(file.parent, [file.name], COMMAND))
            _refuse_other_results(file, plan)
        if plots is not None:
            claims.enter_context(claimed(plots, plot_names(), COMMAND))
        results = Results(file, plan.identity())
        run_plan(plan, results, workers, console)
        document = summarise(plan, results.rows(plan.keys), workers)
        for table in tables(document):
            console.print(fitted(table, 1 if table.columns[0].header == '' else 0))
        if plots is not None:
            for path in write_plots(document, plots):
                console.print(f'Wrote {path}.', markup=False, soft_wrap=True)
            seal(plots, COMMAND, plot_names())
        if file is not None:
            write_text(file, json.dumps(document, indent=1, allow_nan=False) + '\n')
            seal(file.parent, COMMAND, [file.name])
            results.discard_side_file()
            console.print(f'Wrote {file}.', markup=False, soft_wrap=True)
    return document


def _refuse_other_results(file: Path, plan: Plan) -> None:
    """Raise ValueError if a finished evaluation of something else would be overwritten."""
    if not file.is_file():
        return
    found = read_json(file)
    wanted = {
        'suite': plan.suite, 'layout': plan.layout, 'split': plan.split, 'seed': plan.seed,
        'control': plan.control, 'checkpoint': describe_policy(plan)['sha256']}
    for name, value in wanted.items():
        # Entries that the file's version did not have yet had their default.
        before = found.get(name, 'development' if name == 'split' else None)
        if name == 'checkpoint' and isinstance(before, dict):
            before = before.get('sha256')
        if before != value:
            raise ValueError(f"'{file}' holds the results of {name} {before}, not {value}; write "
                             'to another file, or move it away.')
