"""The state-only baseline: proprio and instruction number in, a chunk out, no images.

What it reaches a policy may owe to the arm's pose and the words alone. One safetensors file: the
weights, and in its header `chunk_length`, and as JSON `instructions` and `statistics` (an entry
of `dataset_statistics.json`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_policy_node.checkpoints.reading import foreign
from vla_policy_node.checkpoints.statistics import read_statistics
from vla_policy_node.checkpoints.tensor_files import open_safetensors
from vla_policy_node.nn.flops import chain_flops
from vla_policy_node.outputs.files import draft
from vla_policy_node.policy.interface import (
    END_EFFECTOR_DELTA,
    END_EFFECTOR_STATE,
    NORMALISED_ACTIONS,
    ActionChunk,
    InferenceRequest,
    PolicyDescription,
    PolicySpec,
)
from vla_policy_node.runtime.stage_clock import StageClock
from vla_policy_node.training.dataset_statistics import statistics_of
from vla_policy_node.training.demonstrations import Demonstrations, pad_chunk

HIDDEN, LAYERS = 512, 3
_KEY = 'blind'  # in reports, as in `vla eval --blind`


class StateOnlyMlp(nn.Module):
    """Three hidden layers; weights alone, no idea of units."""

    def __init__(self, instructions: int, chunk_length: int):
        super().__init__()
        self.instructions = instructions
        self.chunk_length = chunk_length
        self.widths = (
            len(END_EFFECTOR_STATE) + instructions, *[HIDDEN] * LAYERS,
            chunk_length * len(END_EFFECTOR_DELTA))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(self.widths))

    def forward(self, proprio: Tensor, instruction: Tensor) -> Tensor:
        """Normalised proprio [B, 8], instruction [B] int64 -> normalised actions [B, K, 7]."""
        one_hot = nn.functional.one_hot(instruction, self.instructions).to(proprio.dtype)
        x = torch.cat([proprio, one_hot], dim=-1)
        for layer in self.layers[:-1]:
            x = nn.functional.relu(layer(x))
        return self.layers[-1](x).unflatten(-1, (self.chunk_length, -1))


class StateOnlyPolicy:
    """The baseline behind the interface of policies; images of an observation are ignored.

    statistics: entry of `dataset_statistics.json`. Not thread-safe.
    """

    def __init__(self, model: StateOnlyMlp, instructions: Sequence[str], statistics: Mapping):
        self.model = model.eval()
        self.instructions = tuple(instructions)
        self._document = statistics
        self.statistics = read_statistics({_KEY: statistics})
        self.description = PolicyDescription(
            architecture='state-only baseline',
            chunk_length=model.chunk_length,
            spec=PolicySpec(cameras=()),
            capabilities=(NORMALISED_ACTIONS,),
            instructions=self.instructions,
            parameters=sum(weight.numel() for weight in model.parameters()),
            action_range=tuple(tuple(end.tolist()) for end in (
                self.statistics.action_low, self.statistics.action_high)),
        )

    @classmethod
    def load(cls, path: Path) -> StateOnlyPolicy:
        """Read what `save` wrote; ValueError with one sentence for any other file."""
        with foreign(path, 'is no blind baseline that can be read; train it again'):
            with open_safetensors(path) as (names, get, header):
                weights = {name: get(name).float() for name in names}
            instructions = json.loads(header['instructions'])
            with torch.device('meta'):  # of sizes that only the header claims
                model = StateOnlyMlp(len(instructions), int(header['chunk_length']))
            model.load_state_dict(weights, assign=True)
            return cls(model, instructions, json.loads(header['statistics']))

    def save(self, path: Path) -> None:
        """Write the baseline, whole or not at all."""
        header = {
            'chunk_length': str(self.model.chunk_length),
            'instructions': json.dumps(self.instructions),
            'statistics': json.dumps(self._document),
        }
        weights = {name: weight.contiguous() for name, weight in self.model.state_dict().items()}
        with draft(path) as partial:
            save_file(weights, partial, header)

    @torch.inference_mode()
    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Predict the next chunk; ValueError for an instruction that training did not have."""
        clock = StageClock(torch.device('cpu'))
        observation = request.observation
        self.check_instruction(observation.instruction)
        proprio = self.statistics.normalise_proprio(observation.proprio)
        number = self.instructions.index(observation.instruction)
        normalised = self.model(
            torch.tensor(proprio, dtype=torch.float32)[None], torch.tensor([number]))
        normalised = normalised[0].double().numpy()
        actions = self.statistics.unnormalise_actions(normalised)
        clock.mark('head')
        return ActionChunk(
            actions=actions, selections=(), stage_ms=clock.stage_ms, method=_KEY,
            tokens_kept=0, tokens_total=0, flops=chain_flops(*self.model.widths),
            normalised=normalised,
        )

    def check_instruction(self, instruction: str) -> None:
        """ValueError for an instruction that training did not have."""
        if instruction not in self.instructions:
            raise ValueError(
                f"The blind baseline does not know '{instruction}'; it was trained "
                f'on {len(self.instructions)} other instructions.')

    def warm_up(self, instruction: str) -> None:
        """Get ready: no call is slow for being the first."""
        self.check_instruction(instruction)

    def reset(self) -> None:
        """Begin a new episode: nothing is remembered anyway."""

    def close(self) -> None:
        """Free nothing: the network is small."""


def train_state_only(
    demonstrations: Demonstrations,
    seconds: float = 0.0,
    steps: int = 0,
    seed: int = 0,
    chunk_length: int = 8,
    batch: int = 32,
    learning_rate: float = 1e-3,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> StateOnlyPolicy:
    """Clone every control step of the demonstrations, rendered or not; L1, AdamW, cosine.

    seconds or steps: how long; with `steps` the same seed gives the same weights. Small batches:
    optimiser steps count for more than samples here. report: called with step and loss.
    """
    if (seconds > 0) == (steps > 0):
        raise ValueError('Give either seconds or steps for the blind baseline, above 0.')
    instructions, proprio, actions, number = _read_all(demonstrations, chunk_length)
    if (proprio.shape[1], actions.shape[2]) != (len(END_EFFECTOR_STATE), len(END_EFFECTOR_DELTA)):
        raise ValueError(
            f'{demonstrations.directory} has {proprio.shape[1]} numbers of state and '
            f'{actions.shape[2]} of actions; the blind baseline is for demonstrations of the '
            'simulated world, by vla demos.')
    statistics = statistics_of(actions[:, 0], proprio)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StateOnlyMlp(len(instructions), chunk_length)
    rng = np.random.default_rng(seed)
    policy = StateOnlyPolicy(model, instructions, statistics)
    inputs = _floats(policy.statistics.normalise_proprio(proprio))
    targets = _floats(policy.statistics.normalise_actions(actions))
    number = torch.from_numpy(number)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    start_s, step, done = time.monotonic(), 0, 0.0
    while done < 1.0:
        for group in optimiser.param_groups:
            group['lr'] = learning_rate * 0.5 * (1 + np.cos(np.pi * done))
        index = torch.from_numpy(rng.integers(len(inputs), size=batch))
        loss = (model(inputs[index], number[index]) - targets[index]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        done = step / steps if steps else (time.monotonic() - start_s) / seconds
        report(step, loss.item())
    model.eval()
    return policy


def _read_all(
    demonstrations: Demonstrations, chunk_length: int
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Return instructions, and for every step proprio [N, 8], chunk [N, K, 7] and number [N]."""
    known: dict[str, int] = {}
    proprio, chunks, number = [], [], []
    for episode in range(len(demonstrations.episodes)):
        actions = demonstrations.read(episode, 'action')
        words = demonstrations.header(episode)['instruction']
        index = known.setdefault(words, len(known))
        padded = pad_chunk(actions, len(actions) + chunk_length)
        windows = np.lib.stride_tricks.sliding_window_view(padded, chunk_length, axis=0)
        chunks.append(windows[: len(actions)].swapaxes(1, 2))
        proprio.append(demonstrations.read(episode, 'proprio'))
        number += [index] * len(actions)
    return list(known), np.concatenate(proprio), np.concatenate(chunks), np.array(number)


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
