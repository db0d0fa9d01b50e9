"""`vla train`: runs one stage, from its input files to its output files."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import distributed, multiprocessing

from vla_policy_node import families
from vla_policy_node.checkpoints.layout import read_json
from vla_policy_node.checkpoints.reading import foreign
from vla_policy_node.checkpoints.statistics import STATISTICS, Statistics, read_statistics
from vla_policy_node.checkpoints.tensor_files import open_safetensors
from vla_policy_node.common.scoped import environment, torch_threads
from vla_policy_node.common.worker_pool import interrupts_blocked
from vla_policy_node.encoding.padded import PaddedPreprocessor
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.families import smolvla
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.outputs.files import draft
from vla_policy_node.outputs.folder import LOCK, alone, claimed, seal
from vla_policy_node.outputs.whole import check_target, whole_folder
from vla_policy_node.runtime.loading import find_device, load_model
from vla_policy_node.runtime.saving import save_model
from vla_policy_node.training import stages
from vla_policy_node.training.batches import BatchMaker
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.curves import METRICS, PICTURE
from vla_policy_node.training.data import FreshFrames, TrainingData
from vla_policy_node.training.decoded import DecodedFrames
from vla_policy_node.training.demonstrations import Demonstrations, read_document
from vla_policy_node.training.fitting import check_fits
from vla_policy_node.training.grounding import GroundingHeads, row_width
from vla_policy_node.training.lora import add_lora, merge_lora
from vla_policy_node.training.progress import Progress
from vla_policy_node.training.public_files import training_statistics, write_documents
from vla_policy_node.training.run_record import (
    MAY_DIFFER,
    RECORD,
    describe_run,
    finish,
    go_on,
    is_finished,
    write_record,
)
from vla_policy_node.training.trainer import STATE, Trainer, read_state

COMMAND = 'vla train'  # whose files they are
_GRACE_S = 30.0  # that the others have to end by themselves once a process failed
CHECKPOINT = 'checkpoint'
# Next to the checkpoint directory: for the next stage, not for a policy.
HEADS = 'grounding_heads.safetensors'
_OF_ACTIONS = {'action', 'noise', 'flow'}  # losses

@dataclass(frozen=True)
class Run:
    """The inputs of a run, and where it writes.

    start: checkpoint to go on from. demonstrations, scenes: folders, or None.
    out: gets state, curves and, at the end, `checkpoint`. despite: of `run_record.MAY_DIFFER`,
        what may have changed since an unfinished run in it began.
    """

    config: TrainingConfig
    start: Path
    demonstrations: Path | None
    scenes: Path | None
    out: Path
    device: str = 'cpu'
    processes: int = 1
    despite: tuple[str, ...] = ()

    def __post_init__(self):
        for name in self.despite:
            if name not in MAY_DIFFER:
                raise ValueError(f"--despite takes {', '.join(MAY_DIFFER)}, not '{name}'.")

    @property
    def statistics(self) -> Path | None:
        """Those of the demonstrations, where there are any: they decide what 1.0 means."""
        return self.demonstrations and self.demonstrations / STATISTICS


def train(run: Run) -> Path:
    """Run or resume a stage, and return the path of its checkpoint.

    Raises ValueError for an impossible request, such as files in the way that no run wrote, or
    an unfinished run in `out` that was made from something else (see `run_record`).

    Under torchrun this process is one of those it started; else `run.processes` are started
    here. Each gets an equal share of the CPU's cores, or the GPU of its number.
    """
    run = replace(run, config=stages.for_policy(run.config, _sizes(run)))
    rank = int(os.environ.get('RANK', 0))
    processes = int(os.environ.get('WORLD_SIZE', run.processes))
    with ExitStack() as held:
        if rank == 0:
            _claim(run, processes, held)
        else:
            _check(run, processes)
        if 'RANK' in os.environ:
            run.out.mkdir(parents=True, exist_ok=True)
            _process(rank, processes, run)
        elif processes == 1:
            _process(0, 1, run)
        else:
            _spawn(run)
            if not is_finished(run.out):
                raise KeyboardInterrupt
    return run.out / CHECKPOINT


def _claim(run: Run, processes: int, held: ExitStack) -> None:
    """Make sure that the run may write into its folder and can begin; held: keeps others out."""
    goes_on = (run.out / LOCK).is_file()
    if goes_on:  # before anything: what is refused must not touch the list of a run in progress
        held.enter_context(alone(run.out))
    files = [LOCK, RECORD, STATE, METRICS, PICTURE, HEADS]
    with claimed(run.out, files, COMMAND, [CHECKPOINT]):
        check_target(run.out / CHECKPOINT, COMMAND)
        _check(run, processes)
        if not goes_on:
            held.enter_context(alone(run.out))
        _begin(run, processes)


def _begin(run: Run, processes: int) -> None:
    """Write down what the run is made from, or make sure that it still is."""
    record = describe_run(
        run.config, run.start, run.start.parent / HEADS, run.demonstrations, run.scenes,
        run.device, processes)
    if (run.out / STATE).exists():
        record = go_on(run.out, record, read_state(run.out)['step'], run.despite)
    write_record(run.out, record)


def _check(run: Run, processes: int) -> None:
    """Raise ValueError with one sentence for what the run cannot be made from."""
    sizes = _sizes(run)
    stages.named(run.config.stage).check_run(run, sizes)
    _check_inputs(run, sizes)
    if run.config.batch < processes:
        raise ValueError(f'batch={run.config.batch} is less than one sample for each of '
                         f'{processes} processes; make it larger, or take fewer processes.')


def _check_inputs(run: Run, sizes: ModelConfig) -> None:
    """Raise ValueError with one sentence for a device or folders that no stage can use."""
    find_device(run.device)
    stage, learnt = run.config.stage, set(run.config.weighed)
    if run.demonstrations is None and run.scenes is None:
        raise ValueError(f'Stage {stage} learns from pictures; name a folder of `vla demos` with '
                         '--demos or --scenes.')
    if run.demonstrations is None and learnt & _OF_ACTIONS:
        raise ValueError(f'Stage {stage} learns actions, of which still scenes have none; name a '
                         'folder of `vla demos` with --demos.')
    for folder in filter(None, (run.demonstrations, run.scenes)):
        check_fits(folder, read_document(folder), run.start, sizes.spec, run.config)
    statistics = run.statistics
    if statistics is None and isinstance(sizes, PrismaticConfig):
        statistics = run.start / STATISTICS
    if statistics is not None and not statistics.is_file():
        raise ValueError(f'{statistics.parent} has no {STATISTICS}; run `vla demos` again, '
                         'which writes it.')


def _sizes(run: Run) -> ModelConfig:
    """Sizes of the checkpoint to start from, with the chunk that the run asks for."""
    config = families.read_model_config(run.start)
    if config.can(Capability.FLOW):
        length = run.config.chunk_length
        return replace(config, chunk_length=length) if length else config
    if run.config.chunk_length:
        config = families.of(config).with_chunk_length(config, run.config.chunk_length)
    return config


def _spawn(run: Run) -> None:
    # SIGINT and SIGTERM, which may reach the whole group or us alone, are for the children: they
    # save and end together.
    children = None

    def pass_on(*_: object) -> None:
        for child in children.processes if children else ():
            if child.is_alive():
                os.kill(child.pid, signal.SIGINT)

    before = {number: signal.signal(number, pass_on)
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with interrupts_blocked(), environment(
                MASTER_ADDR='127.0.0.1', MASTER_PORT=str(_free_port())):
            children = multiprocessing.spawn(
                _spawned, (run.processes, run), nprocs=run.processes, join=False)
        while not children.join(grace_period=_GRACE_S):
            pass
    except multiprocessing.ProcessRaisedException as error:
        # A traceback as text, whose last line says what was raised.
        kind, _, sentence = str(error).strip().splitlines()[-1].partition(': ')
        if kind.rpartition('.')[2] in ('ValueError', 'OutputError', 'CheckpointError'):
            raise ValueError(sentence) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _spawned(*task: object) -> None:
    signal.signal(signal.SIGINT, _interrupt_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _process(*task)


def _interrupt_once(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _process(rank: int, processes: int, run: Run) -> None:
    device, threads = torch.device(run.device), 0
    if device.type == 'cuda':
        device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', rank)))
        torch.cuda.set_device(device)
    else:
        # Threads that wait for a core they may not use triple the time of a step.
        threads = max(1, len(os.sched_getaffinity(0)) // processes)
    if processes > 1:
        distributed.init_process_group(
            'nccl' if device.type == 'cuda' else 'gloo', rank=rank, world_size=processes)
    gpus = [device] if device.type == 'cuda' else []
    with torch_threads(threads), torch.random.fork_rng(gpus):
        torch.manual_seed(run.config.seed)
        _train_here(rank, processes, run, device)
    if processes > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def _train_here(rank: int, processes: int, run: Run, device: torch.device) -> None:
    stage = stages.named(run.config.stage)
    model = load_model(run.start, _sizes(run), str(device), 'float32')
    model = stage.changed_model(model, run.config)
    config = model.config
    heads = GroundingHeads(
        config.language_model.width, config.cameras, row_width(config)).to(device)
    if (run.start.parent / HEADS).exists():
        with open_safetensors(run.start.parent / HEADS) as (names, get, _):
            tensors = {name: get(name) for name in names}
        with foreign(run.start.parent / HEADS, 'is of another model; remove it, or take its own'):
            heads.load_state_dict(tensors)
    if run.config.lora_rank:
        add_lora(model, run.config.lora_rank)
    objective = stage.objective(config, run.config)
    for module in objective.learnt.values():
        module.to(device)
    data = stage.data(_data(run, config, device, rank, processes), model, run, rank, processes)
    with Progress(run.config, shown=rank == 0) as progress:
        trainer = Trainer(
            model, heads, data, run.config, run.out,
            objective, rank, processes, progress.update)
        trainer.run()
    if rank == 0:
        trainer.load_average()
        with whole_folder(run.out / CHECKPOINT, COMMAND) as target:
            export(run, model, target, objective.method_settings())
            objective.save(
                target, model, partial(data.validation, run.config.validation_frames))
        with draft(run.out / HEADS) as unfinished:
            save_file(heads.state_dict(), unfinished)
        finish(run.out)
        seal(run.out, COMMAND)


def _data(
    run: Run, config: ModelConfig, device: torch.device, rank: int, processes: int
) -> TrainingData:
    maker = BatchMaker(
        config,
        families.of(config).load_prompt(run.start, config),
        (preprocessor := _preprocessor(run.start, config)),
        _statistics(run, config),
        run.config.crop_shift,
        run.config.colour_strength,
    )
    demonstrations, scenes = (
        folder and Demonstrations(folder, config.chunk_length)
        for folder in (run.demonstrations, run.scenes)
    )
    open_frames = FreshFrames
    if device.type == 'cuda' and not (run.config.crop_shift or run.config.colour_strength):
        open_frames = partial(
            DecodedFrames, normalise=preprocessor.normaliser.to(device), device=device)
    return TrainingData(
        maker, demonstrations, scenes, run.config, rank, processes, open_frames)


def _preprocessor(
    start: Path, config: ModelConfig
) -> ImagePreprocessor | PaddedPreprocessor:
    if isinstance(config, PrismaticConfig):
        return ImagePreprocessor(
            read_json(start, 'preprocessor_config.json'), config.image_px, config.center_crop)
    return PaddedPreprocessor(getattr(config, 'padding', smolvla.PADDING), config.image_px)


def _statistics(run: Run, config: ModelConfig) -> Statistics:
    if isinstance(config, PrismaticConfig):
        folder = run.demonstrations or run.start
        return read_statistics(
            read_json(folder, STATISTICS), spec=config.spec, ranges=config.ranges)
    with TemporaryDirectory() as folder:
        write_documents(run.start, config, run.statistics, Path(folder))
        return training_statistics(Path(folder), config)


def export(run: Run, model, target: Path, method_settings: Mapping) -> None:
    """Write the weights in the public layout, in bfloat16, with everything a policy needs."""
    write_documents(run.start, model.config, run.statistics, target)
    document = read_json(target, 'config.json') | {'trained': True}
    if not isinstance(model.config, PrismaticConfig):
        del document['trained']  # LeRobot knows no such entry; where there is none, it is true
    document |= families.of(model.config).entries(model.config)
    document.pop('camera_transforms', None)  # pictures of demonstrations are upright, and stay so
    if method_settings:
        document['method_settings'] = method_settings
    (target / 'config.json').write_text(json.dumps(document, indent=1) + '\n', encoding='utf-8')
    if run.config.lora_rank:
        merge_lora(model)
    save_model(target, model.bfloat16(), run.config.steps)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]
