"""pi0 and pi0.5, any size: flow matching over what PaliGemma made of pictures and words.

Black et al. 2024, arXiv 2410.24164; Physical Intelligence 2025, arXiv 2504.16054; code
Physical-Intelligence/openpi and huggingface/lerobot. The prefix, pictures and then words, sees
all of itself and nothing else, and runs once; the action expert reads its keys and values in every
step of the flow (`nn.flow_expert`). What only fills up a batch, words and pictures of cameras that
are not there, is hidden and takes no position, which is the same as leaving it away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from vla_policy_node.checkpoints.conventions import ALOHA_PI0
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.checkpoints.value_files import load_statistics, modes_of, sizes_of
from vla_policy_node.checkpoints.weights import MODEL
from vla_policy_node.encoding.encoder import InputEncoder
from vla_policy_node.encoding.padded import PaddedPreprocessor
from vla_policy_node.encoding.task_prompt import (
    FORMS,
    PALIGEMMA,
    PALIGEMMA_BOS,
    TaskPrompt,
)
from vla_policy_node.families.base import PolicyFamily, PolicyNetwork, kind_of
from vla_policy_node.families.pi0_config import (
    Pi0Config,
    is_openpi,
    read_public,
    read_stored,
)
from vla_policy_node.families.pi0_files import PiFiles, holds_nothing
from vla_policy_node.families.pi0_flops import head_flops
from vla_policy_node.nn.capabilities import HOOKED, Capability
from vla_policy_node.nn.config import FamilyTraits
from vla_policy_node.nn.ddim import initial_noise
from vla_policy_node.nn.flops import LayerRows, chain_flops, decoder_flops, encoder_flops
from vla_policy_node.nn.flow import FlowStep, between, flow_times, integrate
from vla_policy_node.nn.flow_expert import NO_ROWS, FlowExpert, Prefix
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.gradient_cache import GradientCache
from vla_policy_node.nn.joint import Stream, joint_forward
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.masks import Visibility
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.nn.siglip import Siglip, file_name
from vla_policy_node.nn.transformer import Decoder
from vla_policy_node.nn.vision import PatchSample

# Who sees whom where prefix, state and actions are one sequence, as in training.
VISIBILITY = Visibility(later=(('state',), ('actions',)))


@dataclass(frozen=True)
class PrefixSequence(TokenSequence):
    """Pictures and words, and the state's row [B, 1, expert width] that is to follow them."""

    state: Tensor | None = None


class Pi0(PolicyNetwork):
    """SigLIP, Gemma and an action expert."""

    config: Pi0Config

    def __init__(self, config: Pi0Config):
        super().__init__()
        self.config = config
        self.vision = Siglip(config.vision)
        self.projector = nn.Linear(config.vision.width, config.language_model.width)
        self.language_model = Decoder(config.language_model)
        self.action_head = FlowExpert(
            config.expert_decoder, config.action_room, config.state_room, config.periods)

    def decoders(self) -> tuple[Decoder, ...]:
        """The language model, and the expert that attends to it layer by layer."""
        return self.language_model, self.action_head.decoder

    def visual(
        self, pixels: Tensor, prompt_ids: Tensor | None, forward_pass: ForwardPass | None = None
    ) -> Tensor:
        """Pictures [B, cameras, 3, H, W] from -1 to 1 -> visual rows, which nothing scales."""
        features = self.visual_features(pixels)
        if forward_pass is not None:
            features = forward_pass.change_features(features)
        return self.projector(features)

    def visual_features(
        self, pixels: Tensor, prompt_ids: Tensor | None = None, sample: PatchSample | None = None
    ) -> Tensor:
        """Pictures -> features camera by camera; sample: of these patches alone."""
        features = self.vision(pixels.flatten(0, 1), sample)
        return features.reshape(len(pixels), -1, features.shape[-1])

    def assemble(
        self,
        visual: Tensor,
        proprio: Tensor,
        prompt_ids: Tensor,
        padded: bool | None = None,
        seen: Tensor | None = None,
    ) -> PrefixSequence:
        """Visual rows, state and words -> the prefix, with the state beside it.

        padded: None: prompts of batches may be filled up, with `config.pad_id` at their ends.
        seen: [B, cameras] bool, which pictures are there; None: all.
        """
        rows = {'visual': visual, 'prompt': self.language_model.embed_words(prompt_ids)}
        valid = torch.ones(prompt_ids.shape, dtype=torch.bool, device=visual.device)
        if padded or (padded is None and len(visual) > 1):
            valid = prompt_ids != self.config.pad_id
        cameras = valid.new_ones(visual.shape[:2])
        if seen is not None:
            cameras = seen.repeat_interleave(visual.shape[1] // seen.shape[1], dim=1)
        return self.prefix(rows, torch.cat([cameras, valid], dim=1), proprio)

    def prefix(
        self, rows: Mapping[str, Tensor], valid: Tensor, proprio: Tensor
    ) -> PrefixSequence:
        """Rows by name and which of them count, [B, T] bool -> the prefix."""
        states = torch.cat([*rows.values()], dim=1)
        hidden = None
        if len(states) > 1 or not valid.all():
            hidden = torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, -torch.inf)
        state = self.action_head.embed_state(proprio) if self.config.state_room else None
        return PrefixSequence(
            states, valid.cumsum(1) - 1, lay_out({name: x.shape[1] for name, x in rows.items()}),
            hidden, state)

    def prefill(self, sequence: TokenSequence, forward_pass: ForwardPass) -> Prefix:
        """Select tokens and run the prefix, of whose last layer only keys and values are used."""
        return self._read(sequence, forward_pass, KvCache(room=1 + self.config.chunk_length))

    def _read(
        self, sequence: TokenSequence, forward_pass: ForwardPass, cache: KvCache
    ) -> Prefix:
        assert isinstance(sequence, PrefixSequence)
        state, after = sequence.state, sequence.positions[:, -1] + 1
        left = forward_pass.select_tokens(sequence)
        forward_pass.mark('select')
        self.language_model.run_layers(
            left, NO_ROWS, forward_pass.layers(nn.Identity()), cache)
        forward_pass.mark('language_model')
        return self.action_head.read_state(cache, state, after)

    def decode(self, context: Prefix, forward_pass: ForwardPass) -> Tensor:
        """What the expert reads -> normalised actions [B, K, `action_room`] float32."""
        return self.denoise(context, forward_pass)

    def denoise(
        self, context: Prefix, forward_pass: ForwardPass, noise: Tensor | None = None
    ) -> Tensor:
        """Follow the flow from noise [B, K, D], the same in every inference if none is given."""
        config, head = self.config, self.action_head
        if noise is None:
            weight = head.action_in_proj.weight
            like = torch.empty(
                0, device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
            shape = (len(context.after), config.chunk_length, config.action_room)
            noise = initial_noise(like, shape)
        times = flow_times(config.denoising_steps, config.accumulated_time)
        waves = head.waves(torch.tensor(times))
        return integrate(
            lambda index, time, x: forward_pass.denoise(
                head.step(index, waves[index : index + 1], x, context)),
            noise, times)

    def to_actions(self, decoded: Tensor) -> Tensor:
        """Leave away what fills up an action, [B, K, A]."""
        return decoded[..., : self.config.action_size]

    def predict(
        self, sequence: PrefixSequence, noisy: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocity of noisy actions [B, K, D] at times [B], and the last states of their rows.

        One pass over prefix and actions together, for training: gradients flow into all of it.
        """
        head = self.action_head
        rows, condition = head.embed(noisy, head.waves(time))
        spans = {'actions': rows} if sequence.state is None else {
            'state': sequence.state, 'actions': rows}
        suffix = torch.cat([*spans.values()], dim=1)
        places = torch.arange(1, suffix.shape[1] + 1, device=suffix.device)
        _, states = joint_forward([
            Stream(self.language_model, sequence),
            Stream(head.decoder, TokenSequence(
                suffix, sequence.positions[:, -1:] + places,
                lay_out({name: x.shape[1] for name, x in spans.items()})), condition),
        ], VISIBILITY)
        states = states[:, -noisy.shape[1]:]
        return head.velocity(states), states

    def flow(
        self, sequence: TokenSequence, forward_pass: ForwardPass, draws: int = 1
    ) -> Callable[[Tensor, Tensor], FlowStep]:
        """Run the prefix once: what makes a step of noisy actions [B draws, K, D] and times.

        As `predict`, but with hooks, and several draws of each sample, side by side.
        """
        head, cache = self.action_head, GradientCache()
        prefix = self._read(sequence, forward_pass, cache)
        if draws > 1:
            prefix = replace(prefix, cache=cache.repeated(draws),
                             after=prefix.after.repeat_interleave(draws))
        return lambda noisy, time: head.step(0, head.waves(time), noisy, prefix)

    def flow_loss(
        self, sequence: PrefixSequence, actions: Tensor, noise: Tensor, time: Tensor
    ) -> Tensor:
        """Square errors of the velocity, [B, K, D]; actions, noise: [B, K, D]. time: [B].

        LeRobot takes the mean over the numbers of the robot's actions, openpi over all.
        """
        noisy, wanted = between(actions, noise, time)
        return (self.predict(sequence, noisy, time)[0] - wanted).square()


class Pi0Family(PolicyFamily[Pi0Config]):
    """Its config.json says so, or is openpi's and the weights have a row for the state."""

    traits = FamilyTraits(
        'pi0', 'pi0', 'flow matching',
        HOOKED | {Capability.FUSED, Capability.DENOISING, Capability.FLOW}, action_slots=False)
    adaptive: ClassVar[bool] = False
    mode: ClassVar[str] = 'MEAN_STD'  # of openpi, whose files do not say it
    unused: ClassVar = (
        r'(model\.)?paligemma_with_expert\..*(lm_head|embed_tokens)\.weight'
        r'|(un)?normalize_(inputs|targets|outputs)\..*')

    def recognises(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> bool:
        """By the type; of openpi's files, by the weights."""
        if is_openpi(document):
            return PiFiles(directory).adaptive == self.adaptive
        return kind_of(document) == self.traits.name

    def said_by(self, document: Mapping) -> Mapping[str, str]:
        """config.json names cameras and sizes if it is LeRobot's; openpi's policies are alike."""
        if is_openpi(document):
            robot, cameras, chunk = 'assets: norm_stats.json', 'openpi', 'action_horizon'
        else:
            robot, cameras, chunk = 'output_features', 'input_features', 'chunk_size'
            robot, cameras = f'config.json: {robot}', f'config.json: {cameras}'
        layout = f'layout of {"openpi" if is_openpi(document) else "LeRobot"}'
        return {
            'cameras': cameras, 'proprio': robot.replace('output', 'input'), 'actions': robot,
            'chunk': f'config.json: {chunk}', 'action rows': 'the expert has rows of its own',
            'ranges': layout, 'padding': layout, 'words': layout, 'time': layout}

    def conventions(self, config: Pi0Config) -> Mapping[str, str]:
        """In what openpi and LeRobot differ."""
        return {
            'padding': f'as {config.padding}', 'words': f'as {config.prompt}',
            'time': 'accumulated' if config.accumulated_time else 'each step by itself'}

    def config_of(self, document: Mapping) -> Pi0Config:
        """Sizes of a published policy; those of weights may be others, see `read_config`."""
        return read_public(document, self.traits, self.adaptive)

    def read_config(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> Pi0Config:
        """Sizes that the weights have."""
        counted = {}
        if is_openpi(document):  # which does not say how many numbers the robot has
            counted = {key: size for key, size in zip(
                ('state', 'actions'), sizes_of(directory), strict=True) if size}
        config = self.config_of({**counted, **document})
        if not config.trained and holds_nothing(directory):
            return config  # weights are made, not read: `bench.random_policy`
        files = PiFiles(directory)
        if files.adaptive != self.adaptive:
            is_one, other = ('pi0.5', 'pi0') if files.adaptive else ('pi0', 'pi0.5')
            raise ValueError(
                f'{directory} has the weights of {is_one}, and config.json is of {other}; take '
                'the file that belongs to the weights.')
        return read_stored(directory, config, files, document)

    def create_network(self, config: Pi0Config) -> Pi0:
        """Build the network with weights that are not initialised for any use."""
        return Pi0(config)

    def locate(self, name: str, config: Pi0Config) -> tuple[str, str]:
        """As `families.pi0_files` has found them."""
        names = config.names
        part, _, rest = name.partition('.')
        if name == 'language_model.embed_tokens.weight':
            return MODEL, names['words']
        if part == 'action_head':
            if rest.startswith('decoder.'):
                return MODEL, names['expert'] + rest.removeprefix('decoder.')
            if rest.startswith('time_mlp_'):
                return MODEL, names['time'] + rest.removeprefix('time_mlp_')
            return MODEL, names['heads'] + rest
        return MODEL, names[part] + (file_name(rest) if part == 'vision' else rest)

    def load_statistics(
        self, directory: Path, config: Pi0Config, key: str = ''
    ) -> Statistics:
        """As openpi and LeRobot keep them, by the mode that they say or else that of the kind."""
        return load_statistics(
            directory, key, (config.proprio_size, config.action_size), self.mode, ALOHA_PI0)

    def normalisation(self, directory: Path, config: Pi0Config) -> str:
        """As the files say it."""
        return modes_of(directory, self.mode)

    def load_prompt(self, directory: Path, config: Pi0Config) -> TaskPrompt:
        """PaliGemma's tokenizer, which lies with the checkpoint."""
        return TaskPrompt.find(
            self.tokenizer_folders(directory), config.language_model.vocabulary,
            FORMS[config.prompt], config.prompt_ids, PALIGEMMA_BOS, PALIGEMMA)

    def load_encoder(
        self,
        directory: Path,
        config: Pi0Config,
        statistics: Statistics,
        camera_transforms: Mapping[str, str],
        preprocessing: str = 'exact',
    ) -> InputEncoder:
        """Pictures fitted into a square; those of cameras that are not there are left away."""
        pictures = PaddedPreprocessor(config.padding, config.image_px, preprocessing)
        return InputEncoder(
            config, self.load_prompt(directory, config), pictures, statistics, camera_transforms,
            may_miss=True)

    def count_flops(
        self,
        config: Pi0Config,
        layer_rows: Sequence[int] | Sequence[LayerRows],
        denoising_reused: int = 0,
    ) -> dict[str, int]:
        """As in the base class; the state's row counts to the head."""
        features, width = config.vision.width, config.language_model.width
        pictures = config.cameras * encoder_flops(config.vision)
        seen = [rows.seen if isinstance(rows, LayerRows) else rows for rows in layer_rows]
        return {
            'vision': pictures + config.visual_tokens * chain_flops(features, width),
            'language_model': decoder_flops(config.language_model, layer_rows, 0),
            'head': head_flops(config, seen, denoising_reused),
        }


class Pi05Family(Pi0Family):
    """The state is words of the prompt, and time modulates the expert's norms."""

    traits = replace(Pi0Family.traits, name='pi05', family='pi0.5')
    adaptive = True
    mode = 'QUANTILES'
