"""Evaluates one bag, from its first message to the report folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vla_policy_node.common.code_version import date_and_code
from vla_policy_node.common.load import LoadMeter
from vla_policy_node.common.machine import processor_name
from vla_policy_node.evaluation.contenders import parse_contender
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.outputs.files import write_json
from vla_policy_node.outputs.whole import check_place, check_target, whole_folder
from vla_policy_node.policy.interface import PolicySpec
from vla_policy_node.replay import compare, metrics
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.bag_summary import BagSummary, summarise_bag
from vla_policy_node.replay.cause import why_unused
from vla_policy_node.replay.gate import GateVerdict, judge
from vla_policy_node.replay.robots import topics_of_robot
from vla_policy_node.replay.run import run_policy
from vla_policy_node.replay.settings import (
    AS_RECORDED,
    COMMAND,
    ReplaySettings,
    as_recorded,
    parameters_of,
    read_info,
)
from vla_policy_node.replay.stamps import LOG, OTHER_CLOCK_S, is_of_other_clock
from vla_policy_node.replay.topics import BagTopics
from vla_policy_node.replay.trace import Trace
from vla_policy_node.replay.unmeasured import with_usable_poses
from vla_policy_node.wire.streams import is_static

# Called with what is being done, and its progress (0 to 1).
Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of one bag.

    report: without wall times, the same in every run on one kind of processor with as many
    threads. latency: the wall times. verdicts: of the requested limits.
    """

    bag: Path
    topics: BagTopics
    summary: BagSummary
    traces: tuple[Trace, ...]
    pairs: tuple[compare.PairedInference, ...]
    report: dict
    latency: dict
    verdicts: tuple[GateVerdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every limit was kept."""
        return all(verdict.passed for verdict in self.verdicts)

    @property
    def worst(self) -> list[compare.PairedInference]:
        """The inferences in which the two policies differ most."""
        return compare.most_different(list(self.pairs))


def evaluate_bag(
    path: Path, settings: ReplaySettings, out: Path,
    on_progress: Progress = lambda what, share: None,
) -> Evaluation:
    """Replay one bag and write its report into the folder `out`, whole or not at all.

    Raises ValueError with one sentence for a request that cannot be met.
    """
    from vla_policy_node.replay.write import write_report  # plots; a worker that fails needs none

    check_place(out)
    check_target(out, COMMAND)
    evaluation = replay_bag(path, settings, on_progress)
    with whole_folder(out, COMMAND) as folder:
        write_json(folder / 'report.json', evaluation.report)
        write_json(folder / 'latency.json', evaluation.latency)
        write_report(evaluation, settings, folder, on_progress)
    return evaluation


def replay_bag(path: Path, settings: ReplaySettings, on_progress: Progress) -> Evaluation:
    """Run one or two policies through a bag and return the figures."""
    with Bag(path) as bag:
        info = read_info(bag, settings.bag_namespace)
        choices = [settings.config, *([settings.against] if settings.against else [])]
        chosen = [parameters_of(choice, settings, bag, info) for choice in choices]
        parameters = [first for first, _ in chosen]
        if len({p.period_ns for p in parameters}) > 1:
            raise ValueError('The two configurations have different control rates; actions of '
                             'different periods cannot be compared.')
        if len({p.robot for p in parameters}) > 1:
            raise ValueError('The two configurations have different contracts; policies of two '
                             'robots cannot be compared.')
        labels = _labels(choices, parameters)
        topics = topics_of_robot(
            bag, as_recorded(parameters[0].robot, bag, info, bool(parameters[0].contract)),
            settings.topics, settings.actions_topic, settings.bag_namespace)
        topics = replace(topics, by_log=settings.stamps == LOG).needed_by(
            _needs(labels, parameters))
        topics, why = with_usable_poses(bag, topics, [p.frame_id for p in parameters])
        on_progress('reading the bag', 0.0)
        summary = summarise_bag(bag, topics, settings.instruction, parameters[0].period_ns,
                                parameters[0].frame_id)
        latency_ns = _latency_ns(settings, summary, parameters[0])
        meter = LoadMeter()
        traces = [
            _run(bag, topics, summary, p, label, latency_ns, settings.threads, on_progress)
            for p, label in zip(parameters, labels, strict=True)]
        load = meter.read()
        described = _describe_bag(bag, topics, summary)
        remarks = bag.remarks()
    notes = list(dict.fromkeys([*summary.notes, *(n for _, found in chosen for n in found)]))
    if why:
        notes.append(f'No poses of the end effector, {why}. No policy here is told them, but '
                     'commands are bounded by no workspace, only in size, speed and acceleration. '
                     'A robot would not have moved.')
    notes += remarks + _remarks(traces, summary)
    return _evaluation(path, topics, summary, traces, settings, load, {
        'bag': described, 'notes': notes, 'latency_periods': latency_ns // traces[0].period_ns,
        'control_period_s': traces[0].period_ns / 1e9})


def _run(
    bag: Bag, topics: BagTopics, summary: BagSummary, parameters: PolicyParameters, label: str,
    latency_ns: int, threads: int, on_progress: Progress,
) -> Trace:
    first_ns, last_ns = summary.goals[0].start_ns, summary.goals[-1].end_ns
    policy = parameters.load_policy(threads)
    try:
        for goal in summary.goals:
            policy.check_instruction(goal.instruction)
        trace = run_policy(
            bag, topics, summary, parameters, policy, label, latency_ns,
            lambda stamp_ns: on_progress(
                label, min(1.0, (stamp_ns - first_ns) / max(1, last_ns - first_ns))))
    finally:
        policy.close()
    if not trace.inferences:
        why = '' if trace.problems else _other_clocks(bag, topics)
        raise BagError(f"No observation of the bag '{bag.path}' could be used by {label}: "
                       f'{why or why_unused(trace, topics, parameters)}.')
    return trace


def _other_clocks(bag: Bag, topics: BagTopics) -> str:
    """Return whose stamps are of another clock than the pictures, '' for nobody's."""
    others = [topic for topic, stream in topics.inputs.items()
              if not is_static(stream) and is_of_other_clock(bag, topics, topic)]
    return '' if not others else (
        f'the stamps of {", ".join(others)} are more than {OTHER_CLOCK_S:.0f} s from those of '
        f'{topics.streams.cameras[0]} that were recorded with them; check the clocks of the '
        f'publishers, or take the times of recording with `--stamps {LOG}`')


def _needs(
    labels: Sequence[str], parameters: Sequence[PolicyParameters]
) -> dict[str, PolicySpec]:
    """Return what each policy needs, by what sentences call it."""
    return {f'{label} of the checkpoint {Path(p.checkpoint).name}': p.read_spec()
            for label, p in zip(labels, parameters, strict=True)}


def _latency_ns(
    settings: ReplaySettings, summary: BagSummary, parameters: PolicyParameters
) -> int:
    """Return how much of the bag's time an inference takes, in whole control periods."""
    period_ns = parameters.period_ns
    if settings.latency_periods != AS_RECORDED:
        return settings.latency_periods * period_ns
    if parameters.pacing == 'observation':
        return 0  # in lock-step time stands still meanwhile
    # Rounded up: an action is late as soon as its period has begun.
    return -(-(summary.inference_ns or 0) // period_ns) * period_ns


def _labels(choices: list[str], parameters: list[PolicyParameters]) -> list[str]:
    labels = []
    for choice, p in zip(choices, parameters, strict=True):
        name = '+'.join(p.method_names) or 'dense'
        if choice and choice.endswith(('.yaml', '.yml')):
            name = f'{Path(choice).stem} ({name})'
        elif choice:
            name = parse_contender(choice).label
        labels.append(name)
    if len(set(labels)) < len(labels):
        labels = [f'{name} ({letter})' for name, letter in zip(labels, 'AB', strict=False)]
    return labels


def _describe_bag(bag: Bag, topics: BagTopics, summary: BagSummary) -> dict:
    counts = bag.counts
    read = [*topics.inputs, *([topics.actions] if topics.actions else [])]
    return {
        'name': '/'.join(bag.path.resolve().parts[-2:]), 'duration_s': bag.duration_s,
        'messages': {topic: counts[topic] for topic in read},
        'goals': [{'instruction': g.instruction, 'duration_s': (g.end_ns - g.start_ns) / 1e9}
                  for g in summary.goals],
        'actions': {'topic': topics.actions, 'count': len(summary.actions.target_ns)},
        'recorded_policy': None if summary.info is None else {
            'checkpoint_sha256': summary.info.checkpoint_sha256,
            'methods': list(summary.info.methods), 'trained': summary.info.trained,
            'execution_mode': summary.info.execution_mode,
            'optimisation': summary.info.optimisation,
            'preprocessing': summary.info.preprocessing},
    }


def _remarks(traces: list[Trace], summary: BagSummary) -> list[str]:
    remarks = []
    for stream in dict.fromkeys(
            name.removeprefix('input.').removesuffix('.backward') for trace in traces
            for name in trace.counts if name.endswith('.backward')):
        count = traces[0].counts.get(f'input.{stream}.backward', 0)
        remarks.append(f'The stamps of {stream} went backwards {count} times; what was older was '
                       'dropped, as the node does.')
    remarks += dict.fromkeys(remark for trace in traces for remark in trace.remarks)
    if not traces[0].description.trained:
        remarks.append('The policy is untrained: its weights are random.')
    for trace in traces:
        if turned := [f'{camera} {transform}' for camera, transform
                      in trace.description.camera_transforms.items() if transform != 'none']:
            remarks.append(f'{trace.label}: pictures are turned as in training, '
                           f'{", ".join(turned)}.')
    rows = [trace.description.action_rows for trace in traces]
    if len(set(rows)) > 1:
        remarks.append(f'The two read different rows of the language model ({", ".join(rows)}); '
                       'set action_rows in parameter files to compare the tokens alone.')
    recorded = summary.info.checkpoint_sha256 if summary.info else ''
    if recorded and recorded != traces[0].description.sha256:
        remarks.append('The checkpoint is another one than in the recording (sha256 differs).')
    for name in ('optimisation', 'preprocessing'):
        then, now = getattr(summary.info, name, ''), getattr(traces[0].description, name)
        if then and then != now:
            remarks.append(f'Recorded with {name} {then}, replayed with {now}: the actions may '
                           'differ a little for that alone.')
    if not len(summary.actions.target_ns):
        remarks.append('The bag holds no actions to compare with.')
    return remarks


def _evaluation(
    path, topics, summary, traces, settings: ReplaySettings, load: dict, head: dict
) -> Evaluation:
    report = {**head, 'a': metrics.summarise(traces[0], summary.actions), 'b': None,
              'difference': None, 'most_different': []}
    latency = {'a': metrics.latency(traces[0]), 'b': None, 'difference': None,
               'processor': processor_name(), 'threads': settings.threads,
               'device': traces[0].description.device, 'load': load, **date_and_code()}
    if len(summary.actions.target_ns) and report['a']['actions'] is None:
        report['notes'].append(f'The actions on {topics.actions} are of other times than those of '
                               'the policy, so nothing is compared with them; check their stamps.')
    pairs = []
    if len(traces) > 1:
        pairs = compare.pair_inferences(*traces)
        if not pairs:
            raise BagError(f'{traces[0].label} and {traces[1].label} never inferred from the same '
                           'observation, so there is nothing to compare.')
        report |= {
            'b': metrics.summarise(traces[1], summary.actions),
            'difference': compare.compare(*traces, pairs),
            'most_different': [
                {'stamp_ns': p.first.stamp_ns, 'instruction': p.first.instruction,
                 'distance': p.distance, 'translation_m': p.translation_m,
                 'rotation_rad': p.rotation_rad,
                 'tokens_kept': [p.first.tokens_kept, p.second.tokens_kept]}
                for p in compare.most_different(pairs)],
        }
        report['difference']['error_to_bag'] = compare.compare_errors(report['a'], report['b'])
        latency |= {'b': metrics.latency(traces[1]), 'difference': compare.compare_latency(pairs)}
    verdicts = judge(settings.limits, report, latency)
    latency['gate'] = [
        asdict(v) | {'measured': None if math.isnan(v.measured) else v.measured, 'text': v.text}
        for v in verdicts]
    return Evaluation(path, topics, summary, tuple(traces), tuple(pairs), report, latency,
                      tuple(verdicts))
