"""Checks of a checkpoint's behaviour: does it look at the images, and at which parts?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_policy_node import families
from vla_policy_node.checkpoints.adapter import place
from vla_policy_node.checkpoints.layout import read_normalisation, read_statistics_document
from vla_policy_node.checkpoints.published import published_action_rows
from vla_policy_node.checks.files import has_no_tokenizer
from vla_policy_node.checks.findings import FAIL, PASS, SKIP, Finding
from vla_policy_node.encoding.encoder import InputEncoder, Inputs
from vla_policy_node.encoding.padded import PaddedPreprocessor
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.families import PolicyNetwork
from vla_policy_node.families.prismatic import ACTION_ROWS, PrismaticVla
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.forward_pass import ForwardPass

INSTRUCTION = 'pick up the black bowl between the plate and the ramekin'
SHORT_INSTRUCTION = 'pick it up'
# Changes of normalised actions below this count as none.
NO_CHANGE = 1e-5


@dataclass(frozen=True)
class SampleRun:
    """A model with inputs to try it on.

    image: preprocesses [H, W, 3] uint8 to [3 encoders, side, side].
    """

    model: PolicyNetwork
    image: ImagePreprocessor | PaddedPreprocessor
    prompt_ids: Tensor

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network."""
        return self.model.config

    @classmethod
    def prepare(cls, directory: Path, model: PolicyNetwork) -> SampleRun:
        """Take pictures and words as the family does."""
        config = model.config
        family = families.of(config)
        key = next(iter(read_statistics_document(directory)), '')
        statistics = family.load_statistics(directory, config, key)
        inputs = family.load_encoder(
            directory, config, statistics, dict.fromkeys(config.spec.cameras, 'none'))
        prompt = torch.tensor([_prompt(inputs)])
        return cls(model, inputs.preprocessor, prompt.to(next(model.parameters()).device))

    @torch.inference_mode()
    def act(self, images: list[np.ndarray]) -> Tensor:
        """Normalised actions [K, A] for one image per camera, proprio in the middle."""
        pixels = torch.stack([self.image(image) for image in images])[None]
        return self.model(Inputs(*self._placed(pixels), self.prompt_ids))[0].float()

    def _placed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        weight = next(self.model.parameters())
        proprio = torch.zeros(1, self.config.proprio_size)
        return pixels.to(weight.device, weight.dtype), proprio.to(weight.device, weight.dtype)


def _prompt(inputs: InputEncoder) -> list[int]:
    """Ids of an instruction that is no longer than those of training."""
    try:
        return inputs.encode_prompt(INSTRUCTION)
    except ValueError:
        return inputs.encode_prompt(SHORT_INSTRUCTION)


@dataclass(frozen=True)
class PrismaticRun(SampleRun):
    """The same where the layers can be looked into."""

    model: PrismaticVla

    @property
    def config(self) -> PrismaticConfig:
        """Sizes of the network."""
        return self.model.config

    @classmethod
    def prepare(cls, directory: Path, model: PrismaticVla) -> PrismaticRun:
        """Use the checkpoint's tokenizer if there is one, made-up ids if not; no centre crop."""
        config, device = model.config, next(model.parameters()).device
        ids = config.token_ids
        path = place(directory, 'tokenizer.json')
        if path.is_file():
            prompt = model.family.load_prompt(directory, config).encode(INSTRUCTION)
        else:
            words = [token for token in range(3, 40) if token not in (ids.empty, ids.pad)]
            prompt = [ids.bos, *words[:20], ids.empty]
        document = read_normalisation(directory)
        preprocessor = ImagePreprocessor(document, config.image_px, center_crop=False)
        return cls(model, preprocessor, torch.tensor([prompt], device=device))

    @torch.inference_mode()
    def sequence(self):
        """The sequence that enters the language model, for grey images."""
        grey = np.full((self.config.image_px, self.config.image_px, 3), 128, np.uint8)
        pixels = torch.stack([self.image(grey)] * self.config.cameras)[None]
        pixels, proprio = self._placed(pixels)
        visual = self.model.visual(pixels, self.prompt_ids)
        return self.model.assemble(visual, proprio, self.prompt_ids)


def check_behaviour(
    directory: Path, model: PolicyNetwork, recorded: bool = False
) -> Iterator[Finding]:
    """Run every check of this module that the network can be put to.

    recorded: prompts come from recordings, and there need not be a tokenizer.
    """
    if not isinstance(model, PrismaticVla):
        if recorded and has_no_tokenizer(directory, model.config):
            yield Finding('images', SKIP, 'no tokenizer; the recordings show what pictures do')
        else:
            yield check_images(SampleRun.prepare(directory, model))
        return
    trial = PrismaticRun.prepare(directory, model)
    yield check_attention(trial)
    yield check_action_rows(trial, directory)
    yield check_images(trial)


@torch.inference_mode()
def check_attention(trial: PrismaticRun) -> Finding:
    """Attention is bidirectional: a change of the last row reaches the first.

    In a causal model it does not, but a change of the first row reaches the last.
    """
    name = 'attention'
    if trial.config.can(Capability.TOKENS):
        return Finding(name, SKIP, 'causal, as this kind of policy is')
    change = _reaches(trial, -1, 0)
    if trial.config.causal:
        forward = _reaches(trial, 0, -1)
        if change > 0 or not forward > 0:
            return Finding(name, FAIL, 'not causal, as this kind of policy is')
        return Finding(name, PASS, f'causal: the first row moves the last by {forward:.2g}')
    if not change > 0:
        return Finding(name, FAIL, 'causal: a change of the last row does not reach the first')
    return Finding(name, PASS, f'bidirectional: the last row moves the first by {change:.2g}')


def _reaches(trial: PrismaticRun, changed: int, seen: int) -> float:
    """Largest change of the hidden states of row `seen` when row `changed` is another."""
    sequence = trial.sequence()
    before = trial.model.language_model(sequence)[0, seen].float()
    states = sequence.states.clone()
    states[:, changed] += 1
    after = trial.model.language_model(replace(sequence, states=states))[0, seen].float()
    return float((after - before).abs().max())


@torch.inference_mode()
def check_action_rows(trial: PrismaticRun, directory: Path) -> Finding:
    """The head reads the rows that the convention names."""
    name, config = 'action rows', trial.config
    if config.can(Capability.TOKENS):
        return Finding(name, SKIP, 'there are none: one token after the other')
    sequence = trial.sequence()
    total, slots = sequence.states.shape[1], config.action_slots
    states = trial.model.language_model(sequence)
    # The same numbers computed another way, up to the precision of the arithmetic.
    near = (1e-4 if states.dtype is torch.float32 else 5e-2) * float(states.abs().max())
    if not config.action_slots:
        read = trial.model.run_layers(sequence, ForwardPass())
        if read.shape != states[:, -1:].shape or not torch.allclose(
                read, states[:, -1:], rtol=0, atol=near):
            return Finding(name, FAIL, 'the head does not read the cognition token')
        return Finding(name, PASS, f'the cognition token, row {total - 1} of {total}, for a chunk '
                       f'of {config.chunk_length}')
    prompt_end = total - 1 - slots  # row after the prompt: action slots and stop follow
    first_rows = {'oft': prompt_end - 1, 'last56': total - slots}
    for rows in ACTION_ROWS:
        read = trial.model.run_layers(sequence, ForwardPass(action_rows=rows))
        expected = states[:, first_rows[rows] : first_rows[rows] + slots]
        if read.shape != expected.shape or not torch.allclose(read, expected, rtol=0, atol=near):
            return Finding(name, FAIL, f'convention {rows!r} does not read rows '
                           f'{first_rows[rows]} to {first_rows[rows] + slots - 1} of {total}')
    chosen = config.action_rows or published_action_rows(directory)
    reason = 'of this checkpoint' if chosen else 'unless a method wishes others'
    chosen = chosen or 'oft'
    return Finding(
        name, PASS,
        f'{chosen!r} {reason}: {first_rows[chosen]} to {first_rows[chosen] + slots - 1} of '
        f'{total}, chunk of {config.chunk_length}')


def check_images(trial: SampleRun) -> Finding:
    """What each camera sees changes the actions."""
    side, cameras = trial.config.image_px, trial.config.cameras
    black, white = (np.full((side, side, 3), level, np.uint8) for level in (0, 255))
    random = np.random.default_rng(0)
    scenes = [random.integers(0, 256, (side, side, 3), np.uint8) for _ in range(cameras)]
    plain = trial.act(scenes)
    changes = {'black against white': trial.act([black] * cameras)
               - trial.act([white] * cameras)}
    for index in range(cameras):
        changed = [*scenes[:index], black, *scenes[index + 1 :]]
        changes[f'camera {index + 1} black'] = trial.act(changed) - plain
    if cameras > 1:
        changes['cameras swapped'] = trial.act(scenes[::-1]) - plain
    sizes = {name: float(change.abs().max()) for name, change in changes.items()}
    ignored = [name for name, size in sizes.items() if not size > NO_CHANGE]
    if ignored:
        return Finding('images', FAIL, f'no action changes with {", ".join(ignored)}')
    text = ', '.join(f'{name} {size:.2g}' for name, size in sizes.items())
    return Finding('images', PASS, f'normalised actions change: {text}')
