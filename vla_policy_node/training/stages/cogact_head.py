"""Stage `cogact_head`: the diffusion head alone learns, from features that are computed once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from vla_policy_node.acceleration.objective import Objective
from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.families.prismatic_config import PrismaticConfig
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.training.cognition import CognitionBatch, CognitionData
from vla_policy_node.training.losses import noise_losses
from vla_policy_node.training.stages.base import TrainingStage

if TYPE_CHECKING:
    from vla_policy_node.families.cogact import CogAct
    from vla_policy_node.training.config import TrainingConfig
    from vla_policy_node.training.data import TrainingData
    from vla_policy_node.training.grounding import GroundingHeads
    from vla_policy_node.training.stage_run import Run


class DiffusionHeadAlone(TrainingStage):
    """Trains nothing but the head of a policy that stage `cogact` has given one."""

    name = 'cogact_head'
    flows = False

    def check_config(self, config: TrainingConfig) -> None:
        """There is one loss, and nothing else to freeze or to leave out."""
        if (config.losses.keys() != {'noise'} or config.lora_rank or config.tokens_kept
                or config.frozen):
            raise ValueError(
                f"Stage {self.name} learns by the loss 'noise' alone, from all tokens, and trains "
                'nothing but the head: leave lora_rank, tokens_kept and frozen.')

    def check_run(self, run: Run, policy: PrismaticConfig) -> None:
        """It needs the head, and frames with actions."""
        if (not policy.can(Capability.DENOISING) or run.demonstrations is None
                or run.scenes is not None):
            raise ValueError(
                f'Stage {self.name} goes on from a checkpoint of `vla train cogact`, and takes '
                '--demos but no --scenes.')

    def trains(self, parameter: str) -> bool:
        """The head."""
        return parameter.startswith('action_head.')

    def data(
        self, data: TrainingData, model: CogAct, run: Run, rank: int, processes: int
    ) -> CognitionData:
        """Look at every frame once."""
        statistics = hashlib.sha256(run.statistics.read_bytes()).hexdigest()
        source = f'{fingerprint(run.start)} {statistics}'
        return CognitionData(model, data, run.config, run.out, source, rank, processes)

    def compute_losses(
        self, model: CogAct, heads: GroundingHeads, batch: CognitionBatch,
        config: TrainingConfig, objective: Objective, rng: np.random.Generator,
    ) -> dict[str, Tensor]:
        """The language model has run already."""
        return noise_losses(model, batch.states, batch, config, rng)
