"""What a family of policies is: how its files are read, and what its network does in which stage.

A family is one file in this folder, found by being there. It says how a checkpoint becomes sizes
(`read_config`), where the weights of its network are (`locate`), how an observation becomes
tensors (`load_encoder`), what an inference costs (`count_flops`), and makes the network:

    embed       pictures, state and words -> rows with named spans, in two stages:
        visual      pictures -> visual rows
        assemble    those, state and words -> all rows
    prefill     rows -> what is the same for all that follows: hidden states, keys and values
    decode      those -> normalised actions: regressed, denoised or generated

A `ForwardPass` goes with them from stage to stage. Whoever runs a policy knows no more of it than
this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn

from vla_policy_node.checkpoints.adapter import folders, place
from vla_policy_node.checkpoints.layout import read_statistics_document
from vla_policy_node.checkpoints.statistics import Statistics, read_statistics
from vla_policy_node.checkpoints.weights import MODEL
from vla_policy_node.encoding.encoder import Inputs
from vla_policy_node.encoding.prompt import PromptEncoder
from vla_policy_node.nn.config import FamilyTraits, ModelConfig
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.nn.transformer import Decoder

if TYPE_CHECKING:
    from vla_policy_node.encoding.encoder import InputEncoder
    from vla_policy_node.nn.flops import LayerRows

Config = TypeVar('Config', bound=ModelConfig)


def kind_of(document: Mapping) -> object:
    """Return what a parsed config.json calls its policy, as transformers or LeRobot write it."""
    return document.get('model_type', document.get('type'))


class PolicyNetwork(nn.Module, ABC):
    """The network of one policy.

    config: its sizes. language_model: the decoder that sees pictures and words.
    """

    config: ModelConfig
    language_model: Decoder

    def forward(self, inputs: Inputs, forward_pass: ForwardPass | None = None) -> Tensor:
        """Run the stages in order: normalised actions, [B, K, A].

        forward_pass: None if nobody takes part.
        """
        forward_pass = forward_pass or ForwardPass()
        forward_pass.begin()
        sequence = self.embed(inputs, forward_pass)
        forward_pass.mark('vision')
        decoded = self.decode(self.prefill(sequence, forward_pass), forward_pass)
        return self.to_actions(decoded)

    def decoders(self) -> tuple[Decoder, ...]:
        """Those that must have the same layers: what is taken out of one, all lose."""
        return (self.language_model,)

    def embed(self, inputs: Inputs, forward_pass: ForwardPass) -> TokenSequence:
        """Pictures, state and words -> rows with named spans."""
        pixels, proprio, prompt_ids = inputs
        visual = self.visual(pixels, prompt_ids, forward_pass)
        return self.assemble(visual, proprio, prompt_ids)

    @abstractmethod
    def visual(
        self, pixels: Tensor, prompt_ids: Tensor | None, forward_pass: ForwardPass
    ) -> Tensor:
        """Pictures -> visual rows, [B, visual tokens, width], camera by camera.

        prompt_ids: may be None unless `config.vision_reads_prompt`.
        """

    @abstractmethod
    def assemble(
        self,
        visual: Tensor,
        proprio: Tensor,
        prompt_ids: Tensor,
        padded: bool | None = None,
    ) -> TokenSequence:
        """Visual rows, state and words -> all rows.

        padded: whether ids that are `config.pad_id` only fill up a prompt and are to be hidden,
        so that the result is that of the prompt without them; they stand right behind its first
        id. Fixed shapes need it. None: whatever batches of the family need.
        """

    @abstractmethod
    def prefill(self, sequence: TokenSequence, forward_pass: ForwardPass) -> Any:
        """Rows -> what `decode` reads; the methods select tokens first (stage 'select')."""

    @abstractmethod
    def decode(self, context: Any, forward_pass: ForwardPass) -> Tensor:
        """What `prefill` made -> normalised actions [B, K, A], or what `to_actions` reads.

        The stage 'language_model' ends with the last layer that runs, here or in `prefill`.
        """

    def to_actions(self, decoded: Tensor) -> Tensor:
        """What of decoding depends on values, so that no graph can hold it; here nothing."""
        return decoded


class PolicyFamily(ABC, Generic[Config]):
    """One kind of policy, without weights, of sizes `Config`.

    traits: what sizes do not say. settled: names of `policy.assumptions` that are the same for all
    policies of the family, or that its weights tell -> why. taken_for: what else has the same
    files, and how config.json tells the two apart; '' if they belong to this family alone.
    unused: names of tensors in its files that no forward pass needs, as a regular expression.
    """

    traits: ClassVar[FamilyTraits]
    settled: ClassVar[Mapping[str, str]] = {}
    taken_for: ClassVar[str] = ''
    unused: ClassVar[str] = ''

    def recognises(
        self, directory: Path, document: Mapping, parts: Collection[str]
    ) -> bool:
        """Whether a checkpoint whose config.json names no `head` is of this family.

        document: the parsed config.json. parts: those of `checkpoints.layout.PARTS` that have
        files. ValueError for files that can only be of this family, and do not make a policy.
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

    def said_by(self, document: Mapping) -> Mapping[str, str]:
        """Return who settles what for a policy with such a config.json; see `settled`."""
        return self.settled

    def entries(self, config: Config) -> dict[str, object]:
        """Return what `config.json` must say where the other files do not."""
        return {}

    def conventions(self, config: Config) -> Mapping[str, str]:
        """Return what else the family takes for granted: name -> value, for people."""
        return {}

    @abstractmethod
    def create_network(self, config: Config) -> PolicyNetwork:
        """Build the network with weights that are not initialised for any use."""

    def locate(self, name: str, config: Config) -> tuple[str, str]:
        """Return the file kind that holds a tensor of the network, and its name in there.

        The kind is MODEL or one of `checkpoints.layout.PARTS`.
        """
        return MODEL, name

    def load_statistics(self, directory: Path, config: Config, key: str = '') -> Statistics:
        """What numbers of states and actions mean; ValueError if the files do not say it.

        key: of the data set, may be '' if there is one. Families whose files are openpi's or
        LeRobot's read them by `checkpoints.value_files.load_statistics`.
        """
        return read_statistics(
            read_statistics_document(directory), key, config.spec, config.ranges)

    def normalisation(self, directory: Path, config: Config) -> str:
        """Say, for people, what becomes of the numbers of states and actions."""
        return f'{" and ".join(config.ranges)} are -1 and 1'

    def tokenizer_folders(self, directory: Path) -> list[Path]:
        """Where the tokenizer may lie; most checkpoints bring it along."""
        return folders(directory)

    def load_prompt(self, directory: Path, config: Config) -> PromptEncoder:
        """What turns an instruction into ids; ValueError if its file cannot be used."""
        return PromptEncoder.load(
            place(directory, 'tokenizer.json'), config.language_model.vocabulary)

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
