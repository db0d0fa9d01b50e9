"""The training loop of every stage: optimise, average, validate, log, save, resume.

A run stopped at any moment and started again ends with the same bits as one that was never
stopped: the state file holds weights, averages and optimiser, and whatever is random is drawn
from (seed, step, process). Several processes average their gradients (`torch.distributed`); while
the first one validates or saves, the others wait for its next gradient.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vla_policy_node.acceleration.objective import Objective
from vla_policy_node.checkpoints.reading import foreign
from vla_policy_node.checkpoints.tensor_files import load_pt
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.outputs.files import draft
from vla_policy_node.training import lora, stages
from vla_policy_node.training.batches import Batch
from vla_policy_node.training.cognition import CognitionBatch, CognitionData
from vla_policy_node.training.config import TrainingConfig
from vla_policy_node.training.curves import Curves
from vla_policy_node.training.data import TrainingData
from vla_policy_node.training.grounding import GroundingHeads
from vla_policy_node.training.losses import total_loss
from vla_policy_node.training.precision import autocast

FINAL_RATE = 0.05  # of the peak, at the end of the cosine
STATE = 'state.pt'


class Trainer:
    """Trains `model`, `heads` and what the objective learns; one object per process."""

    def __init__(
        self,
        model: PrismaticVla,
        heads: GroundingHeads,
        data: TrainingData | CognitionData,
        config: TrainingConfig,
        out: Path,
        objective: Objective | None = None,
        rank: int = 0,
        processes: int = 1,
        progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
    ):
        self.model, self.heads, self.config = model, heads, config
        self._stage = stages.named(config.stage)
        self._data, self._out, self._objective = data, out, objective or Objective()
        self._rank, self._processes, self._progress = rank, processes, progress
        self._device = next(model.parameters()).device
        self._together = nn.ModuleDict({'model': model, 'heads': heads})
        self._together.update(self._objective.learnt)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._stage.trains(name) and _is_trained(name, config))
        for name in ('point', 'readout'):
            # Without a loss it would still decay where gradients are averaged.
            getattr(heads, name).requires_grad_(bool(config.losses.get(name)))
        self._trained = {
            name: parameter for name, parameter in self._together.named_parameters()
            if parameter.requires_grad
        }
        self._average = {name: p.detach().clone() for name, p in self._trained.items()}
        self._objective.average = self._average
        self._optimiser = torch.optim.AdamW(
            self._groups(), lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
        self.step = 0
        self._asked_to_stop = False
        self._stop = False  # all processes agree on it, or the others would wait for this one
        if (out / STATE).exists():
            self._load()
        self._curves = Curves(out, self.step) if rank == 0 else None

    def run(self) -> None:
        """Train to the last step, saving at intervals. Main thread.

        Ctrl-C or SIGTERM ends it after the present step, in all processes after the same one: the
        state is saved and KeyboardInterrupt raised. ValueError for a loss that is not finite.
        """
        saved = time.monotonic()
        with self._stopping_on_signals():
            while self.step < self.config.steps:
                losses = self._optimise()
                self.step += 1
                if self._rank == 0:
                    self._curves.add('train', self.step, losses)
                    self._progress(self.step, losses)
                last = self.step == self.config.steps
                if last or self.step % self.config.validate_every_steps == 0:
                    self._validate()
                if last or self._stop or time.monotonic() - saved > self.config.save_every_s:
                    self._save()
                    saved = time.monotonic()
                if self._stop and not last:
                    raise KeyboardInterrupt

    @contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        def stop(*_: object) -> None:
            self._asked_to_stop = True

        before = {number: signal.signal(number, stop)
                  for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._curves:
                self._curves.close()

    def load_average(self) -> None:
        """Load the averaged weights into the model, which must not be trained afterwards."""
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(self._average[name])

    def _optimise(self) -> dict[str, float]:
        config = self.config
        self._together.train()
        rng = np.random.default_rng([config.seed, self.step, self._rank, 1])
        torch.manual_seed(int(rng.integers(2**62)))
        rate = learning_rate(self.step, config)
        for group in self._optimiser.param_groups:
            group['lr'] = rate
        self._objective.begin_step(self.step / config.steps)
        batch = self._data.batch(self.step).to(self._device)
        losses = self._losses(batch, rng)
        loss = total_loss(losses, config)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._average_gradients()
        norm = nn.utils.clip_grad_norm_(self._trained.values(), config.gradient_clip)
        self._optimiser.step()
        with torch.no_grad():
            decay = min(config.ema, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(
                list(self._average.values()), list(self._trained.values()), 1 - decay)
        losses |= {'loss': loss, 'gradient_norm': norm} | self._objective.measures()
        values = _to_floats(losses) | {'learning_rate': rate}
        if not math.isfinite(values['loss']):
            kept = (f'{self._out / STATE} holds the state of an earlier step'
                    if (self._out / STATE).exists() else 'no state was saved yet')
            raise ValueError(f'The loss is not finite at step {self.step}; take a lower '
                             f'learning_rate ({kept}).')
        return values

    def _losses(
        self, batch: Batch | CognitionBatch, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        with self._attention(), autocast(self._device):
            return self._stage.compute_losses(
                self.model, self.heads, batch, self.config, self._objective, rng)

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """On a CPU, matrix by matrix: the fused kernel takes 2 to 4 times as long backward."""
        if self._device.type != 'cpu':
            yield
            return
        # Without this, the plain kernel computes bfloat16 in float32; on a CPU as well.
        before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)

    @torch.no_grad()
    def _validate(self) -> None:
        """Log the losses of the averaged weights on held-out frames, on rank 0 only."""
        if self._rank == 0:
            present = {name: p.detach().clone() for name, p in self._trained.items()}
            self.load_average()
            self._together.eval()
            for kind, batches in self._held_out.items():
                rng = np.random.default_rng(0)
                losses = [self._losses(batch.to(self._device), rng) for batch in batches]
                self._curves.add(kind, self.step, {
                    name: float(torch.stack([part[name] for part in losses]).nanmean())
                    for name in losses[0]
                })
            for name, parameter in self._trained.items():
                parameter.copy_(present[name])
            self._curves.draw()

    @cached_property
    def _held_out(self) -> dict[str, list[Batch] | list[CognitionBatch]]:
        count = self.config.validation_frames
        return {
            'validation': self._data.validation(count),
            'first_frame': self._data.validation(count, first_frames=True),
        }

    def _average_gradients(self) -> None:
        if self._processes == 1:
            self._stop = self._asked_to_stop
            return
        for parameter in self._trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        stop = torch.tensor([float(self._asked_to_stop)], device=self._device)
        flat = torch.cat([p.grad.flatten() for p in self._trained.values()] + [stop])
        distributed.all_reduce(flat)
        self._stop = bool(flat[-1])
        flat /= self._processes
        start = 0
        for parameter in self._trained.values():
            end = start + parameter.numel()
            parameter.grad.copy_(flat[start:end].view_as(parameter))
            start = end

    def _groups(self) -> list[dict]:
        """Weight decay for matrices only."""
        matrices = [p for p in self._trained.values() if p.ndim >= 2]
        others = [p for p in self._trained.values() if p.ndim < 2]
        return [
            {'params': matrices, 'weight_decay': self.config.weight_decay},
            {'params': others, 'weight_decay': 0.0},
        ]

    def _save(self) -> None:
        if self._rank == 0:
            state = {
                'step': self.step,
                'weights': {name: p.detach() for name, p in self._trained.items()},
                'average': self._average,
                'optimiser': self._optimiser.state_dict(),
            }
            try:
                with draft(self._out / STATE) as partial:
                    torch.save(state, partial)
            except (OSError, RuntimeError) as error:  # of torch, when its stream cannot write
                raise ValueError(
                    f'{self._out / STATE} cannot be written at step {self.step}; make room on the '
                    'disk and run the same command again, which goes on from what was saved '
                    'before.') from error

    def _load(self) -> None:
        path = self._out / STATE
        state = read_state(self._out, self._device)
        self.step = state['step']
        with torch.no_grad(), foreign(path, 'is of another model; take another --out'):
            for name, parameter in self._trained.items():
                parameter.copy_(state['weights'][name])
                self._average[name].copy_(state['average'][name])
            self._optimiser.load_state_dict(state['optimiser'])


def read_state(out: Path, device: torch.device | str = 'cpu') -> dict[str, Any]:
    """Return the state of the run in a folder: step, weights, average, optimiser.

    Raises ValueError with one sentence for a file that is damaged or holds something else.
    """
    state = load_pt(out / STATE, device)
    parts = {'step': int, 'weights': dict, 'average': dict, 'optimiser': dict}
    if not isinstance(state, dict) or not all(
        isinstance(state.get(name), kind) for name, kind in parts.items()
    ):
        raise ValueError(f'{out / STATE} is no state of a training run; take another --out.')
    return state


def _to_floats(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Read all of them at once: the only time in a step that the host waits for a GPU."""
    values = torch.stack([loss.detach().float() for loss in losses.values()])
    return dict(zip(losses, values.tolist(), strict=True))


def _is_trained(name: str, config: TrainingConfig) -> bool:
    frozen = any(name.startswith(beginning) for beginning in config.frozen)
    return not frozen and (not config.lora_rank or lora.is_trained(name))


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to FINAL_RATE of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(done, 1)))
    return config.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * cosine)
