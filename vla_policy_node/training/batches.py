"""From recorded frames to the tensors of one training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import pad

from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.encoding.padded import PaddedPreprocessor
from vla_policy_node.encoding.preprocess import ImagePreprocessor
from vla_policy_node.encoding.prompt import PromptEncoder
from vla_policy_node.encoding.task_prompt import TaskPrompt, state_bins
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.training import augmentation
from vla_policy_node.training.demonstrations import Frame
from vla_policy_node.world.words import GOALS, basket_instruction, object_words

LABELS_PX = 112  # side of the label images before they are counted per token, at most
NOT_THINGS = ('arm',)
_Counts = TypeVar('_Counts', np.ndarray, Tensor)


@dataclass(frozen=True)
class Batch:
    """One batch; B samples, C cameras, P patches a camera, N things named, K steps a chunk.

    pixels [B, C, 3 encoders, H, W] and proprio [B, P], normalised; prompt_ids [B, L], padded after
    BOS; actions [B, K, D], normalised, and has_actions [B] bool, False for scenes without any.
    name_ids [B, N, S] int64, the words of each thing, -1 beyond; coverage [B, C, N, P], share of
    each patch that the thing fills; offset [B, N, 3] m, where it is from the hand, and place
    [B, C, N, 3] m, where each camera can tell that it is: in the world, and seen from the hand;
    asked [B] int64, which of the things the instruction is about; goal [B] int64, where it
    belongs; things [B, C, P] bool, patches with anything on them, the gripper included. Without
    labels there are no things: N is 0.
    """

    pixels: Tensor
    proprio: Tensor
    prompt_ids: Tensor
    actions: Tensor
    has_actions: Tensor
    name_ids: Tensor
    coverage: Tensor
    offset: Tensor
    place: Tensor
    asked: Tensor
    goal: Tensor
    things: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move everything."""
        return Batch(**{
            field.name: getattr(self, field.name).to(device, non_blocking=True)
            for field in fields(self)
        })


@dataclass(frozen=True)
class View:
    """What is seen in one frame, N things and P patches in each of C pictures.

    pictures: [C, H, W, 3] uint8, as the vision encoders see them. counts: [C, N, P] uint8, pixels
    of the label image that show the thing (int16 where a patch has more than 255). things: [C, P]
    bool, patches with anything on them.
    """

    pictures: np.ndarray
    counts: np.ndarray
    things: np.ndarray


class BatchMaker:
    """Encodes frames for one model. Holds no state; any thread."""

    def __init__(
        self,
        config: ModelConfig,
        prompt: PromptEncoder,
        preprocessor: ImagePreprocessor | PaddedPreprocessor,
        statistics: Statistics,
        crop_shift: float,
        colour_strength: float,
    ):
        """crop_shift, colour_strength: see `augmentation`; 0 and 0 for none."""
        self._config = config
        self._prompt = prompt
        self._preprocessor = preprocessor
        self._statistics = statistics
        self._crop_shift = crop_shift
        self._colour_strength = colour_strength

    def plain(self) -> BatchMaker:
        """Return one that does not augment."""
        return BatchMaker(
            self._config, self._prompt, self._preprocessor, self._statistics, 0.0, 0.0)

    def __call__(self, frames: Sequence[Frame], rng: np.random.Generator) -> Batch:
        """Put frames of one suite together, augmented by `rng`."""
        views = [self.look(frame, rng) for frame in frames]
        return Batch(
            pixels=torch.stack([
                torch.stack([self._preprocessor.normalise(image) for image in view.pictures])
                for view in views
            ]),
            coverage=_floats(_pad_first([self.coverage(view.counts) for view in views], axis=1)),
            things=torch.from_numpy(np.stack([view.things for view in views])),
            **self.facts(frames),
            **self.questions(frames),
        )

    def look(self, frame: Frame, rng: np.random.Generator) -> View:
        """See one frame as the vision encoders will: most of the work."""
        pictures, counts, things = [], [], []
        wanted = [frame.segments.index(name) for name in frame.objects]
        thing = [i for i, name in enumerate(frame.segments) if name not in NOT_THINGS]
        for camera in self._config.spec.cameras:
            corner = augmentation.draw_crop(self._crop_shift, rng)
            image = self._cut(frame.images[camera], corner, self._config.image_px, False)
            pictures.append(augmentation.jitter_colours(image, self._colour_strength, rng))
            per_patch = np.zeros((0, self._config.grid[0] * self._config.grid[1]), np.uint8)
            if camera in frame.labels:
                rows = self._config.grid[0]
                labels = self._cut(
                    frame.labels[camera], corner, LABELS_PX // rows * rows, labels=True)
                per_patch = self._count(labels, len(frame.segments))
            counts.append(per_patch[wanted])
            things.append(per_patch[thing].any(0))
        return View(np.stack(pictures), np.stack(counts), np.stack(things))

    def _cut(
        self, image: np.ndarray, corner: tuple[float, float], side_px: int, labels: bool
    ) -> np.ndarray:
        if isinstance(self._preprocessor, ImagePreprocessor):
            return augmentation.cut(image, corner, side_px, labels)
        if self._crop_shift:
            image = augmentation.cut_out(image, corner)
        return self._preprocessor.fitted(image, side_px, labels)

    def coverage(self, counts: _Counts) -> _Counts:
        """Pixels of the label image in a patch -> share of the patch."""
        return counts / (LABELS_PX // self._config.grid[0]) ** 2

    def facts(self, frames: Sequence[Frame]) -> dict[str, Tensor]:
        """Of a `Batch` what does not depend on the pictures, nor on what is asked for."""
        names = [[self._words(name) for name in frame.objects] for frame in frames]
        states = [self._state(frame) for frame in frames]
        proprio, actions, offset, place = zip(*states, strict=True)
        return {
            'proprio': _floats(proprio),
            'actions': _floats(actions),
            'offset': _floats(_pad_first(offset, axis=0)),
            'place': _floats(_pad_first(place, axis=1)),
            'has_actions': torch.tensor([frame.has_actions for frame in frames]),
            'name_ids': _pad_names(names),
            'goal': torch.tensor([_place(frame, GOALS.get(frame.suite)) for frame in frames]),
        }

    def questions(self, frames: Sequence[Frame]) -> dict[str, Tensor]:
        """Of a `Batch` what is asked for, and in which words."""
        prompts = [self._prompt_of(frame) for frame in frames]
        return {
            'prompt_ids': _pad_prompts(prompts, self._config.pad_id or 0),
            'asked': torch.tensor([_place(frame, frame.target) for frame in frames]),
        }

    def concatenate(self, batches: Sequence[Batch]) -> Batch:
        """Put batches one after the other; where one names fewer things, it is filled up."""
        if len(batches) == 1:
            return batches[0]
        shapes = [(*batch.name_ids.shape[1:], batch.prompt_ids.shape[1]) for batch in batches]
        largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        padded = [self._fill_up(batch, *largest) for batch in batches]
        return Batch(**{
            field.name: torch.cat([getattr(batch, field.name) for batch in padded])
            for field in fields(Batch)
        })

    def _fill_up(self, batch: Batch, things: int, words: int, prompt: int) -> Batch:
        more = things - batch.name_ids.shape[1]
        missing_words = words - batch.name_ids.shape[2]
        bos, rest = batch.prompt_ids[:, :1], batch.prompt_ids[:, 1:]
        missing = prompt - 1 - rest.shape[1]
        return replace(
            batch,
            name_ids=pad(batch.name_ids, (0, missing_words, 0, more), value=-1),
            coverage=pad(batch.coverage, (0, 0, 0, more)),
            offset=pad(batch.offset, (0, 0, 0, more)),
            place=pad(batch.place, (0, 0, 0, more)),
            prompt_ids=torch.cat(
                [bos, pad(rest, (missing, 0), value=self._config.pad_id or 0)], dim=1),
        )

    def _prompt_of(self, frame: Frame) -> list[int]:
        if isinstance(self._prompt, TaskPrompt) and self._prompt.reads_state:
            return self._prompt.encode(
                frame.instruction,
                state_bins(self._statistics.normalise_proprio(frame.proprio)))
        return self._prompt.encode(frame.instruction)

    def _state(self, frame: Frame) -> tuple[np.ndarray, ...]:
        offset = from_hand = frame.object_position
        if frame.objects:  # of LIBERO, whose states begin with the pose of the hand
            offset = frame.object_position - frame.proprio[:3]
            from_hand = Rotation.from_rotvec(frame.proprio[3:6]).inv().apply(offset)
        return (
            self._statistics.normalise_proprio(frame.proprio)
            if self._config.proprio else np.empty(0),
            self._statistics.normalise_actions(frame.actions),
            offset,
            np.stack([frame.object_position, from_hand][: self._config.cameras]),
        )

    def _count(self, labels: np.ndarray, segments: int) -> np.ndarray:
        """[px, px] uint8, segment + 1 or 0 -> [segments, P], pixels in each patch."""
        rows, columns = self._config.grid
        side = LABELS_PX // rows
        patches = labels.reshape(rows, side, columns, side).swapaxes(1, 2)
        patches = patches.reshape(rows * columns, side * side)
        dtype = np.uint8 if side * side < 256 else np.int16
        return (patches == np.arange(1, segments + 1)[:, None, None]).sum(-1, dtype=dtype)

    def _words(self, name: str) -> list[int]:
        """Ids of an object's name without BOS: 'alphabet_soup_1' is ' alphabet soup'."""
        return self._prompt.words(object_words(name))


def questions_of(frame: Frame) -> list[Frame]:
    """The frame with each instruction that it can answer.

    One without actions can be asked for any of its things, where the words are known.
    """
    if frame.has_actions or frame.suite != 'libero_object':
        return [frame]
    return [
        replace(frame, target=name, instruction=basket_instruction(name))
        for name in frame.objects if name != GOALS[frame.suite]
    ]


def _place(frame: Frame, name: str | None) -> int:
    """Which of its objects it is; 0 where there are none, which no loss then reads."""
    return frame.objects.index(name) if frame.objects else 0


def _floats(values: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(values).astype(np.float32))


def _pad_prompts(prompts: Sequence[Sequence[int]], filler: int) -> Tensor:
    longest = max(map(len, prompts))
    return torch.tensor([
        [prompt[0], *[filler] * (longest - len(prompt)), *prompt[1:]] for prompt in prompts
    ])


def _pad_names(names: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    count = max(map(len, names))
    longest = max((len(words) for scene in names for words in scene), default=0)
    padded = np.full((len(names), count, longest), -1, np.int64)
    for scene, row in zip(names, padded, strict=True):
        for words, place in zip(scene, row, strict=False):
            place[: len(words)] = words
    return torch.from_numpy(padded)


def _pad_first(arrays: Sequence[np.ndarray], axis: int) -> list[np.ndarray]:
    """Pad with zeros along the axis that counts things, which scenes may have more or less of."""
    longest = max(array.shape[axis] for array in arrays)
    return [
        np.pad(array, [(0, longest - size if i == axis else 0)
                       for i, size in enumerate(array.shape)])
        for array in arrays
    ]
