"""Writes the plots, images, video, exports and HTML page of a report."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from vla_policy_node.drawing.video import OverlayVideo
from vla_policy_node.replay import pictures
from vla_policy_node.replay.bag import Bag
from vla_policy_node.replay.evaluate import Evaluation, Progress
from vla_policy_node.replay.page import render
from vla_policy_node.replay.plots import write_plots
from vla_policy_node.replay.settings import ReplaySettings


def write_report(
    evaluation: Evaluation, settings: ReplaySettings, folder: Path, on_progress: Progress
) -> None:
    """Write everything meant for people into an existing folder."""
    on_progress('drawing', 0.0)
    plots = write_plots(evaluation.traces, evaluation.summary.actions, evaluation.pairs,
                        evaluation.report, folder)
    moments = _write_moments(evaluation, settings, folder, on_progress)
    page = render(evaluation, plots, moments)
    # Names of files may be no UTF-8.
    (folder / 'report.html').write_text(page, encoding='utf-8', errors='backslashreplace')


def _write_moments(
    evaluation: Evaluation, settings: ReplaySettings, folder: Path, on_progress: Progress
) -> list[pictures.ShownMoment]:
    """Go through the pictures once; return the most different moments, the first rank first."""
    shown = _shown(evaluation)
    ranks = {(p.first.epoch, p.first.stamp_ns): rank
             for rank, p in enumerate(evaluation.worst, 1)}
    moments: list[pictures.ShownMoment] = []
    start_ns = shown[0][0][0].stamp_ns
    every = -(-len(shown) // pictures.MOST_VIDEO_FRAMES)
    with ExitStack() as stack:
        bag = stack.enter_context(Bag(evaluation.bag))
        video = None
        if settings.video:
            video = stack.enter_context(OverlayVideo(folder / 'overlay.mp4', _rate_hz(shown)))
        exports = _open_exports(evaluation, settings, folder, stack)
        for number, (index, images) in enumerate(pictures.moments(
                bag, evaluation.topics, [inferences for inferences, _ in shown])):
            inferences, pair = shown[index]
            rank = ranks.get((inferences[0].epoch, inferences[0].stamp_ns))
            seconds = (inferences[0].stamp_ns - start_ns) / 1e9
            is_filmed = video is not None and number % every == 0
            if exports or is_filmed:
                remark = pictures.describe(seconds, inferences[0], pair)
                picture = pictures.draw_moment(images, evaluation.traces, inferences, remark)
                if is_filmed:
                    video.add(picture)
                for export in exports:
                    export.add(inferences, pair, images, picture)
            if rank:
                moments.append(pictures.show_moment(
                    images, evaluation.traces, pair, rank, seconds,
                    folder / f'different_{rank:02d}.jpg'))
            on_progress('drawing', number / len(shown))
    return sorted(moments, key=lambda moment: moment.rank)


def _shown(evaluation: Evaluation) -> list[tuple[tuple, object]]:
    """Return the inferences of all policies at each moment, and the pair they make."""
    if evaluation.pairs:
        return [((p.first, p.second), p) for p in evaluation.pairs]
    return [((i,), None) for i in evaluation.traces[0].inferences]


def _rate_hz(shown: list) -> float:
    """Return the rate at which the video plays at the speed of the bag."""
    stamps = [inferences[0].stamp_ns for inferences, _ in shown]
    intervals = sorted(b - a for a, b in pairwise(stamps) if b > a)
    if not intervals:
        return 5.0
    rate = 1e9 / intervals[len(intervals) // 2]
    return min(30.0, max(1.0, round(rate, 2)))


def _open_exports(
    evaluation: Evaluation, settings: ReplaySettings, folder: Path, stack: ExitStack
) -> list:
    exports = []
    if settings.rerun:
        from vla_policy_node.replay.rerun_export import RerunExport

        exports.append(stack.enter_context(RerunExport(folder / 'replay.rrd', evaluation)))
    if settings.mcap:
        from vla_policy_node.replay.mcap_export import McapExport

        exports.append(stack.enter_context(McapExport(folder / 'foxglove', evaluation)))
    return exports
