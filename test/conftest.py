"""Laws are checked on the same examples in every run, however slow the machine is."""

from hypothesis import settings

import vla_policy_node.world  # noqa: F401 - before any test imports MuJoCo, see there

settings.register_profile('deterministic', deadline=None, derandomize=True)
settings.load_profile('deterministic')
