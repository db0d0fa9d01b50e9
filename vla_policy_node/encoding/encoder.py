"""What the robot delivers, checked and turned into the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.encoding.prompt import PromptEncoder
from vla_policy_node.nn.config import ModelConfig


class Inputs(NamedTuple):
    """Tensors of one forward pass.

    pixels: [B, cameras, H, W, 3] uint8 from the encoder, [B, cameras, 3 encoders, H, W] for the
        network, as each of its vision encoders wants them normalised.
    proprio: [B, P] in [-1, 1], [B, 0] for a policy that takes none.
    prompt_ids: [B, L] int64, as the encoder of the family makes them.
    """

    pixels: Tensor
    proprio: Tensor
    prompt_ids: Tensor


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
        self.prompt_template = prompt.text('{instruction}')
        self._encode = lru_cache(maxsize=16)(prompt.encode)
        self._statistics = statistics
        self._context_rows = config.language_model.context_length
        self._state = tuple(quantity.name for quantity in config.spec.state)
        self._fixed_rows = config.visual_tokens + config.other_rows

    def encode(
        self, images: Mapping[str, np.ndarray], proprio: np.ndarray, instruction: str
    ) -> Inputs:
        """Return tensors of batch 1; what a policy does not take is empty.

        ValueError with one sentence for whatever the policy cannot use.
        """
        checked = {camera: _checked_image(images, camera) for camera in self.camera_transforms}
        normalised = np.empty(0)
        if self._state:
            normalised = self._statistics.normalise_proprio(self._checked(proprio))
        prompt_ids = self.encode_prompt(instruction)
        pictures = [
            self.preprocessor.picture(image, self.camera_transforms[camera])
            for camera, image in checked.items()
        ]
        return Inputs(
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
                f'{self._context_rows}; say it in fewer words.'
            )
        return prompt_ids

    def _checked(self, proprio: np.ndarray) -> np.ndarray:
        proprio = np.asarray(proprio, np.float64)
        if proprio.shape != (len(self._state),):
            raise ValueError(
                f'Proprio must have shape ({len(self._state)},): {", ".join(self._state)}, not '
                f'{proprio.shape}.'
            )
        if not np.isfinite(proprio).all():
            raise ValueError(f'Proprio must be finite, got {proprio.tolist()}.')
        return proprio


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
