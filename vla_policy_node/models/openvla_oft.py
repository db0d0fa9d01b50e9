"""OpenVLA-OFT, any size, with its L1 or discrete head (Kim et al. 2025; arXiv 2502.19645)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vla_policy_node.models.config import PROPRIO_DIMENSION, ModelConfig
from vla_policy_node.models.dit import DiffusionTransformer
from vla_policy_node.models.heads import L1ActionHead, ProprioProjector, VocabularyHead
from vla_policy_node.models.towers import PatchSample, Projector, VisionBackbone
from vla_policy_node.nn.hooks import HookChain
from vla_policy_node.nn.masks import BIDIRECTIONAL, CAUSAL
from vla_policy_node.nn.sequence import TokenSequence, lay_out
from vla_policy_node.nn.transformer import Decoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vla_policy_node.nn.hooks import PassHooks

# Rows the head reads, as the number of rows between them and the end of the sequence.
# 'oft': each slot is predicted by the row before it, as training does: the last prompt row and
#     all slots but the last. 'last56': LightVLA's released inference, two rows later, which ends
#     on the stop token although its training used the rows of 'oft'.
ACTION_ROWS = {'oft': 2, 'last56': 0}


class OpenVlaOft(nn.Module):
    """Two cameras, proprio and a prompt in, one chunk of normalised actions out."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width = config.language_model.width
        self.vision_backbone = VisionBackbone(config.dino, config.siglip)
        self.projector = Projector(config.dino.width + config.siglip.width, width)
        self.language_model = Decoder(
            config.language_model, CAUSAL if config.causal else BIDIRECTIONAL)
        if config.proprio:
            self.proprio_projector = ProprioProjector(PROPRIO_DIMENSION, width)
        if config.head in ('discrete', 'autoregressive'):
            self.action_head = VocabularyHead(
                width,
                config.language_model.vocabulary,
                config.action_bins,
                config.action_ids_end,
            )
        elif config.head == 'cogact':
            self.action_head = DiffusionTransformer(config.dit, width, config.chunk_length)
        else:
            self.action_head = L1ActionHead(width)

    def forward(
        self,
        pixels: Tensor,
        proprio: Tensor,
        prompt_ids: Tensor,
        methods: Sequence[PassHooks] = (),
        action_rows: str = 'oft',
        mark: Callable[[str], None] = lambda stage: None,
    ) -> Tensor:
        """Run the stages in order and give each acceleration method its turn between them.

        pixels: [B, cameras, 6, H, W]. proprio: [B, 8] in [-1, 1]. prompt_ids: [B, L] int64,
        BOS first, `empty` last, `pad` right after BOS where a prompt is shorter than others of
        its batch. mark: called with the name of each stage as it ends.
        Returns normalised actions, [B, K, 7].
        """
        for method in methods:
            method.begin_pass()
        visual = self.visual(pixels, prompt_ids, methods)
        mark('vision')
        sequence = self.assemble(visual, proprio, prompt_ids)
        return self.act(self.decode(sequence, methods, action_rows, mark), methods)

    def act(self, states: Tensor, methods: Sequence[PassHooks] = ()) -> Tensor:
        """Hidden states of the action rows -> normalised actions [B, K, 7]."""
        return self.action_head(states)

    def visual(
        self, pixels: Tensor, prompt_ids: Tensor, methods: Sequence[PassHooks] = ()
    ) -> Tensor:
        """Visual tokens as rows of the sequence, [B, cameras * patches, width]."""
        features = self.visual_features(pixels, prompt_ids)
        for method in methods:
            features = method.visual_features(features)
        return self.projector(features)

    def decode(
        self,
        sequence: TokenSequence,
        methods: Sequence[PassHooks] = (),
        action_rows: str = 'oft',
        mark: Callable[[str], None] = lambda stage: None,
    ) -> Tensor:
        """Select tokens and run the language model: hidden states of the action rows."""
        for method in methods:
            sequence = method.select_tokens(sequence)
        mark('select')

        hooks = HookChain(methods, self.act)
        states = self.language_model(sequence, self.action_rows(action_rows), hooks)
        mark('language_model')
        return states

    def visual_features(
        self,
        pixels: Tensor,
        prompt_ids: Tensor | None = None,
        sample: PatchSample | None = None,
    ) -> Tensor:
        """[B, cameras, 6, H, W] -> [B, cameras * patches, features], camera by camera.

        prompt_ids: needed if the prompt modulates the towers. sample: run on these patches of
        the B * cameras images alone.
        """
        language = None
        if self.config.film:
            text = self.language_model.embed_tokens(prompt_ids)
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
        time: Tensor | None = None,
        slots: Tensor | None = None,
        padded: bool | None = None,
    ) -> TokenSequence:
        """Lay out the rows of `nn.sequence`; the action slots are zero vectors.

        time [B, 1, width] and slots [B, 7 K, width]: the row after proprio and the action slots
        of a diffusion head. padded: whether prompts may be filled up, None: those of batches.
        Padding sits before the prompt instead of at the end, where the reference has it: with
        explicit positions and hidden keys the place of a row does not matter, and the action
        rows are the same for the whole batch.
        """
        text = self.language_model.embed_tokens(prompt_ids)
        batch, _, width = text.shape
        if slots is None:
            slots = text.new_zeros(batch, self.config.action_slots, width)
        state = {'proprio': self.proprio_projector(proprio)} if self.config.proprio else {}
        state |= {} if time is None else {'time': time}
        prompt, stop = text[:, 1:], self._stop_row(batch)
        if slots.shape[1]:
            end = {'prompt': prompt, 'actions': slots, 'stop': stop}
        else:
            end = {'prompt': torch.cat([prompt, stop], dim=1)}
        rows = {'bos': text[:, :1], 'visual': visual, **state, **end}
        states = torch.cat([*rows.values()], dim=1)
        spans = lay_out({name: part.shape[1] for name, part in rows.items()})
        if not (batch > 1 if padded is None else padded):
            positions = torch.arange(states.shape[1], device=states.device).expand(batch, -1)
            return TokenSequence(states, positions, spans)
        real = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        first = 1 + visual.shape[1] + len(state)
        words = slice(first, first + prompt_ids.shape[1] - 1)
        real[:, words] = prompt_ids[:, 1:] != self.config.token_ids.pad
        return TokenSequence(
            states,
            positions=real.cumsum(1) - 1,
            spans=spans,
            key_bias=torch.zeros(real.shape, device=real.device).masked_fill(~real, -torch.inf),
        )

    def action_rows(self, convention: str) -> slice:
        """Rows the action head reads, counted from the end (dropped tokens do not move them)."""
        after = ACTION_ROWS[convention]
        return slice(-self.config.action_slots - after, -after or None)
