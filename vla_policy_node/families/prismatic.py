"""What OpenVLA-OFT, OpenVLA and CogACT share: two vision encoders, a projector and a Llama.

The trunk of the Prismatic models (Karamcheti et al. 2024); families differ in the rows behind the
visual ones, in who sees whom, and in how hidden states become actions.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vla_policy_node.checkpoints.adapter import place
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import (
    read_normalisation,
    read_statistics_document,
    speaks_vicuna,
)
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.checkpoints.weights import MODEL, stored_size
from vla_policy_node.encoding.encoder import InputEncoder
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.encoding.prompt import PromptEncoder, prompt_text, vicuna_text
from vla_policy_node.families.base import PolicyFamily, PolicyNetwork, kind_of
from vla_policy_node.families.prismatic_config import PrismaticConfig, check_room, read_sizes
from vla_policy_node.nn.flops import LayerRows, chain_flops, decoder_flops, encoder_flops
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.heads import ProprioProjector, VocabularyHead
from vla_policy_node.nn.hooks import LayerHooks
from vla_policy_node.nn.masks import BIDIRECTIONAL, CAUSAL
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import Decoder
from vla_policy_node.nn.vision import PatchSample, Projector, VisionBackbone

if TYPE_CHECKING:
    from collections.abc import Sequence

# Rows the head reads, as the number of rows between them and the end of the sequence.
# 'oft': each slot is predicted by the row before it, as training does: the last prompt row and
#     all slots but the last. 'last56': LightVLA's released inference, two rows later, which ends
#     on the stop token although its training used the rows of 'oft'.
ACTION_ROWS = {'oft': 2, 'last56': 0}


class PrismaticFamily(PolicyFamily[PrismaticConfig]):
    """Families whose network is a `PrismaticVla`, in the layout of the public OpenVLA files.

    head_root: what the files put before the names of the action head. head_end: the last bias
    there, which has as many numbers as an action. network: its class.
    """

    head_root: ClassVar[str] = ''
    head_end: ClassVar[str] = ''
    network: ClassVar[type[PrismaticVla]]

    def create_network(self, config: PrismaticConfig) -> PrismaticVla:
        """Build the network with weights that are not initialised for any use."""
        return self.network(config, self)

    def recognises(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> bool:
        """By the files beside the language model, if nobody else may have made them."""
        ours = kind_of(document) in ('openvla', None) or {
            'vision_backbone_id', 'vision_tiny'} & document.keys()
        return bool(ours) and self.recognises_parts(directory, parts)

    def recognises_parts(self, directory: Path, parts: Collection[str]) -> bool:
        """Whether these files are those of the family; see `recognises`."""
        return False

    @abstractmethod
    def make_head(self, config: PrismaticConfig) -> nn.Module:
        """Build what turns hidden states into actions."""

    def config_of(self, document: Mapping) -> PrismaticConfig:
        """Read sizes; see `families.prismatic_config`."""
        return read_sizes(document, self.traits)

    def configure(self, config: PrismaticConfig) -> PrismaticConfig:
        """Sizes of another Prismatic family -> of this one, with the same trunk."""
        return replace(config, family=self.traits)

    def read_config(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> PrismaticConfig:
        """Read sizes; the parts tell whether the prompt modulates the vision encoders (FiLM)."""
        config = self.config_of({**self.stored_sizes(directory), **document})
        if config.proprio and 'proprio_projector' not in parts:
            raise ValueError(
                f'{directory} has an action head and no proprio_projector--*: the download is '
                'incomplete; if the policy was trained without proprio, write "proprio": false '
                'into its config.json.'
            )
        return with_film(config, parts)

    def conventions(self, config: PrismaticConfig) -> Mapping[str, str]:
        """Whether training cropped its pictures."""
        return {'crop': '0.9 of the area, from the middle' if config.center_crop else 'none'}

    def stored_sizes(self, directory: Path) -> dict[str, int]:
        """How many numbers actions and state have, going by the weights that make and read them.

        In the words of config.json, where published policies do not say it.
        """
        found = {'actions': stored_size(directory, 'action_head', self.head_root + self.head_end)}
        found['state'] = stored_size(directory, 'proprio_projector', 'fc1.weight')
        return {key: size for key, size in found.items() if size}

    def locate(self, name: str, config: PrismaticConfig) -> tuple[str, str]:
        """Tensors of the trunk are named in files as in the network, but for the decoder's."""
        part, _, rest = name.partition('.')
        if part == 'action_head':
            return part, self.head_root + rest
        if part in ('proprio_projector', 'noisy_action_projector'):
            return part, rest
        if part == 'vision_backbone' and config.vision_reads_prompt:
            # Each block is wrapped together with the two layers that modulate it.
            return part, re.sub(r'(\.blocks\.\d+\.)(?!scale\.|shift\.)', r'\1block.', name)
        if part == 'language_model':
            return MODEL, f'language_model.model.{rest}'
        return MODEL, name

    def count_flops(
        self,
        config: PrismaticConfig,
        layer_rows: Sequence[int] | Sequence[LayerRows],
        denoising_reused: int = 0,
    ) -> dict[str, int]:
        """As in the base class; numbers are the rows of the sequence in each layer."""
        width = config.language_model.width
        inputs = config.proprio * chain_flops(config.proprio_size, width, width)
        decoder = decoder_flops(config.language_model, layer_rows, config.rows_read)
        return {
            'vision': vision_flops(config),
            'language_model': decoder + inputs,
            'head': self.head_flops(config, denoising_reused),
        }

    @abstractmethod
    def head_flops(self, config: PrismaticConfig, denoising_reused: int = 0) -> int:
        """Return the FLOPs of reading the actions out of hidden states once."""

    def load_prompt(self, directory: Path, config: PrismaticConfig) -> PromptEncoder:
        """What turns an instruction into ids; ValueError if its file cannot be used."""
        ids = config.token_ids
        return PromptEncoder.load(
            place(directory, 'tokenizer.json'), config.language_model.vocabulary, ids.bos,
            ids.empty, vicuna_text if speaks_vicuna(directory) else prompt_text)

    def load_encoder(
        self,
        directory: Path,
        config: PrismaticConfig,
        statistics: Statistics,
        camera_transforms: Mapping[str, str],
        preprocessing: str = 'exact',
    ) -> InputEncoder:
        """Tokenizer and normalisation are files of the checkpoint."""
        document = read_normalisation(directory)
        return InputEncoder(
            config,
            self.load_prompt(directory, config),
            ImagePreprocessor(document, config.image_px, config.center_crop, preprocessing),
            statistics,
            camera_transforms,
        )


def vision_flops(config: PrismaticConfig) -> int:
    """Return the FLOPs of vision encoders and projector, for all cameras."""
    features, width = config.dino.width + config.siglip.width, config.language_model.width
    pictures = config.cameras * (encoder_flops(config.dino) + encoder_flops(config.siglip))
    return pictures + config.visual_tokens * chain_flops(features, 4 * features, width, width)


class VocabularyAnswers(PrismaticFamily):
    """Families whose action head is the vocabulary head of the language model."""

    def stored_sizes(self, directory: Path) -> dict[str, int]:
        """The head says nothing of actions; the statistics do, if all data sets have as many."""
        found = super().stored_sizes(directory)
        with suppress(ValueError):
            lists = [Entries(data, '').inside('action').value('q01')
                     for data in read_statistics_document(directory).values()]
            sizes = {len(values) if isinstance(values, list) else 0 for values in lists}
            if len(sizes) == 1:
                found |= {'actions': sizes.pop()}
        return {key: size for key, size in found.items() if size}

    def make_head(self, config: PrismaticConfig) -> VocabularyHead:
        """Build the head whose last words of the vocabulary are actions."""
        return VocabularyHead(
            config.language_model.width, config.language_model.vocabulary, config.action_bins,
            config.action_ids_end, config.action_size)

    def locate(self, name: str, config: PrismaticConfig) -> tuple[str, str]:
        """The head lies with the language model."""
        if name.startswith('action_head.'):
            return MODEL, name.replace('action_head.', 'language_model.')
        return super().locate(name, config)

    def head_flops(self, config: PrismaticConfig, denoising_reused: int = 0) -> int:
        """Every slot is compared with every word."""
        return config.action_slots * chain_flops(
            config.language_model.width, config.language_model.vocabulary)


def with_film(config: PrismaticConfig, parts: Collection[str]) -> PrismaticConfig:
    """Let the prompt modulate the vision encoders if these have a file of their own."""
    if 'vision_backbone' in parts:
        width = config.language_model.width
        config = replace(
            config,
            dino=replace(config.dino, language_width=width),
            siglip=replace(config.siglip, language_width=width),
        )
    check_room(config)
    return config


class PrismaticVla(PolicyNetwork):
    """Cameras, proprio and a prompt in, one chunk of normalised actions out.

    family: what makes the head and knows its price.
    prompt_ids: BOS first, `empty` last, `pad` right after BOS where a prompt is shorter than
    others of its batch.
    """

    config: PrismaticConfig

    def __init__(self, config: PrismaticConfig, family: PrismaticFamily):
        super().__init__()
        self.config = config
        self.family = family
        width = config.language_model.width
        self.vision_backbone = VisionBackbone(config.dino, config.siglip)
        self.projector = Projector(config.dino.width + config.siglip.width, width)
        self.language_model = Decoder(
            config.language_model, CAUSAL if config.causal else BIDIRECTIONAL)
        if config.proprio:
            self.proprio_projector = ProprioProjector(config.proprio_size, width)
        self.action_head = self.family.make_head(config)

    def prefill(self, sequence: TokenSequence, forward_pass: ForwardPass) -> Any:
        """Select tokens and run the language model: hidden states of the action rows."""
        sequence = forward_pass.select_tokens(sequence)
        forward_pass.mark('select')
        states = self.run_layers(sequence, forward_pass)
        forward_pass.mark('language_model')
        return states

    def decode(self, context: Any, forward_pass: ForwardPass) -> Tensor:
        """Hidden states of the action rows -> normalised actions [B, K, A]."""
        return self.action_head(context)

    def run_layers(self, sequence: TokenSequence, forward_pass: ForwardPass) -> Tensor:
        """Hidden states of the rows that the action head reads, [B, rows, width]."""
        rows = self.action_rows(forward_pass.action_rows)
        return self.language_model(sequence, rows, self.hooks(forward_pass))

    def hooks(self, forward_pass: ForwardPass) -> LayerHooks:
        """Those of the language model; who asks behind a layer hears what the head would say."""
        return forward_pass.layers(self.action_head, self.family.head_flops(self.config))

    def visual(
        self, pixels: Tensor, prompt_ids: Tensor | None, forward_pass: ForwardPass | None = None
    ) -> Tensor:
        """As in the base class; forward_pass: None if nobody takes part."""
        features = self.visual_features(pixels, prompt_ids)
        if forward_pass is not None:
            features = forward_pass.change_features(features)
        return self.projector(features)

    def visual_features(
        self,
        pixels: Tensor,
        prompt_ids: Tensor | None = None,
        sample: PatchSample | None = None,
    ) -> Tensor:
        """[B, cameras, 6, H, W] -> [B, cameras * patches, features], camera by camera.

        prompt_ids: needed if the prompt modulates the vision encoders. sample: run on these
        patches of the B * cameras images alone.
        """
        language = None
        if self.config.vision_reads_prompt:
            text = self.language_model.embed_words(prompt_ids)
            stop = self._stop_row(len(prompt_ids))
            language = torch.cat([text, stop], dim=1).mean(dim=1)
            language = language.repeat_interleave(pixels.shape[1], dim=0)
        features = self.vision_backbone(pixels.flatten(0, 1), sample, language)
        return features.reshape(len(pixels), -1, features.shape[-1])

    def _stop_row(self, batch: int) -> Tensor:
        stop = self.language_model.embed_tokens.weight[self.config.token_ids.stop]
        return stop.expand(batch, 1, -1)

    def assemble(
        self,
        visual: Tensor,
        proprio: Tensor,
        prompt_ids: Tensor,
        padded: bool | None = None,
    ) -> TokenSequence:
        """Lay out the rows of `nn.sequence`.

        The action slots are zero vectors, and so is the row 'time' behind proprio that a diffusion
        head needs. padded: None: prompts of batches may be. Padding sits before the prompt instead
        of at the end, where the reference has it: with explicit positions and hidden keys the
        place of a row does not matter, and the action rows are the same for the whole batch.
        """
        text = self.language_model.embed_words(prompt_ids)
        batch, _, width = text.shape
        slots = text.new_zeros(batch, self.config.action_slots, width)
        state = {'proprio': self.proprio_projector(proprio)} if self.config.proprio else {}
        if self.config.family.step_rows:
            state['time'] = text.new_zeros(batch, self.config.family.step_rows, width)
        prompt, stop = text[:, 1:], self._stop_row(batch)
        if slots.shape[1]:
            end = {'prompt': prompt, 'actions': slots, 'stop': stop}
        else:
            end = {'prompt': torch.cat([prompt, stop], dim=1)}
        rows = {'bos': text[:, :1], 'visual': visual, **state, **end}
        if padded or (padded is None and batch > 1):
            return TokenSequence.of(rows, words=prompt_ids[:, 1:] != self.config.pad_id)
        return TokenSequence.of(rows)

    def action_rows(self, convention: str) -> slice:
        """Rows the action head reads, counted from the end (dropped tokens do not move them)."""
        after = ACTION_ROWS[convention]
        return slice(-self.config.action_slots - after, -after or None)
