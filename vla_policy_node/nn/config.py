"""Sizes of a policy: what all families have; each adds its own in a subclass of `ModelConfig`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.transformer import DecoderConfig
from vla_policy_node.policy.interface import PolicySpec

STEP_WAVES = 256  # cosines and sines that tell a diffusion transformer its step


@dataclass(frozen=True)
class FamilyTraits:
    """What a family says of its policies where numbers of layers and widths do not.

    name: the `head` of config.json. family, head: words for reports. capabilities: what policies
    of the family let others do. action_slots: whether each number of the chunk has a row.
    step_rows: rows that say which denoising step it is. end_rows: rows behind the prompt and the
    slots. causal: whether a row of the language model sees only itself and what is before it.
    """

    name: str
    family: str
    head: str
    capabilities: frozenset[Capability] = frozenset()
    action_slots: bool = True
    step_rows: int = 0
    end_rows: int = 1
    causal: bool = False


@dataclass(frozen=True)
class VisionEncoderConfig:
    """One vision transformer, up to the block whose output is used."""

    width: int
    blocks: int  # blocks to run: the feature block and those before it
    heads: int
    mlp_width: int
    patch_px: int
    image_px: int
    class_token: bool
    register_tokens: int
    layer_scale: bool
    norm_eps: float = 1e-6
    language_width: int = 0  # of the text that modulates the features (FiLM); 0: none does

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in one image."""
        side = self.image_px // self.patch_px
        return side, side

    @property
    def least_weights(self) -> int:
        """Values in the large matrices of the blocks."""
        return self.blocks * self.width * (4 * self.width + 2 * self.mlp_width)


@dataclass(frozen=True)
class DitConfig:
    """CogACT's diffusion transformer; the defaults are those of CogACT-Base (DiT-B).

    training_steps: of the noise schedule. denoising_steps: of an inference. guidance: how far to
        move away from the prediction without condition; at most 1: not at all, at half the price.
    """

    blocks: int = 12
    width: int = 768
    heads: int = 12
    training_steps: int = 100
    denoising_steps: int = 10
    guidance: float = 1.5

    @property
    def mlp_width(self) -> int:
        """Width inside the feed-forward layers."""
        return 4 * self.width


@dataclass(frozen=True)
class TokenIds:
    """Special ids; the defaults are those of the Llama-2 tokenizer as OpenVLA uses it.

    empty: the id that training put between the prompt and the action tokens.
    pad: fills up the shorter prompts of a training batch.
    """

    bos: int = 1
    stop: int = 2
    empty: int = 29871
    pad: int = 32000


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """What others ask of the sizes of a policy, whatever its family.

    family: what sizes do not say; `families.read_model_config` recognises it from the files.
    language_model: the decoder that sees pictures and words, where methods have their hooks.
    spec: cameras, state and actions by name, and so how many there are; the state is empty if the
        network is not told it. ranges: of the data set, which become -1 and 1.
    trained: False only where the file says that the weights are random.
    action_rows: rows whose hidden states the action head reads, '' if the file does not say or
        the family leaves no choice (see `families.prismatic.ACTION_ROWS`).
    method_settings: method -> setting -> value, what acceleration methods were trained with.
    camera_transforms: camera -> what turned its upright pictures in training, if the file says.
    """

    family: FamilyTraits
    language_model: DecoderConfig
    spec: PolicySpec = field(default_factory=PolicySpec)
    ranges: tuple[str, str] = ('q01', 'q99')
    chunk_length: int = 8
    trained: bool = True
    action_rows: str = ''
    method_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict, hash=False)
    camera_transforms: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    @abstractmethod
    def image_px(self) -> int:
        """Side of the square images that vision encoders take."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens per camera."""

    @property
    @abstractmethod
    def other_rows(self) -> int:
        """Sequence rows that are neither visual tokens nor prompt."""

    @property
    @abstractmethod
    def rows_read(self) -> int:
        """Rows of the last layer that the action head reads."""

    @property
    @abstractmethod
    def architecture(self) -> str:
        """One line for logs and reports."""

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """Of the features of several vision encoders, which lie side by side; () for one."""
        return ()

    @property
    def vision_reads_prompt(self) -> bool:
        """Whether visual tokens depend on the prompt, which then cannot be filled up."""
        return False

    @property
    def pad_id(self) -> int | None:
        """Id in a prompt that only fills it up; None: the network knows no such id."""
        return None

    @property
    def patch_px(self) -> int:
        """Side of the part of a picture that one visual token stands for."""
        return self.image_px // self.grid[0]

    @property
    def cameras(self) -> int:
        """How many pictures there are."""
        return len(self.spec.cameras)

    @property
    def proprio(self) -> bool:
        """Whether the network is told the robot's state."""
        return bool(self.spec.state)

    @property
    def proprio_size(self) -> int:
        """Numbers of the state that the network is told."""
        return len(self.spec.state)

    @property
    def action_size(self) -> int:
        """Numbers of one action."""
        return len(self.spec.actions)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of all cameras."""
        return self.cameras * self.grid[0] * self.grid[1]

    def cameras_of(self, visual_tokens: int) -> int:
        """How many cameras so many visual tokens are of: some may have no picture in a step."""
        return visual_tokens // (self.grid[0] * self.grid[1])

    @property
    def action_slots(self) -> int:
        """Sequence rows reserved for the chunk: one per number of each action, or none."""
        return self.chunk_length * self.action_size if self.family.action_slots else 0

    @property
    def decoder_runs(self) -> int:
        """How often all rows go through the decoder in one inference."""
        return 1

    @property
    def causal(self) -> bool:
        """Whether a row of the language model sees only itself and what is before it."""
        return self.family.causal

    @property
    def least_weights(self) -> int:
        """Values in the large matrices: fewer than the model has."""
        text = self.language_model
        layer = text.width * (2 * text.query_width + 2 * text.key_width + 3 * text.mlp_width)
        return text.layers * layer + text.vocabulary * text.width

    def can(self, capability: Capability) -> bool:
        """Whether policies of this family can do something."""
        if capability is Capability.FIXED_SHAPES and self.pad_id is None:
            return False
        return capability in self.family.capabilities
