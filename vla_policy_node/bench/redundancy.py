"""`vla bench redundancy`: do methods that need no training pay on a policy with room to spare?

The small policies have few layers and no parameter too many, so that whatever is left out is
missed; the papers' policies have both. This trains a larger one, from demonstrations on: dense,
LightVLA from it, and a dense one that was fine-tuned for as long, so that more training is not
credited to pruning. Then it makes the table of all methods. Every part resumes; what is done is
not done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vla_policy_node.bench.methods import bench_methods
from vla_policy_node.bench.trained import trained
from vla_policy_node.commands.demos import make_demonstrations
from vla_policy_node.commands.train import stage_config, start_of
from vla_policy_node.families import read_model_config
from vla_policy_node.runtime.loading import find_device
from vla_policy_node.runtime.small import SIZES as NAMES
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.demonstrations import SCATTERED, read_document
from vla_policy_node.training.recording import RecordingRecipe
from vla_policy_node.training.stage_run import Run

SIZES = ('layers=12', 'width=320', 'vision_blocks=6', 'vision_width=128')  # 19 M parameters
OBJECT, SCENES = 'object', 'scenes'  # folders of demonstrations
# For a look at whether all of it works: steps, samples and episodes that nothing can be learnt in.
SMOKE = ('steps=2', 'batch=2', 'warmup_steps=1', 'validation_frames=2')


@dataclass(frozen=True)
class Part:
    """One stage of the recipe: folder of its run, and of the one that it goes on from."""

    folder: str
    stage: str
    start: str
    demonstrations: bool
    scenes: bool
    changes: tuple[str, ...] = ()


# The stages of the shipped policy on a GPU (docs/training.md); the first three see part of the
# tokens, the others all of them.
PARTS = (
    Part('ground', 'grounding', '', False, True, ('batch=128', 'steps=1500')),
    Part('locate', 'localization', 'ground', False, True, ('batch=128', 'steps=1600')),
    Part('clone', 'behavior_cloning', 'locate', True, True,
         ('batch=128', 'steps=3000', 'learning_rate=8e-4')),
    Part('dense', 'behavior_cloning', 'clone', True, True,
         ('tokens_kept=0', 'batch=128', 'steps=500', 'learning_rate=2e-4')),
    Part('longer', 'behavior_cloning', 'dense', True, False),  # see `as_long_as`
    Part('lightvla', 'lightvla', 'dense', True, False),
)


@dataclass(frozen=True)
class Request:
    """What to make, and where.

    out: gets a folder for each part, demonstrations unless they are named, and the table. sizes:
    entries of the first stage. also: further rows of the table. smoke: a few steps and episodes.
    """

    out: Path
    sizes: Sequence[str] = SIZES
    demonstrations: Path | None = None
    scenes: Path | None = None
    also: Sequence[str] = ()
    device: str = 'cpu'
    workers: int = 2
    smoke: bool = False


def as_long_as(method: TrainingConfig) -> tuple[str, ...]:
    """Return how `behavior_cloning` trains as long and in the same way as a method's stage.

    The budget, the learning rate, what is frozen, and the policy's own losses, on all tokens: what
    is left out is the method.
    """
    losses = ', '.join(f'{name}: {weight}' for name, weight in method.losses.items())
    return (
        f'steps={method.steps}', f'batch={method.batch}', f'learning_rate={method.learning_rate}',
        f'warmup_steps={method.warmup_steps}', f'losses={{{losses}}}',
        f'frozen=[{", ".join(method.frozen)}]', 'tokens_kept=0', 'scenes_share=0.0')


def config_of(part: Part, request: Request) -> TrainingConfig:
    """Return the settings of a part."""
    shortened = SMOKE if request.smoke else ()
    changes = part.changes
    if part.folder == 'longer':
        changes = as_long_as(stage_config('lightvla', None, ()))
    return stage_config(part.stage, None, (
        *(request.sizes if not part.start else ()), *changes, *shortened))


def run(request: Request, console: Console) -> dict:
    """Make all of it, or what is left; return the document of the table.

    ValueError with one sentence for an impossible request.
    """
    checkpoints = train_parts(request, console)
    console.print(read_model_config(checkpoints['dense']).architecture, markup=False)
    few = {'task_ids': (0,), 'episodes': 2, 'horizon': 8} if request.smoke else {'episodes': 5}
    return bench_methods(
        request.out / 'table', console, checkpoints=[str(checkpoints['dense'])],
        also=[f'lightvla@{checkpoints["lightvla"]}', f'dense@{checkpoints["longer"]}',
              *request.also],
        split='development' if request.smoke else 'test',
        workers=1 if request.smoke else request.workers,
        command=f'vla bench redundancy --out {request.out}', arguments={'device': request.device},
        changes={'execution_mode': 'sync'}, **few)


def train_parts(request: Request, console: Console) -> dict[str, Path]:
    """Record demonstrations and train all parts that are not there; return their checkpoints."""
    configs = _checked(request)  # before anything that takes long
    demonstrations = request.demonstrations or _recorded(OBJECT, request, console)
    scenes = request.scenes or _recorded(SCENES, request, console)
    checkpoints: dict[str, Path] = {}
    for part, config in zip(PARTS, configs, strict=True):
        console.print(f'{part.folder}:', markup=False)
        start = start_of(config, checkpoints.get(part.start))
        checkpoints[part.folder] = trained(Run(
            config, start, demonstrations if part.demonstrations else None,
            scenes if part.scenes else None, request.out / part.folder, request.device), console)
    return checkpoints


def _checked(request: Request) -> list[TrainingConfig]:
    """Return the settings of all parts; ValueError with one sentence for what cannot be."""
    for size in request.sizes:
        if size.partition('=')[0] not in NAMES or '=' not in size:
            raise ValueError(
                f"--size takes {', '.join(NAMES)}, each with a number like layers=24, not "
                f"'{size}'.")
    find_device(request.device)
    for folder in filter(None, (request.demonstrations, request.scenes)):
        read_document(folder)
    return [config_of(part, request) for part in PARTS]


def _recorded(kind: str, request: Request, console: Console) -> Path:
    """Record what `vla demos` does by default, or go on with it; return the folder."""
    folder = request.out / kind
    recipe = RecordingRecipe(
        'libero_object', SCATTERED if kind == SCENES else 'shuffled',
        (0,) if request.smoke else tuple(range(10)), noise=0.1, frame_every=4, retarget=True)
    count = 2 if request.smoke else {OBJECT: 1500, SCENES: 440}[kind]
    make_demonstrations(folder, recipe, count, 0, request.workers, console)
    return folder
