"""`vla bench methods`: compares all methods on the same episodes and frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from vla_policy_node.bench.methods_costs import Costs, clock_of, load_of, summarise_costs
from vla_policy_node.bench.methods_published import published_rows
from vla_policy_node.bench.methods_report import NAMES as REPORT_NAMES
from vla_policy_node.bench.methods_report import write_report
from vla_policy_node.bench.methods_rows import contenders, share_out, split_usable, swept
from vla_policy_node.evaluation.evaluate import make_plan
from vla_policy_node.evaluation.plan import Plan
from vla_policy_node.evaluation.results import Results
from vla_policy_node.evaluation.run_plan import run_plan
from vla_policy_node.evaluation.summary import (
    describe_machine,
    describe_policy,
    layouts_digest,
    summarise,
)
from vla_policy_node.outputs.folder import claimed, clear, seal

COMMAND = 'vla bench methods'  # whose files they are
# In the output directory while a run is unfinished: its intermediate results, in a folder per
# checkpoint.
UNFINISHED = 'methods.unfinished'
# Of each set of layouts. `vla bench headline` has the test layouts of seed 0 for itself: whoever
# picks a row of this table has not picked it on those.
SEEDS = {'development': 0, 'test': 1}


def bench_methods(
    out: Path,
    console: Console,
    checkpoints: Sequence[str] = (),
    methods: Sequence[str] = (),
    also: Sequence[str] = (),
    sweep: bool = False,
    split: str = 'development',
    success: bool = True,
    frames_episodes: int = 1,
    workers: int = 1,
    command: str = COMMAND,
    arguments: Mapping[str, str] | None = None,
    **options: object,
) -> dict:
    """Measure, write methods.md, methods.json and methods.png into `out`, return the document.

    checkpoints: measured one after the other, () for the shipped default. methods: as
    `evaluation.contenders` writes them, () for all; also: more of them. sweep: vary the constants
    of the methods, see `methods_rows.swept`. split: of `layouts.SPLITS`; a sweep is made to
    choose, so it runs on 'development' alone. success: run closed loop, too. frames_episodes:
    episodes of each task whose frames the costs are measured on. command: what the user typed,
    for the report. arguments, options: those of `evaluation.evaluate.make_plan`. After an
    interruption the same call resumes. Raises ValueError with one sentence for an impossible
    request.
    """
    if sweep and split == 'test':
        raise ValueError(
            'A sweep is made to choose constants, and whoever chooses on the test layouts has '
            'none left to report on; sweep on --split development, then run the table with what '
            'you chose on --split test.')
    plans = [
        make_plan(methods=['dense'], arguments={**(arguments or {}), 'checkpoint': checkpoint},
                  split=split, seed=SEEDS.get(split, 0), **options)
        for checkpoint in checkpoints or ('',)
    ]
    described = [describe_policy(plan) for plan in plans]
    names = _names([Path(plan.checkpoint) for plan in plans])
    chosen = contenders(swept(methods) if sweep else methods, also)
    shares = share_out(chosen, [Path(plan.parameters.checkpoint) for plan in plans])
    with claimed(
            out, REPORT_NAMES, COMMAND, [f'{UNFINISHED}/{name}' for name in names]):
        unfinished = out / UNFINISHED
        models = []
        for plan, policy, share, name in zip(plans, described, shares, names, strict=True):
            console.print(f'{name}:', markup=False)
            usable, refused = split_usable(share, Path(plan.parameters.checkpoint))
            for label, why in refused.items():
                console.print(f'Without {label}: {why}', markup=False)
            plan = replace(plan, contenders=tuple(usable))
            costs = _measure_costs(
                plan, min(frames_episodes, plan.episodes), unfinished / name, console)
            evaluated = _evaluate(plan, workers, unfinished / name, console) if success else None
            models.append({
                'checkpoint': {**policy, 'name': name},
                'refused': refused,
                'load': load_of(costs[usable[0].label]),
                'layouts_sha256': evaluated and evaluated['layouts_sha256'],
                'rows': [_row(c.label, name, costs, evaluated) for c in usable],
            })
        document = {
            'command': command,
            'suite': plans[0].suite,
            'layout': plans[0].layout,
            'split': split,
            'clock': clock_of(plans[0]),
            'tasks': list(plans[0].task_ids),
            'seed': plans[0].seed,
            'machine': describe_machine(plans[0].threads, workers),
            'models': models,
            'published': [] if sweep else published_rows(chosen),
        }
        for path in write_report(document, out):
            console.print(f'Wrote {path}.', markup=False, soft_wrap=True)
        clear(out, COMMAND, UNFINISHED)
        seal(out, COMMAND, REPORT_NAMES)
    return document


def _names(directories: Sequence[Path]) -> list[str]:
    """Names of the checkpoints in rows and folders: `vla train` calls all of them `checkpoint`."""
    names = [directory.name for directory in directories]
    if len(set(names)) < len(names):
        names = [f'{directory.parent.name}-{directory.name}' for directory in directories]
    if len(set(names)) < len(names):
        raise ValueError(
            'Rows are told apart by the names of the checkpoints and of the directories that they '
            f'are in, and two of {", ".join(names)} are the same; name each once, or copy one.')
    return names


def _measure_costs(
    plan: Plan, episodes: int, out: Path, console: Console
) -> dict[str, list[dict]]:
    """Rows of costs by method; existing ones are not measured again."""
    identity = {**plan.identity(), 'clock': clock_of(plan)}
    results = Results(out / 'costs.json', identity, COMMAND)
    units = [(task, episode) for task, episode in plan.units if episode < episodes]
    labels = [contender.label for contender in plan.contenders]
    costs: Costs | None = None
    try:
        for task, episode in track(units, 'frames', console=console):
            missing = [label for label in labels if (label, task, episode) not in results]
            if missing:
                costs = costs or Costs(plan)
                results.add(costs.measure(task, episode, missing))
    finally:
        if costs is not None:
            costs.close()
    return {
        label: results.rows([(label, *unit) for unit in units]) for label in labels
    }


def _evaluate(plan: Plan, workers: int, out: Path, console: Console) -> dict:
    """Like `vla eval`, but results are kept until all checkpoints are done."""
    results = Results(out / 'success.json', plan.identity(), COMMAND)
    run_plan(plan, results, workers, console)
    rows = results.rows(plan.keys)
    return {**summarise(plan, rows, workers), 'layouts_sha256': layouts_digest(rows)}


def _row(
    label: str, model: str, costs: Mapping[str, Sequence[Mapping]], evaluated: Mapping | None
) -> dict:
    row = {
        'method': label,
        'model': model,
        'success_rate': None,
        'episodes': 0,
        **summarise_costs(costs[label]),
    }
    if evaluated is None:
        return row
    total = next(t for t in evaluated['totals'] if t['method'] == label)
    names = ('success_rate', 'episodes', 'wilson_low', 'wilson_high', 'failures')
    row |= {name: total[name] for name in names}
    own = [part for part in evaluated['rows'] if part['method'] == label]
    row['successes_by_task'] = {str(part['task_id']): part['successes'] for part in own}
    row['episodes_by_task'] = {str(part['task_id']): part['episodes'] for part in own}
    row['against_dense'] = next(
        (pair for pair in evaluated['paired'] if pair['second'] == label), None)
    return row
