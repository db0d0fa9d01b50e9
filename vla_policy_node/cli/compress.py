"""`vla compress`: a smaller checkpoint by EfficientVLA's layer pruning, without training."""

from pathlib import Path
from typing import Annotated

import typer

from vla_policy_node.cli.refusal import refusal


def compress(
    checkpoint: Annotated[str, typer.Argument(
        help='Checkpoint directory, or an id of the Hugging Face hub.')],
    out: Annotated[Path, typer.Option(help='Directory to create; must be new or empty.')],
    remove_layers: Annotated[int, typer.Option(
        min=0, help='Layers of the language model to remove; published are 4 and 10 of 32.')] = 0,
    mlp_width: Annotated[float, typer.Option(
        help='Share of the MLP width that stays; published is 0.75.')] = 1.0,
    demos: Annotated[Path | None, typer.Option(
        help='Folder made by `vla demos`: samples to see which layers change least.')] = None,
    samples: Annotated[int, typer.Option(min=1, help='Frames of it to use.')] = 64,
    seed: Annotated[int, typer.Option(min=0, help='Which ones.')] = 0,
    statistics_key: Annotated[str, typer.Option(
        help='Key in dataset_statistics.json, where there are several.')] = '',
    transform: Annotated[str, typer.Option(
        help='What turns an upright picture into what training saw: none, rotate_180, '
        'mirror_horizontal, or auto: what config.json or a public name says.')] = 'auto',
    device: Annotated[str, typer.Option(help="'cpu' or 'cuda'.")] = 'cpu',
    dtype: Annotated[str, typer.Option(
        help='float32 or bfloat16, to measure in; the result is always stored in bfloat16.',
    )] = 'float32',
) -> None:
    """Remove layers that change little, and channels that weigh little, from a language model.

    Part 1 of EfficientVLA (arXiv 2506.10100). The result is a checkpoint like any other and needs
    no settings; train it further, or see with `vla eval` what it lost.

    * `vla compress runs/clone/checkpoint --out runs/small --demos data/object --remove-layers 1
    --mlp-width 0.75`

    * `vla compress openvla/some-policy --out narrow --mlp-width 0.75 --dtype bfloat16`
    """
    from rich.progress import Progress

    from vla_policy_node.common.terminal import make_console
    from vla_policy_node.training.compress import CompressionRecipe
    from vla_policy_node.training.compress import compress as run

    console = make_console()
    recipe = CompressionRecipe(
        remove_layers, mlp_width, demos, samples, statistics_key, transform, seed)
    try:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task('Samples', total=None)
            result = run(
                checkpoint, out, recipe, device, dtype,
                lambda done, total: progress.update(bar, completed=done, total=total))
    except ValueError as error:
        raise refusal(error) from None
    _report(console, result)
    console.print(f'Checkpoint: {out}', soft_wrap=True)


def _report(console, result) -> None:
    from rich.table import Table

    from vla_policy_node.common.terminal import fitted

    if result.importance:
        layers = Table('layer', 'importance', '', title='1 - cosine of input and output')
        for index, value in enumerate(result.importance):
            layers.add_row(str(index), f'{value:.4f}', 'removed' * (index in result.removed))
        console.print(fitted(layers))
    table = Table('', 'before', 'after')
    table.add_row('parameters', *(f'{count / 1e6:,.2f} M' for count in result.parameters))
    if result.flops:
        table.add_row('FLOPs', *(f'{count / 1e9:,.3f} G' for count in result.flops))
    console.print(fitted(table))
    if result.action_change:
        mean, largest = result.action_change
        flips = '' if result.gripper_flips is None else (
            f'; the gripper changes sides in {result.gripper_flips:.1%} of them')
        console.print(
            f'On the samples normalised actions change by {mean:.3f} on average and {largest:.3f} '
            f'at most{flips}.')
