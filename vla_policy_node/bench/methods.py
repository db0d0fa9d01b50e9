"""`vla bench methods`: every method on the same episodes, the same frames and one counter."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from vla_policy_node.bench.methods_costs import Costs, summarise_costs
from vla_policy_node.bench.methods_published import published_rows
from vla_policy_node.bench.methods_report import write_report
from vla_policy_node.bench.methods_rows import contenders, split_usable, swept
from vla_policy_node.evaluation.evaluate import evaluate, make_plan
from vla_policy_node.evaluation.plan import Plan
from vla_policy_node.evaluation.results import Results
from vla_policy_node.evaluation.summary import describe_machine, describe_policy

# In the output directory, while a run is not finished: what it need not do again.
UNFINISHED = 'methods.unfinished'


def bench_methods(
    out: Path,
    console: Console,
    methods: Sequence[str] = (),
    also: Sequence[str] = (),
    sweep: bool = False,
    success: bool = True,
    frames_episodes: int = 1,
    workers: int = 1,
    **options: object,
) -> dict:
    """Measure, write methods.md, methods.json and methods.png into `out`, return the document.

    methods: as `evaluation.contenders` writes them, () for all; also: more of them. sweep: vary
    the constants of the methods, see `methods_rows.swept`. success: run closed loop, too.
    frames_episodes: episodes of each task whose frames the costs are measured on. options: those
    of `evaluation.evaluate.make_plan`. Interrupted, the same call goes on where it was.
    Raises ValueError with one sentence for what cannot be.
    """
    plan = make_plan(methods=['dense'], **options)
    chosen = contenders(swept(methods) if sweep else methods, also)
    usable, refused = split_usable(chosen, Path(plan.parameters.checkpoint))
    plan = replace(plan, contenders=tuple(usable))
    for label, why in refused.items():
        console.print(f'Without {label}: {why}')
    unfinished = out / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)

    counted = [] if sweep else published_rows(chosen)
    costs = _measure_costs(plan, min(frames_episodes, plan.episodes), unfinished, console)
    evaluated = evaluate(plan, workers, console, unfinished / 'success.json') if success else None
    document = {
        'command': 'vla bench methods' + ' --sweep' * sweep,
        'checkpoint': describe_policy(plan),
        'suite': plan.suite,
        'layout': plan.layout,
        'tasks': list(plan.task_ids),
        'seed': plan.seed,
        'machine': describe_machine(plan.threads, workers),
        'refused': refused,
        'rows': [*(_row(c.label, plan, costs, evaluated) for c in usable), *counted],
    }
    for path in write_report(document, out):
        console.print(f'Wrote {path}.')
    shutil.rmtree(unfinished)
    return document


def _measure_costs(
    plan: Plan, episodes: int, out: Path, console: Console
) -> dict[str, list[dict]]:
    """Rows of costs by method; those that are there are not measured again."""
    results = Results(out / 'costs.json', plan.identity())
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


def _row(label: str, plan: Plan, costs: dict[str, list[dict]], evaluated: dict | None) -> dict:
    row = {
        'method': label,
        'model': describe_policy(plan)['name'],
        'success_rate': None,
        'episodes': 0,
        **summarise_costs(costs[label]),
    }
    if evaluated is None:
        return row
    total = next(t for t in evaluated['totals'] if t['method'] == label)
    names = ('success_rate', 'episodes', 'wilson_low', 'wilson_high', 'failures')
    row |= {name: total[name] for name in names}
    row['successes_by_task'] = {
        str(part['task_id']): part['successes']
        for part in evaluated['rows'] if part['method'] == label
    }
    row['against_dense'] = next(
        (pair for pair in evaluated['paired'] if pair['second'] == label), None)
    return row
