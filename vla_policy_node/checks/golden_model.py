"""A checkpoint in float32, with the inputs of a recording as model inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.checkpoints.config_file import MAX_VOCABULARY
from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.layout import read_json
from vla_policy_node.checkpoints.statistics import Statistics, read_statistics
from vla_policy_node.encoding.encoder import Inputs
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.encoding.prompt import end_with_empty
from vla_policy_node.families import read_model_config
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.runtime.loading import load_model


@dataclass(frozen=True)
class GoldenModel:
    """What a checkpoint directory makes of raw inputs.

    document: its `preprocessor_config.json`. placeholder: id at the action positions of the
    recorded id sequences; only their number matters to the model.
    """

    model: PrismaticVla
    statistics: Statistics
    document: Mapping
    placeholder: int
    device: str

    @classmethod
    def load(
        cls, directory: Path, device: str, statistics_key: str = '', chunk_length: int = 0
    ) -> GoldenModel:
        """Load in float32.

        statistics_key: may be empty if there is one data set. chunk_length: as recorded, 0 for
        what the checkpoint says.
        """
        config = read_model_config(directory)
        if not isinstance(config, PrismaticConfig) or not config.can(Capability.REGRESSION):
            raise ValueError(
                f'Recordings are of policies with an L1 head; {directory} has a '
                f'{config.family.name} head.'
            )
        if chunk_length:
            config = replace(config, chunk_length=chunk_length)
        statistics = read_json(directory, 'dataset_statistics.json')
        document = Entries(read_json(directory, 'config.json'), 'config.json')
        special = document.inside('tiny_token_ids', {})
        return cls(
            model=load_model(directory, config, device, 'float32'),
            statistics=read_statistics(statistics, statistics_key, config.spec, config.ranges),
            document=read_json(directory, 'preprocessor_config.json'),
            placeholder=special.integer('placeholder', 0, MAX_VOCABULARY, 1),
            device=device,
        )

    def preprocess(self, images: list[np.ndarray], center_crop: bool) -> Tensor:
        """[H, W, 3] uint8 per camera -> [1, N, 6, side, side] float32."""
        preprocessor = ImagePreprocessor(self.document, self.model.config.image_px, center_crop)
        return torch.stack([preprocessor(image) for image in images])[None]

    def prompt(self, prompt_ids: np.ndarray) -> list[int]:
        """Recorded ids, with the trailing one of training if the recording leaves it out."""
        return end_with_empty(prompt_ids.tolist(), self.model.config.token_ids.empty)

    def inputs(
        self, pixels: Tensor, proprio_raw: np.ndarray, prompt_ids: np.ndarray
    ) -> Inputs:
        """One sample as a batch of one."""
        proprio = torch.from_numpy(self.statistics.normalise_proprio(proprio_raw))
        return Inputs(
            pixels.to(self.device),
            proprio[None].float().to(self.device),
            torch.tensor([self.prompt(prompt_ids)], device=self.device),
        )

    def assemble(self, inputs: Inputs) -> tuple[Tensor, TokenSequence]:
        """Projected visual tokens, and the sequence that enters the language model."""
        visual = self.model.visual(inputs.pixels, inputs.prompt_ids)
        return visual, self.model.assemble(visual, inputs.proprio, inputs.prompt_ids)

    def unnormalise(self, actions: Tensor) -> np.ndarray:
        """[K, A] normalised float32 -> float64 in dataset units."""
        return self.statistics.unnormalise_actions(actions.double().cpu().numpy())
