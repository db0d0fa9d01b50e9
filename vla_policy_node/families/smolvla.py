"""SmolVLA: a small vision-language model whose first layers an action expert reads, flow matching.

Shukor et al. 2025, arXiv 2506.01844; code huggingface/lerobot, whose checkpoints are read as they
are. Pictures, words and state are the prefix, which runs once; each Euler step of the flow runs
the expert alone over the keys and values of the prefix (`nn.prefix_expert`). The actions are cut
to those of the robot from the room that the network has for them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_policy_node.checkpoints import adapter, value_files
from vla_policy_node.checkpoints.conventions import ALOHA_SMOLVLA
from vla_policy_node.checkpoints.layout import read_json
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.encoding.encoder import InputEncoder
from vla_policy_node.encoding.padded import PaddedPreprocessor
from vla_policy_node.encoding.task_prompt import FORMS, SMOLVLM, TaskPrompt
from vla_policy_node.families.base import PolicyFamily, PolicyNetwork, kind_of
from vla_policy_node.families.smolvla_config import SIZES, SmolVlaConfig, read_sizes
from vla_policy_node.families.smolvla_files import (
    EXPERT,
    VLM,
    backbone_folders,
    frame_ids,
    stored_sizes,
)
from vla_policy_node.nn import siglip
from vla_policy_node.nn.capabilities import HOOKED, Capability
from vla_policy_node.nn.config import FamilyTraits
from vla_policy_node.nn.ddim import initial_noise
from vla_policy_node.nn.flops import LayerRows, chain_flops, decoder_flops, encoder_flops
from vla_policy_node.nn.flow import FlowStep, between, flow_times, integrate
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.gradient_cache import GradientCache
from vla_policy_node.nn.kv_cache import KvCache
from vla_policy_node.nn.masks import Visibility
from vla_policy_node.nn.prefix_expert import PrefixExpert, PrefixFlow
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.nn.transformer import Decoder

PADDING = 'smolvla'  # one of `encoding.padded.PADDINGS`
# Pictures and words see each other; the state sees all of that and itself.
VISIBILITY = Visibility(later=(('proprio',),))
# Where words stand between the pictures, these are no rows side by side, as methods want them.
WITH_FRAMES = frozenset({
    Capability.FUSED, Capability.DENOISING, Capability.FLOW, Capability.ONE_PASS})
NO_ROWS = slice(0, 0)  # of the last layer only keys and values are of use


class Context(NamedTuple):
    """What decoding reads: keys and values by layer, and where the actions begin, [B]."""

    cache: KvCache
    behind: Tensor


class SmolVla(PolicyNetwork):
    """Pictures, words and state, in this order; the actions are rows of the expert."""

    config: SmolVlaConfig

    def __init__(self, config: SmolVlaConfig):
        super().__init__()
        self.config = config
        text = config.language_model
        self.vision = siglip.Siglip(config.vision)
        self.connector = nn.Linear(
            config.pixel_shuffle**2 * config.vision.width, text.width, bias=False)
        self.state_proj = nn.Linear(config.state_room, text.width)
        self.language_model = Decoder(text, VISIBILITY)
        self.action_head = PrefixFlow(
            PrefixExpert(config.expert, config.crossing, text.key_width), config.action_room,
            config.periods)

    def decoders(self) -> tuple[Decoder, ...]:
        """The language model, and the expert that reads it layer by layer."""
        return self.language_model, cast(Decoder, self.action_head.expert)

    def visual(
        self, pixels: Tensor, prompt_ids: Tensor | None, forward_pass: ForwardPass
    ) -> Tensor:
        """Pictures [B, cameras, 3, H, W] from -1 to 1 -> visual rows; any number of cameras."""
        features = siglip.shuffle_pixels(
            self.vision(pixels.flatten(0, 1)), self.config.pixel_shuffle)
        features = features.reshape(len(pixels), -1, features.shape[-1])
        rows = self.connector(forward_pass.change_features(features))
        return rows * self.config.language_model.embedding_scale

    def assemble(
        self, visual: Tensor, proprio: Tensor, prompt_ids: Tensor, padded: bool | None = None,
        seen: Tensor | None = None,
    ) -> TokenSequence:
        """Lay out pictures, prompt and state.

        seen: [B, cameras] bool, False where a picture is only there for others of its batch.
        Rows that are hidden take no position, so the result is that without them; words around a
        picture stay.
        """
        batch, before, after = len(visual), *map(len, self.config.frame)
        per_camera = self.config.grid[0] * self.config.grid[1]
        pictures = self._framed(visual, per_camera) if before + after else visual
        words = self.language_model.embed_words(prompt_ids)
        room = self.config.state_room - proprio.shape[1]
        state = self.state_proj(functional.pad(proprio, (0, room)))[:, None]
        rows = {'visual' if pictures is visual else 'pictures': pictures, 'prompt': words,
                'proprio': state}
        hidden = padded or (padded is None and batch > 1)
        if not hidden and seen is None:
            return TokenSequence.of(rows)
        if seen is None:
            cameras = visual.shape[1] // per_camera
            seen = torch.ones(batch, cameras, dtype=torch.bool, device=visual.device)
        tokens = seen[:, :, None].expand(-1, -1, per_camera)
        shown = functional.pad(tokens, (before, after), value=True).flatten(1)
        real = prompt_ids != self.config.pad_id if hidden else torch.ones_like(prompt_ids).bool()
        valid = torch.cat([shown, real, real.new_ones(batch, 1)], dim=1)
        bias = torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, -torch.inf)
        spans = lay_out({name: part.shape[1] for name, part in rows.items()})
        # A hidden row before the first one that counts would have no position.
        positions = (valid.cumsum(1) - 1).clamp(min=0)
        return TokenSequence(torch.cat([*rows.values()], dim=1), positions, spans, bias)

    def _framed(self, visual: Tensor, per_camera: int) -> Tensor:
        """Each camera's rows between words, which LeRobot does not scale here."""
        before, after = (
            self.language_model.embed_tokens(torch.tensor([ids], device=visual.device))
            for ids in self.config.frame)
        cameras = visual.unflatten(1, (-1, per_camera))
        ends = (part[:, None].expand(*cameras.shape[:2], -1, -1) for part in (before, after))
        return torch.cat([next(ends), cameras, next(ends)], dim=2).flatten(1, 2)

    def prefill(self, sequence: TokenSequence, forward_pass: ForwardPass) -> Context:
        """Select tokens and run the language model for its keys and values."""
        return self._read(sequence, forward_pass, KvCache())

    def _read(
        self, sequence: TokenSequence, forward_pass: ForwardPass, cache: KvCache
    ) -> Context:
        sequence = forward_pass.select_tokens(sequence)
        forward_pass.mark('select')
        behind = sequence.positions[:, -1] + 1
        noted = len(forward_pass.layer_rows)
        hooks = forward_pass.layers(nn.Identity())
        self.language_model.run_layers(sequence, NO_ROWS, hooks, cache)
        # Which layers ran is forgotten once their keys are: the expert's are not all alike.
        number, rows = self.action_head.expert.number, forward_pass.layer_rows
        rows[noted:] = [done._replace(layer=number(index))
                        for index, done in zip(cache.layers, rows[noted:], strict=False)]
        forward_pass.mark('language_model')
        return Context(cache, behind)

    def decode(self, context: Context, forward_pass: ForwardPass) -> Tensor:
        """Keys and values of the prefix -> normalised actions [B, K, A] float32.

        The noise is the same in every inference, and fills all the room of an action. No action
        sees those behind it, so those of a shorter chunk are the first of the whole one.
        """
        config = self.config
        shape = (len(context.behind), config.chunk_room, config.action_room)
        noise = initial_noise(torch.empty(0, device=context.behind.device), shape)
        actions = self.denoise(context, noise[:, : config.chunk_length], forward_pass)
        return actions[..., : config.action_size]

    def denoise(self, context: Context, noise: Tensor, forward_pass: ForwardPass) -> Tensor:
        """Follow the flow from noise [B, K, room] to actions of the same shape."""
        head = self.action_head
        prefix = head.expert.read(context.cache, context.behind, noise.shape[1])
        times = flow_times(self.config.denoising_steps)
        waves = head.waves_of(len(times))
        return integrate(
            lambda index, _, x: forward_pass.denoise(
                head.step(index, waves[index : index + 1], x, prefix)), noise, times)

    def velocity(self, context: Context, noisy: Tensor, time: Tensor) -> Tensor:
        """What the expert predicts for noisy actions [B, K, room] at times [B] of the flow."""
        head = self.action_head
        prefix = head.expert.read(context.cache, context.behind, noisy.shape[1])
        return head.step(0, head.waves(time), noisy, prefix).run()[0]

    def flow(
        self, sequence: TokenSequence, forward_pass: ForwardPass, draws: int = 1
    ) -> Callable[[Tensor, Tensor], FlowStep]:
        """As `pi0.Pi0.flow`: steps of [B draws, K, room], which gradients flow through."""
        head, cache = self.action_head, GradientCache()
        behind = self._read(sequence, forward_pass, cache).behind
        if draws > 1:
            cache, behind = cache.repeated(draws), behind.repeat_interleave(draws)
        prefix = head.expert.read(cache, behind, self.config.chunk_length)
        return lambda noisy, time: head.step(0, head.waves(time), noisy, prefix)

    def flow_loss(
        self, sequence: TokenSequence, actions: Tensor, noise: Tensor, time: Tensor
    ) -> Tensor:
        """Squared errors of the velocity, [B, K, room]; the first A of them are the robot's.

        actions: [B, K, A], normalised. noise: [B, K, room]. time: [B].
        """
        actions = functional.pad(actions, (0, noise.shape[2] - actions.shape[2]))
        noisy, wanted = between(actions, noise, time)
        context = self.prefill(sequence, ForwardPass())
        return (self.velocity(context, noisy, time) - wanted).square()


class SmolVlaFamily(PolicyFamily[SmolVlaConfig]):
    """LeRobot's config.json says `"type": "smolvla"`."""

    traits = FamilyTraits(
        'smolvla', 'SmolVLA', 'flow expert',
        HOOKED | {Capability.FUSED, Capability.FIXED_SHAPES, Capability.DENOISING,
                  Capability.FLOW},
        action_slots=False)
    unused: ClassVar = (
        r'model\.vlm_with_expert\.vlm\.(lm_head\.weight|model\.text_model\.layers\.\d+\..*)'
        r'|(un)?normalize_(inputs|targets|outputs)\..*')
    settled: ClassVar = {
        'action rows': 'the expert has its own', 'decoding': 'config.json: type',
        'cameras': 'config.json: input_features', 'proprio': 'config.json: input_features',
        'actions': 'config.json: output_features', 'chunk': 'config.json: chunk_size',
        'ranges': 'layout of LeRobot'}

    def recognises(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> bool:
        """By what LeRobot calls it."""
        return kind_of(document) == self.traits.name

    def config_of(self, document: Mapping) -> SmolVlaConfig:
        """As config.json says, with public sizes where it does not."""
        return read_sizes(document, self.traits)

    def read_config(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> SmolVlaConfig:
        """Sizes are those of the weights."""
        frame = frame_ids(directory, document)
        traits = replace(self.traits, capabilities=WITH_FRAMES) if any(frame) else self.traits
        return read_sizes(
            {**document, SIZES: stored_sizes(directory, document)}, traits, frame)

    def with_chunk_length(self, config: SmolVlaConfig, chunk_length: int) -> SmolVlaConfig:
        """Fewer actions are the first of more: none sees those behind it."""
        return replace(config, chunk_length=min(chunk_length, config.chunk_length))

    def create_network(self, config: SmolVlaConfig) -> SmolVla:
        """Build the network with weights that are not initialised for any use."""
        return SmolVla(config)

    def locate(self, name: str, config: SmolVlaConfig) -> tuple[str, str]:
        """All is one file, in LeRobot's names."""
        part, _, rest = name.partition('.')
        if part == 'vision':
            return super().locate(f'{VLM}vision_model.{siglip.file_name(rest)}', config)
        if part == 'connector':
            return super().locate(f'{VLM}connector.modality_projection.proj.{rest}', config)
        if part == 'language_model':
            return super().locate(f'{VLM}text_model.{rest}', config)
        if rest.startswith('expert.'):
            return super().locate(EXPERT + rest.removeprefix('expert.'), config)
        if rest.startswith('time_mlp_'):
            return super().locate(f'model.action_{rest}', config)
        return super().locate(f'model.{name.removeprefix("action_head.")}', config)

    def load_statistics(
        self, directory: Path, config: SmolVlaConfig, key: str = ''
    ) -> Statistics:
        """By the modes in LeRobot's files."""
        sizes = config.proprio_size, config.action_size
        return value_files.load_statistics(directory, key, sizes, 'MEAN_STD', ALOHA_SMOLVLA)

    def normalisation(self, directory: Path, config: SmolVlaConfig) -> str:
        """As LeRobot's files say it."""
        return value_files.modes_of(directory, 'MEAN_STD')

    def tokenizer_folders(self, directory: Path) -> list[Path]:
        """It is the backbone's, which public checkpoints leave away."""
        return [*adapter.folders(directory),
                *backbone_folders(directory, read_json(directory, 'config.json'))]

    def load_prompt(self, directory: Path, config: SmolVlaConfig) -> TaskPrompt:
        """The task, and a line break unless it ends with one."""
        return TaskPrompt.find(
            self.tokenizer_folders(directory), config.language_model.vocabulary,
            FORMS['lerobot'], config.words, instead=SMOLVLM)

    def load_encoder(
        self,
        directory: Path,
        config: SmolVlaConfig,
        statistics: Statistics,
        camera_transforms: Mapping[str, str],
        preprocessing: str = 'exact',
    ) -> InputEncoder:
        """Pictures keep their aspect; black stands on the left and above."""
        return InputEncoder(
            config, self.load_prompt(directory, config),
            PaddedPreprocessor(PADDING, config.image_px, preprocessing), statistics,
            camera_transforms, may_miss=True)

    def count_flops(
        self,
        config: SmolVlaConfig,
        layer_rows: Sequence[int] | Sequence[LayerRows],
        denoising_reused: int = 0,
    ) -> dict[str, int]:
        """Products of matrices, by stage; the expert reads as many rows as each layer has left."""
        text, vision = config.language_model, config.vision
        shuffled = config.pixel_shuffle**2 * vision.width
        return {
            'vision': config.cameras * encoder_flops(vision)
            + config.visual_tokens * chain_flops(shuffled, text.width),
            'language_model': chain_flops(config.state_room, text.width)
            + decoder_flops(text, layer_rows, config.rows_read),
            'head': _head_flops(config, layer_rows, denoising_reused),
        }


def _head_flops(
    config: SmolVlaConfig, layer_rows: Sequence[int] | Sequence[LayerRows], reused: int
) -> int:
    expert, keys, rows = config.expert, config.language_model.key_width, config.chunk_length
    width, once, layers = config.expert_width, 0, 0
    for place, done in enumerate(cast('Sequence[int | LayerRows]', layer_rows)):
        index = place % len(config.crossing)
        seen = done.seen if isinstance(done, LayerRows) else done
        if isinstance(done, LayerRows) and done.layer >= 0:
            index = done.layer
        own = 0 if config.crossing[index] else rows
        once += 2 * chain_flops(keys, expert.key_width) * seen * (not own)
        layers += decoder_flops(expert, [LayerRows(rows, own, seen + own)], rows)
    steps = config.denoising_steps
    around = rows * (
        2 * chain_flops(config.action_room, width) + chain_flops(2 * width, width, width))
    return once + steps * around + (steps - reused) * layers
