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
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from vla_policy_node.checkpoints.weights import MODEL
from vla_policy_node.encoding.encoder import InputEncoder
from vla_policy_node.nn.config import FamilyTraits, ModelConfig
from vla_policy_node.nn.sequence import TokenSequence

if TYPE_CHECKING:
    from vla_policy_node.checkpoints.statistics import Statistics
    from vla_policy_node.nn.flops import LayerRows
    from vla_policy_node.nn.hooks import PassHooks


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

        pixels: [B, cameras, 6, H, W]. proprio: [B, 8] in [-1, 1]. prompt_ids: [B, L] int64, as
        the encoder of the family makes them. mark: called with the name of each stage as it ends:
        'vision', 'select', 'language_model'. Returns normalised actions, [B, K, 7].
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
        """Hidden states -> normalised actions [B, K, 7]."""


class PolicyFamily(ABC):
    """One kind of policy, without weights. traits: what sizes do not say."""

    traits: ClassVar[FamilyTraits]

    def recognises(self, directory: Path, parts: Collection[str]) -> bool:
        """Whether a checkpoint whose config.json names no `head` is of this family.

        parts: those of `checkpoints.layout.PARTS` that have files. ValueError for files that can
        only be of this family, and do not make a policy.
        """
        return False

    @abstractmethod
    def config_of(self, document: Mapping) -> ModelConfig:
        """Parsed `config.json` -> sizes; ValueError with one sentence if they cannot be."""

    def read_config(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> ModelConfig:
        """As `config_of`, with what the other files of the checkpoint say besides."""
        return self.config_of(document)

    def with_chunk_length(self, config: ModelConfig, chunk_length: int) -> ModelConfig:
        """Let the policy answer with so many actions, if weights do not fix how many."""
        return config

    def entries(self, config: ModelConfig) -> dict[str, object]:
        """Return what `config.json` must say where the other files do not."""
        return {}

    @abstractmethod
    def create_network(self, config: ModelConfig) -> PolicyNetwork:
        """Build the network with weights that are not initialised for any use."""

    def locate(self, name: str, config: ModelConfig) -> tuple[str, str]:
        """Return the file kind that holds a tensor of the network, and its name in there.

        The kind is MODEL or one of `checkpoints.layout.PARTS`.
        """
        return MODEL, name

    def load_encoder(
        self,
        directory: Path,
        config: ModelConfig,
        statistics: Statistics,
        camera_transforms: Mapping[str, str],
        preprocessing: str = 'exact',
    ) -> InputEncoder:
        """What turns observations into tensors; ValueError if its files cannot be used."""
        return InputEncoder.load(directory, config, statistics, camera_transforms, preprocessing)

    def sequence_rows(self, config: ModelConfig, prompt_ids: int) -> int:
        """Return the rows of a first pass from which nothing is dropped; prompt_ids: how many."""
        return prompt_ids + config.visual_tokens + config.other_rows

    @abstractmethod
    def count_flops(
        self,
        config: ModelConfig,
        layer_rows: Sequence[int] | Sequence[LayerRows],
        denoising_reused: int = 0,
    ) -> dict[str, int]:
        """Return the FLOPs of one inference, batch 1, by stage, counted as in `nn.flops`.

        layer_rows: of each layer of the language model that ran, one after the other.
        denoising_reused: denoising steps that reused what the head's blocks did in another one.
        Stages are 'vision', 'language_model' (with what makes its rows) and 'head'. What an
        acceleration method computes itself is in its `Report`.
        """
