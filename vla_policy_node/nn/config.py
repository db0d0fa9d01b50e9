"""Sizes of a policy; `checkpoints.config_file` reads them from a `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.transformer import DecoderConfig

ACTION_DIMENSION = 7
PROPRIO_DIMENSION = 8
STEP_WAVES = 256  # cosines and sines that tell a diffusion transformer its step
@dataclass(frozen=True)
class FamilyTraits:
    """What a family says of its policies where numbers of layers and widths do not.

    name: the `head` of config.json. family, head: words for reports. capabilities: what policies
    of the family let others do. action_slots: rows of the sequence for one action of the chunk.
    step_rows: rows that say which denoising step it is. end_rows: rows behind the prompt and the
    slots. causal: whether a row of the language model sees only itself and what is before it.
    """

    name: str
    family: str
    head: str
    capabilities: frozenset[Capability] = frozenset()
    action_slots: int = ACTION_DIMENSION
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


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides shapes and meaning of a checkpoint's tensors.

    action_rows: rows whose hidden states the action head reads, '' if the file does not say
        (see `families.prismatic.ACTION_ROWS`).
    trained: False only where the file says that the weights are random.
    family: what sizes do not say; `families.read_model_config` recognises it from the files.
    proprio: whether the robot's state is a row of the sequence.
    cameras: how many images, the first one third-person.
    action_bins, action_ids_end: heads that predict tokens divide [-1, 1] into so many bins; the
        ids count down from the end of the tokenizer's vocabulary, which padding follows.
    diffusion_steps: denoising steps, of training and of inference, of OpenVLA-OFT's diffusion.
    dit: the action head of CogACT, which no other policy has.
    method_settings: method -> setting -> value, what acceleration methods were trained with.
    """

    dino: VisionEncoderConfig
    siglip: VisionEncoderConfig
    language_model: DecoderConfig
    token_ids: TokenIds
    family: FamilyTraits
    chunk_length: int = 8
    center_crop: bool = True
    action_rows: str = ''
    trained: bool = True
    proprio: bool = True
    cameras: int = 2
    action_bins: int = 256
    action_ids_end: int = 32000
    diffusion_steps: int = 50
    dit: DitConfig | None = None
    method_settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict, hash=False)

    @property
    def image_px(self) -> int:
        """Side of the square images that both vision encoders take."""
        return self.dino.image_px

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of visual tokens per camera."""
        return self.dino.grid

    @property
    def action_slots(self) -> int:
        """Sequence rows reserved for the chunk: one per action dimension and time step."""
        return self.chunk_length * self.family.action_slots

    @property
    def rows_read(self) -> int:
        """Rows of the last layer that the action head reads: the slots, or the cognition token."""
        return self.action_slots or 1

    @property
    def causal(self) -> bool:
        """Whether a row of the language model sees only itself and what is before it."""
        return self.family.causal

    @property
    def state_rows(self) -> int:
        """Rows between visual tokens and prompt: proprio, and the step of a diffusion head."""
        return self.proprio + self.family.step_rows

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of all cameras."""
        return self.cameras * self.grid[0] * self.grid[1]

    @property
    def other_rows(self) -> int:
        """Sequence rows that are neither visual tokens nor prompt."""
        return self.action_slots + self.state_rows + self.family.end_rows

    @property
    def least_weights(self) -> int:
        """Values in the large matrices of vision encoders and decoder: less than the model has."""
        encoders = sum(
            encoder.blocks * encoder.width * (4 * encoder.width + 2 * encoder.mlp_width)
            for encoder in (self.dino, self.siglip)
        )
        text = self.language_model
        layer = text.width * (
            2 * text.query_width + 2 * text.key_width + 3 * text.mlp_width)
        return encoders + text.layers * layer + text.vocabulary * text.width

    @property
    def film(self) -> bool:
        """Whether the prompt modulates the vision encoders."""
        return self.dino.language_width > 0

    @property
    def architecture(self) -> str:
        """One line for logs and reports."""
        encoders = ' + '.join(
            f'{name} {encoder.blocks}x{encoder.width}'
            for name, encoder in (('DINOv2', self.dino), ('SigLIP', self.siglip))
        )
        decoder = self.language_model
        film = ' with FiLM' if self.film else ''
        head = self.family.head + (f' {self.dit.blocks}x{self.dit.width}' if self.dit else '')
        return (f'{self.family.family}: {encoders}{film}, Llama {decoder.layers}x{decoder.width}, '
                f'{head}')

    def can(self, capability: Capability) -> bool:
        """Whether policies of this family can do something."""
        return capability in self.family.capabilities
