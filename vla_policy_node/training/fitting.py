"""Whether a folder of demonstrations is for a policy and for what it is to learn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vla_policy_node.checkpoints.reading import listed
from vla_policy_node.policy.interface import PolicySpec, Quantity

if TYPE_CHECKING:
    from vla_policy_node.training.config import TrainingConfig

# Losses on label images and on where objects are.
_ON_LABELS = {'token', 'point', 'attend', 'readout'}


def check_fits(
    folder: Path, document: Mapping, start: Path, spec: PolicySpec, config: TrainingConfig
) -> None:
    """Raise ValueError with one sentence for demonstrations that the policy cannot learn from.

    document: what the folder says it holds. start: checkpoint of the policy, with `spec`.
    """
    from vla_policy_node.training import stages

    for camera in spec.cameras:
        if camera not in document['cameras']:
            raise ValueError(
                f"{folder} has no camera '{camera}', which the policy of {start} looks at; it has "
                f'{listed(document["cameras"])}: import it with --checkpoint {start}.')
    for kind, wanted in (('state', spec.state), ('actions', spec.actions)):
        if wanted and kind in document:
            _check_numbers(folder, kind, document[kind], start, wanted)
    unlabelled = document.get('labels_px') == 0
    learnt = _ON_LABELS.union(stages.named(config.stage).token_losses)
    on_labels = [loss for loss in config.weighed if loss in learnt]
    if unlabelled and on_labels:
        raise ValueError(
            f'{folder} has no labels of objects, which the losses {listed(on_labels)} learn from; '
            "learn actions alone with --set 'losses={action: 1}' (CogACT: noise), and "
            '--set tokens_kept=0.')


def _check_numbers(
    folder: Path, kind: str, names: object, start: Path, wanted: tuple[Quantity, ...]
) -> None:
    expected = [quantity.name for quantity in wanted]
    if not isinstance(names, list) or list(names) != expected:
        found = listed(names) if isinstance(names, list) else 'nothing'
        raise ValueError(
            f'{folder} has the {kind} {found}, and the policy of {start} {listed(expected)}; '
            f'import it with --checkpoint {start}, or take a policy with these numbers.')
