"""What a family of policies is: how its files are read, and what its network does in which stage.

A family is one file in this folder, found by being there. It says how a checkpoint becomes sizes
(`read_config`), where the weights of its network are (`locate`), how an observation becomes
tensors (`load_encoder`), what an inference costs (`count_flops`), and makes the network:

    embed       pictures, state and words -> rows with named spans
    prefill     rows -> hidden states that the action head reads
    decode      hidden states -> normalised actions: regressed, denoised or generated

Whoever runs a policy knows no more of it than this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from vla_policy_node.checkpoints.weights import MODEL
from vla_policy_node.encoding.prompt import PromptEncoder
from vla_policy_node.nn.config import FamilyTraits, ModelConfig
from vla_policy_node.nn.sequence import TokenSequence

if TYPE_CHECKING:
    from vla_policy_node.checkpoints.statistics import Statistics
    from vla_policy_node.encoding.encoder import InputEncoder
    from vla_policy_node.nn.flops import LayerRows
    from vla_policy_node.nn.hooks import PassHooks

Config = TypeVar('Config', bound=ModelConfig)


class PolicyNetwork(nn.Module, ABC):
    """The network of one policy. config: its sizes."""

    config: ModelConfig

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

        pixels: [B, cameras, 3 encoders, H, W]. proprio: [B, P] in [-1, 1].
        prompt_ids: [B, L] int64, as the encoder of the family makes them. mark:
        called with the name of each stage as it ends: 'vision', 'select', 'language_model'.
        Returns normalised actions, [B, K, A].
        """
        for method in methods:
            method.begin_pass()
        sequence = self.embed(pixels, proprio, prompt_ids, methods)
        mark('vision')
        return self.decode(self.prefill(sequence, methods, action_rows, mark), methods)

    @abstractmethod
    def embed(
        self, pixels: Tensor, proprio: Tensor, prompt_ids: Tensor,
        methods: Sequence[PassHooks] = (),
    ) -> TokenSequence:
        """Pictures, state and words -> rows with named spans."""

    @abstractmethod
    def prefill(
        self,
        sequence: TokenSequence,
        methods: Sequence[PassHooks] = (),
        action_rows: str = 'oft',
        mark: Callable[[str], None] = lambda stage: None,
    ) -> Tensor:
        """Rows -> hidden states that the action head reads.

        mark: called with 'select' and 'language_model' as these stages end.
        """

    @abstractmethod
    def decode(self, states: Tensor, methods: Sequence[PassHooks] = ()) -> Tensor:
        """Hidden states -> normalised actions [B, K, A]."""


class PolicyFamily(ABC, Generic[Config]):
    """One kind of policy, without weights, of sizes `Config`. traits: what sizes do not say."""

    traits: ClassVar[FamilyTraits]

    def recognises(self, directory: Path, parts: Collection[str]) -> bool:
        """Whether a checkpoint whose config.json names no `head` is of this family.

        parts: those of `checkpoints.layout.PARTS` that have files. ValueError for files that can
        only be of this family, and do not make a policy.
        """
        return False

    @abstractmethod
    def config_of(self, document: Mapping) -> Config:
        """Parsed `config.json` -> sizes; ValueError with one sentence if they cannot be."""

    def read_config(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> Config:
        """As `config_of`, with what the other files of the checkpoint say besides."""
        return self.config_of(document)

    def with_chunk_length(self, config: Config, chunk_length: int) -> Config:
        """Let the policy answer with so many actions, if weights do not fix how many."""
        return config

    def entries(self, config: Config) -> dict[str, object]:
        """Return what `config.json` must say where the other files do not."""
        return {}

    @abstractmethod
    def create_network(self, config: Config) -> PolicyNetwork:
        """Build the network with weights that are not initialised for any use."""

    def locate(self, name: str, config: Config) -> tuple[str, str]:
        """Return the file kind that holds a tensor of the network, and its name in there.

        The kind is MODEL or one of `checkpoints.layout.PARTS`.
        """
        return MODEL, name

    def load_prompt(self, directory: Path, config: Config) -> PromptEncoder:
        """What turns an instruction into ids; ValueError if its file cannot be used."""
        return PromptEncoder.load(directory / 'tokenizer.json', config.language_model.vocabulary)

    @abstractmethod
    def load_encoder(
        self,
        directory: Path,
        config: Config,
        statistics: Statistics,
        camera_transforms: Mapping[str, str],
        preprocessing: str = 'exact',
    ) -> InputEncoder:
        """What turns observations into tensors; ValueError if its files cannot be used."""

    def sequence_rows(self, config: Config, prompt_ids: int) -> int:
        """Return the rows of a first pass from which nothing is dropped; prompt_ids: how many."""
        return prompt_ids + config.visual_tokens + config.other_rows

    @abstractmethod
    def count_flops(
        self,
        config: Config,
        layer_rows: Sequence[int] | Sequence[LayerRows],
        denoising_reused: int = 0,
    ) -> dict[str, int]:
        """Return the FLOPs of one inference, batch 1, by stage, counted as in `nn.flops`.

        layer_rows: of each layer of the language model that ran, one after the other.
        denoising_reused: denoising steps that reused what the head's blocks did in another one.
        Stages are 'vision', 'language_model' (with what makes its rows) and 'head'. What an
        acceleration method computes itself is in its `Report`.
        """
