"""`vla bench selection`: the questions of the LightVLA paper, for one policy on the same episodes.

Does it matter which tokens stay, or only how many? Should it have kept more, or fewer? Does noise
in training help? What is fine-tuned is trained here if it does not exist yet: all from the same
dense checkpoint, on the same demonstrations, for as many steps. The document names the checkpoint
of each row and how it was trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from vla_policy_node.bench.origins import origin_of
from vla_policy_node.bench.trained import check_recipe
from vla_policy_node.commands.train import run_stage, stage_config
from vla_policy_node.common.terminal import fitted
from vla_policy_node.evaluation.contenders import Contender
from vla_policy_node.evaluation.evaluate import make_plan
from vla_policy_node.evaluation.grounding import PARTS
from vla_policy_node.evaluation.plan import Plan
from vla_policy_node.evaluation.plots import plot_names, write_plots
from vla_policy_node.evaluation.progress import PHASES
from vla_policy_node.evaluation.results import Results
from vla_policy_node.evaluation.run_plan import run_plan
from vla_policy_node.evaluation.summary import summarise
from vla_policy_node.evaluation.tables import tables
from vla_policy_node.outputs.files import write_text
from vla_policy_node.outputs.folder import claimed, seal
from vla_policy_node.training.stage_run import CHECKPOINT, Run

LIGHTVLA = 'LightVLA'
STAR = 'LightVLA*'
# What is trained: label -> folder, and its differences from config/training, where the recipe of
# LightVLA's authors is.
TRAINED = {
    LIGHTVLA: ('lightvla', ()),
    STAR: ('star', ('learnt_queries=64', 'multiplicity_bias=false')),
    'LightVLA trained without noise': ('no-noise', ('noise_scale=0.0',)),
    'LightVLA trained with fixed noise': ('fixed-noise', ('noise_decays=false',)),
}
COMMAND = 'vla bench selection'  # whose files they are
PREFIX = 'selection-'
NAMES = ('selection.json', 'selection.md', *plot_names(PREFIX))
EXTRA_RANDOM = 16
DROPPED = 0.1


@dataclass(frozen=True)
class Question:
    """What to compare, and where.

    dense: the checkpoint that everything starts from. runs: folder of the runs of training.
    demonstrations: what to train missing ones on, None to refuse instead. out: gets
    selection.json, selection.md and two PNGs. tasks: () for all. changes: entries that training
    has other values of, for all rows, like 'steps=450'.
    """

    dense: Path
    runs: Path
    demonstrations: Path | None
    out: Path
    episodes: int
    tasks: Sequence[int]
    workers: int
    changes: Sequence[str] = ()


def answer(question: Question, console: Console) -> dict:
    """Train what is missing, run every row, write the files; return the document.

    Resumes an interrupted run. ValueError with one sentence for an impossible request.
    """
    with claimed(question.out, NAMES, COMMAND):
        return _answer(question, console)


def _answer(question: Question, console: Console) -> dict:
    trained = {label: _trained(question, label, console) for label in TRAINED}
    learnt = [
        Contender('dense', checkpoint=question.dense),
        *(_contender(label, directory) for label, directory in trained.items()),
    ]
    plan = make_plan(
        arguments={'checkpoint': str(trained[LIGHTVLA])}, episodes=question.episodes,
        task_ids=question.tasks, changes={'execution_mode': 'sync'},
        trace=question.runs / 'trace')
    plan = replace(plan, contenders=tuple(learnt))
    file, table_file = (question.out / name for name in NAMES[:2])
    results = Results(file, plan.identity(), COMMAND)
    run_plan(plan, results, question.workers, console)
    count = round(_mean_tokens(plan, results))
    plan = replace(plan, contenders=(
        *learnt[:2], *_same_count(question.dense, trained[LIGHTVLA], count), *learnt[2:]))
    run_plan(plan, results, question.workers, console)

    document = summarise(plan, results.rows(plan.keys), question.workers)
    document['checkpoints'] = [origin_of(contender) for contender in plan.contenders]
    for table in tables(document):
        console.print(fitted(table, 1 if table.columns[0].header == '' else 0))
    write_text(file, json.dumps(document, indent=1, allow_nan=False) + '\n')
    write_text(table_file, markdown(document))
    write_plots(document, question.out, PREFIX)
    results.discard_side_file()
    seal(question.out, COMMAND, NAMES)
    return document


def _trained(question: Question, label: str, console: Console) -> Path:
    """Return the checkpoint of a row, trained now if it does not exist.

    Raises ValueError for one that was trained otherwise.
    """
    folder, changes = TRAINED[label]
    out = question.runs / folder
    config = stage_config('lightvla', None, (*question.changes, *changes))
    if (out / CHECKPOINT / 'config.json').is_file():
        check_recipe(out, config, 'take other --runs')
    else:
        if question.demonstrations is None:
            raise ValueError(
                f'{out} has no checkpoint of {label}; name the demonstrations to train it on '
                'with --demos.')
        run = Run(
            config, question.dense, question.demonstrations, None, out,
            processes=question.workers)
        run_stage(run, console)
    return out / CHECKPOINT


def _contender(label: str, checkpoint: Path) -> Contender:
    method = 'lightvla_star' if label == STAR else 'lightvla'
    return Contender(label, (method,), checkpoint=checkpoint)


def _same_count(dense: Path, lightvla: Path, count: int) -> list[Contender]:
    """Return the rows that keep as many tokens as LightVLA, or a few more or fewer."""
    rows = {
        f'{count} random tokens': ('random_tokens', {'count': count}, dense),
        f'FastV, {count} tokens': ('fastv', {'count': count}, dense),
        f'LightVLA + {EXTRA_RANDOM} random tokens': (
            'lightvla', {'extra_random': EXTRA_RANDOM}, lightvla),
        f'LightVLA - {DROPPED:.0%} of its tokens': (
            'lightvla', {'drop_fraction': DROPPED}, lightvla),
        f'{count} random tokens, LightVLA weights': (
            'random_tokens', {'count': count}, lightvla),
    }
    return [
        Contender(label, (method,), {method: settings}, checkpoint)
        for label, (method, settings, checkpoint) in rows.items()
    ]


def _mean_tokens(plan: Plan, results: Results) -> float:
    rows = results.rows({key for key in plan.keys if key[0] == LIGHTVLA})
    return float(np.mean([count for row in rows for count in row['tokens']]))


def markdown(document: Mapping) -> str:
    """Return the document as the table of docs/results.md."""
    pairs = {pair['second']: pair for pair in document['paired']}
    everything = document['totals'][0]['grounding']
    machine = document['machine']
    lines = [
        f'{document["suite"]}, {machine["processor"]}, {machine["date"]}, {machine["code"]}', '',
        '| selection | success | 95 % | against dense, points | verdict | p (Holm) | tokens '
        '| GFLOP | ' + ' | '.join(f'on {part}' for part in PARTS) + ' |',
        '|---' * (8 + len(PARTS)) + '|',
        f'| share of the image | | | | | | {document["totals"][0]["tokens_total"]} | | '
        + ' | '.join(f'{everything[part]["image"]:.1%}' for part in PARTS) + ' |',
    ]
    for total in document['totals']:
        pair = pairs.get(total['method'])
        against = [''] * 3 if pair is None else [
            f'+{pair["only_second"]} -{pair["only_first"]}, {100 * pair["difference"]:+.0f} '
            f'({100 * pair["interval"][0]:+.0f} to {100 * pair["interval"][1]:+.0f})',
            pair['verdict'], f'{pair["p_holm"]:.2g}']
        lines.append('| ' + ' | '.join([
            total['method'],
            f'{total["success_rate"]:.1%}',
            f'{100 * total["wilson_low"]:.0f}-{100 * total["wilson_high"]:.0f}',
            *against,
            f'{total["tokens"]:.0f}',
            f'{total["flops"] / 1e9:.2f}',
            *(f'{total["grounding"][part]["kept"]:.1%}' for part in PARTS),
        ]) + ' |')
    lines += ['', '| selection | checkpoint | steps x batch | differs from its recipe in |',
              '|---' * 4 + '|']
    for origin in document['checkpoints']:
        recipe = origin['recipe'] or {}
        lines.append('| ' + ' | '.join([
            origin['method'], f'`{origin["sha256"][:12]}`',
            f'{recipe["steps"]} x {recipe["batch"]}' if recipe else '', _differences(recipe),
        ]) + ' |')
    lines += ['', '| tokens kept while the robot is to | ' + ' | '.join(PHASES) + ' |',
              '|---' * (1 + len(PHASES)) + '|']
    for total in document['totals']:
        phases = total['tokens_by_phase']
        lines.append(f'| {total["method"]} | ' + ' | '.join(
            '' if phases[phase] is None else f'{phases[phase]:.0f}' for phase in PHASES) + ' |')
    return '\n'.join(lines) + '\n'


def _differences(recipe: Mapping) -> str:
    """Return the entries in which a recipe is not that of config/training."""
    if not recipe:
        return ''
    usual = stage_config(recipe['stage'], None, ()).document()
    return ', '.join(
        f'{name}={value}' for name, value in recipe.items()
        if name != 'steps' and usual.get(name) != value)
