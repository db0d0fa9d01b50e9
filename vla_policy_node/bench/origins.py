"""Which checkpoint a row of a table ran, and how that was trained."""

from __future__ import annotations

from typing import Any

from vla_policy_node.checkpoints.fingerprint import fingerprint
from vla_policy_node.evaluation.contenders import Contender
from vla_policy_node.training.run_record import RECORD, recipe_of


def origin_of(contender: Contender) -> dict[str, Any]:
    """Return label, fingerprint and recipe of a contender with a checkpoint of its own.

    recipe: None where the folder of the run of training is not around it.
    """
    directory = contender.checkpoint
    has_record = (directory.parent / RECORD).is_file()
    return {
        'method': contender.label, 'sha256': fingerprint(directory),
        'recipe': recipe_of(directory.parent) if has_record else None}
