"""`vla eval`: closed loop in the world, success per task and its cost."""

from pathlib import Path

from rich.console import Console

from vla_policy_node.evaluation.evaluate import evaluate, make_plan


def run(
    console: Console, workers: int, file: Path | None, plots: Path | None, **options: object
) -> None:
    """Evaluate and print. options: those of `make_plan`.

    Raises ValueError with one sentence for what cannot be done.
    """
    try:
        evaluate(make_plan(**options), workers, console, file, plots)
    except KeyboardInterrupt:
        again = '; the same command goes on from here' if file else ''
        raise KeyboardInterrupt(f'Interrupted{again}.') from None
