"""What the robot delivers, checked and turned into the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.encoding.padded import PaddedPreprocessor
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.encoding.prompt import PromptEncoder
from vla_policy_node.encoding.task_prompt import state_bins
from vla_policy_node.nn.config import ModelConfig


class Inputs(NamedTuple):
    """Tensors of one forward pass.

    pixels: [B, cameras, H, W, 3] from the encoder, in levels from 0 to 255, uint8 or, where the
        family does not round, float32; [B, cameras, 3 encoders, H, W] for the network, as each of
        its vision encoders wants them normalised.
    proprio: [B, P] normalised and not padded, [B, 0] for a policy that takes none.
    prompt_ids: [B, L] int64, as the encoder of the family makes them.
    """

    pixels: Tensor
    proprio: Tensor
    prompt_ids: Tensor


class InputEncoder:
    """Encodes images, proprio and instruction for one checkpoint. Any thread.

    camera_transforms: camera -> name in `encoding.preprocess.TRANSFORMS`, in the order in which
        the policy takes its cameras. may_miss: whether a camera without a picture is left out of
        `Inputs.pixels`; for families to which that is the same as hiding its tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        prompt: PromptEncoder,
        preprocessor: ImagePreprocessor | PaddedPreprocessor,
        statistics: Statistics,
        camera_transforms: Mapping[str, str],
        may_miss: bool = False,
    ):
        self.camera_transforms = camera_transforms
        self.may_miss = may_miss
        self.preprocessor = preprocessor
        self.prompt_template = prompt.text('{instruction}')
        self._prompt = prompt
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
        checked = {camera: _checked_image(images, camera) for camera in self.seen(images)}
        normalised = np.empty(0)
        if self._state:
            normalised = self._statistics.normalise_proprio(self._checked(proprio))
        prompt_ids = self.encode_prompt(instruction, normalised)
        pictures = [
            self.preprocessor.picture(image, self.camera_transforms[camera])
            for camera, image in checked.items()
        ]
        return Inputs(
            torch.from_numpy(np.stack(pictures))[None],
            torch.from_numpy(normalised)[None],
            torch.tensor(prompt_ids)[None],
        )

    def seen(self, images: Mapping[str, np.ndarray]) -> list[str]:
        """Cameras that the policy looks at, in its order; ValueError if it needs others."""
        if not self.may_miss:
            return [*self.camera_transforms]
        seen = [camera for camera in self.camera_transforms if camera in images]
        if not seen:
            raise ValueError(
                f'There is no image; the policy needs one of {", ".join(self.camera_transforms)}.')
        return seen

    def encode_prompt(self, instruction: str, state: np.ndarray | None = None) -> list[int]:
        """Prompt ids; ValueError if the instruction is empty or too long. Any thread.

        state: [P] normalised, for prompts with the state in them; None for one in the middle.
        """
        prompt_ids = self._encode(instruction, *self._words(state))
        most = self._prompt.most
        if most and len(prompt_ids) > most:
            raise ValueError(
                f'The instruction is too long: it makes {len(prompt_ids)} ids, and the policy was '
                f'trained with {most}, behind which the prompt was cut off; say it in fewer words.'
            )
        rows = self._fixed_rows + len(prompt_ids)
        if rows > self._context_rows:
            raise ValueError(
                f'The instruction is too long: it makes {rows} sequence rows, the policy takes '
                f'{self._context_rows}; say it in fewer words.'
            )
        return prompt_ids

    def prompts_of_all_lengths(self, instruction: str) -> list[list[int]]:
        """One prompt of each length that states make of an instruction, for fixed shapes."""
        if not self._prompt.reads_state:
            return [self.encode_prompt(instruction)]
        size = len(self._state)
        found = (self.encode_prompt(instruction, np.r_[np.zeros(long), np.full(size - long, -1.0)])
                 for long in range(size + 1))
        return [*{len(ids): ids for ids in found}.values()]

    def _words(self, state: np.ndarray | None) -> tuple[tuple[int, ...], ...]:
        """What a prompt is made of beside the instruction."""
        if not self._prompt.reads_state:
            return ()
        return (state_bins(np.zeros(len(self._state)) if state is None else state),)

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
