"""Rules for changing motion limits while the node is configured. Without ROS."""

from __future__ import annotations

from vla_policy_node.loop.parameters import PolicyParameters

_MAXIMA = (
    'max_step_translation_m', 'max_step_rotation_rad', 'max_linear_velocity_m_s',
    'max_angular_velocity_rad_s', 'max_linear_acceleration_m_s2',
    'max_angular_acceleration_rad_s2',
)


def loosened(old: PolicyParameters, new: PolicyParameters) -> str:
    """Return the name of a limit that allows something in `new` that it forbids in `old`, or ''.

    Setting or unsetting a workspace counts as loosening: the default one lies elsewhere.
    """
    for name in _MAXIMA:
        if getattr(new, name) > getattr(old, name):
            return name
    if old.has_workspace != new.has_workspace:
        return 'workspace_min_m'
    if any(n < o for o, n in zip(old.workspace_min_m, new.workspace_min_m, strict=True)):
        return 'workspace_min_m'
    if any(n > o for o, n in zip(old.workspace_max_m, new.workspace_max_m, strict=True)):
        return 'workspace_max_m'
    return ''


def refused_change(
    configured: PolicyParameters, present: PolicyParameters, new: PolicyParameters,
    is_moving: bool,
) -> str:
    """Return why limits must not change to those of `new`, or ''.

    configured: the parameters at configure; its limits are the ceilings until the next one.
    is_moving: whether a goal runs; limits may then only be tightened.
    """
    if name := loosened(configured, new):
        return (f'{name} cannot be looser than at configure; clean up, set it and configure '
                'again.')
    if is_moving and (name := loosened(present, new)):
        return f'{name} can only be tightened while a goal runs; end the goal first.'
    return ''
