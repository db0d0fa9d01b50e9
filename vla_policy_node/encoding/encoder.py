"""What the robot delivers, checked and turned into the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.checkpoints.layout import read_normalisation
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.encoding.prompt import PromptEncoder
from vla_policy_node.nn.config import PROPRIO_DIMENSION, ModelConfig


class InputEncoder:
    """Encodes images, proprio and instruction for one checkpoint. Any thread.

    camera_transforms: camera -> name in `encoding.preprocess.TRANSFORMS`, in the order in which
        the policy takes its cameras.
    """

    def __init__(
        self,
        config: ModelConfig,
        prompt: PromptEncoder,
        preprocessor: ImagePreprocessor,
        statistics: Statistics,
        camera_transforms: Mapping[str, str],
    ):
        self.camera_transforms = camera_transforms
        self.preprocessor = preprocessor
        self._encode = lru_cache(maxsize=16)(prompt.encode)
        self._statistics = statistics
        self._context_rows = config.language_model.context_length
        self._proprio = config.proprio
        self._fixed_rows = config.visual_tokens + config.other_rows

    @classmethod
    def load(
        cls,
        directory: Path,
        config: ModelConfig,
        statistics: Statistics,
        camera_transforms: Mapping[str, str],
        preprocessing: str = 'exact',
    ) -> InputEncoder:
        """Read tokenizer and normalisation of a checkpoint; ValueError if they cannot be used."""
        document = read_normalisation(directory)
        return cls(
            config,
            PromptEncoder.load(directory / 'tokenizer.json', config),
            ImagePreprocessor(document, config.image_px, config.center_crop, preprocessing),
            statistics,
            camera_transforms,
        )

    def encode(
        self, images: Mapping[str, np.ndarray], proprio: np.ndarray, instruction: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return pictures [1, cameras, H, W, 3] uint8, proprio [1, 8] and prompt ids [1, L].

        proprio is [1, 0] for a policy that takes none, whatever the robot says.
        ValueError with one sentence for whatever the policy cannot use.
        """
        checked = {camera: _checked_image(images, camera) for camera in self.camera_transforms}
        normalised = np.empty(0)
        if self._proprio:
            normalised = self._statistics.normalise_proprio(_checked_proprio(proprio))
        prompt_ids = self.encode_prompt(instruction)
        pictures = [
            self.preprocessor.picture(image, self.camera_transforms[camera])
            for camera, image in checked.items()
        ]
        return (
            torch.from_numpy(np.stack(pictures))[None],
            torch.from_numpy(normalised)[None],
            torch.tensor(prompt_ids)[None],
        )

    def encode_prompt(self, instruction: str) -> list[int]:
        """Prompt ids; ValueError if the instruction is empty or too long. Any thread."""
        prompt_ids = self._encode(instruction)
        rows = self._fixed_rows + len(prompt_ids)
        if rows > self._context_rows:
            raise ValueError(
                f'The instruction is too long: it makes {rows} sequence rows, the policy takes '
                f'{self._context_rows}.'
            )
        return prompt_ids


def _checked_image(images: Mapping[str, np.ndarray], camera: str) -> np.ndarray:
    if camera not in images:
        raise ValueError(f'There is no image of the camera {camera!r}; the policy needs it.')
    image = images[camera]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f'The image of camera {camera!r} must be uint8 with shape (height, width, 3), '
            f'not {image.dtype} with shape {image.shape}.'
        )
    return image


def _checked_proprio(proprio: np.ndarray) -> np.ndarray:
    proprio = np.asarray(proprio, np.float64)
    if proprio.shape != (PROPRIO_DIMENSION,):
        raise ValueError(
            f'Proprio must have shape ({PROPRIO_DIMENSION},): position, axis-angle and two '
            f'finger positions, not {proprio.shape}.'
        )
    if not np.isfinite(proprio).all():
        raise ValueError(f'Proprio must be finite, got {proprio.tolist()}.')
    return proprio
