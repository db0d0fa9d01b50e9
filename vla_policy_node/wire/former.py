"""Message definitions of earlier vla_msgs versions, and the current names of their fields.

A recording outlives the definitions it was made with. When you change a message that `vla replay`
reads, add the previous definition here and describe the change in vla_msgs/CHANGELOG.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_STATUS = '''
std_msgs/Header header
string lifecycle_state
bool goal_active
string instruction
uint32 epoch
vla_msgs/HoldReason hold
string execution_mode
uint32 steps
uint32 inferences
float32 inference_p50_ms
float32 inference_p95_ms
float32 tokens_kept_mean
uint32 tokens_total
float32 camera_spread_ms
float32 third_person_age_ms
float32 wrist_age_ms
float32 state_age_ms
string[] counter_names
uint64[] counter_values
'''
_INFO = '''
std_msgs/Header header
string checkpoint
string checkpoint_sha256
bool trained
string architecture
uint64 parameters
string device
string dtype
string[] versions
string prompt_template
string statistics_key
uint16 chunk_length
uint16 visual_tokens
string[] methods
string[] method_settings
string execution_mode
string[] camera_transforms
float64 control_period_s
vla_msgs/ActionSpecification action
'''
_INFO_WITH_OPTIMISATION = _INFO + '''
string optimisation
string preprocessing
'''



@dataclass(frozen=True)
class Former:
    """A definition of before. Fields with the same name are taken over.

    added: returns the fields of today that it lacks, from a message of before.
    """

    definition: str
    added: Callable[[Any], Mapping[str, Any]]


def _ages(status: Any) -> Mapping[str, Any]:
    return {'camera_names': ['third_person', 'wrist'],
            'camera_ages_ms': np.array(
                [status.third_person_age_ms, status.wrist_age_ms], np.float32)}


_NO_NAMES = {'cameras': [], 'contract': ''}
# The newest first.
FORMER: Mapping[str, tuple[Former, ...]] = {
    'vla_msgs/msg/PolicyStatus': (Former(_STATUS, _ages),),
    'vla_msgs/msg/PolicyInfo': (
        Former(_INFO_WITH_OPTIMISATION, lambda info: _NO_NAMES),
        Former(_INFO, lambda info: {'optimisation': '', 'preprocessing': '', **_NO_NAMES})),
}
