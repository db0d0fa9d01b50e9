"""Limits may be tightened while the robot moves, and never loosened beyond those at configure."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from vla_policy_node.control.executors import EXECUTION_MODES
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.nodes.limit_changes import loosened, refused_change
from vla_policy_node.system.description import describe
from vla_policy_node.system.files import read_config

CONFIG = Path(__file__).parents[2] / 'config'
MAXIMA = [f.name for f in fields(PolicyParameters)
          if f.name.startswith('max_') and f.metadata['spec'].tunable
          and f.metadata['spec'].unit in ('m', 'rad', 'm/s', 'rad/s', 'm/s^2', 'rad/s^2')]
BOXED = PolicyParameters(workspace_min_m=(-0.3, -0.3, 0.1), workspace_max_m=(0.3, 0.3, 0.5))


def test_there_are_six_maxima():
    assert len(MAXIMA) == 6


@pytest.mark.parametrize('name', MAXIMA)
def test_a_larger_maximum_is_looser_and_a_smaller_one_is_not(name):
    value = getattr(BOXED, name)
    assert loosened(BOXED, replace(BOXED, **{name: value * 1.01})) == name
    assert loosened(BOXED, replace(BOXED, **{name: value * 0.5})) == ''


@pytest.mark.parametrize(('name', 'looser', 'tighter'), [
    ('workspace_min_m', (-0.3, -0.3, 0.09), (-0.2, -0.3, 0.1)),
    ('workspace_max_m', (0.3, 0.31, 0.5), (0.3, 0.3, 0.2)),
])
def test_a_larger_workspace_is_looser_and_a_smaller_one_is_not(name, looser, tighter):
    assert loosened(BOXED, replace(BOXED, **{name: looser})) == name
    assert loosened(BOXED, replace(BOXED, **{name: tighter})) == ''


def test_setting_and_unsetting_the_workspace_is_looser():
    unset = PolicyParameters()
    assert loosened(unset, BOXED) and loosened(BOXED, unset)
    assert loosened(unset, unset) == ''


def test_while_a_goal_runs_limits_are_only_tightened():
    tight = replace(BOXED, max_linear_velocity_m_s=0.1)
    assert refused_change(BOXED, BOXED, tight, True) == ''
    sentence = refused_change(BOXED, tight, BOXED, True)
    assert sentence == ('max_linear_velocity_m_s can only be tightened while a goal runs; '
                        'end the goal first.')
    assert refused_change(BOXED, tight, BOXED, False) == ''


@pytest.mark.parametrize('is_moving', [True, False])
def test_the_limits_at_configure_are_the_ceilings(is_moving):
    fast = replace(BOXED, max_linear_velocity_m_s=0.26)
    sentence = refused_change(BOXED, BOXED, fast, is_moving)
    assert sentence.startswith('max_linear_velocity_m_s cannot be looser than at configure; clean')


def test_what_is_no_limit_may_change_while_a_goal_runs():
    other = next(mode for mode in EXECUTION_MODES if mode != BOXED.execution_mode)
    assert refused_change(BOXED, BOXED, replace(BOXED, execution_mode=other), True) == ''


def test_the_defaults_are_those_of_a_careful_arm_and_of_the_parameter_file():
    defaults, written = PolicyParameters(), read_config(CONFIG / 'bringup.yaml')['policy']
    assert [getattr(defaults, name) for name in MAXIMA] == [0.0125, 0.025, 0.25, 0.5, 1.0, 2.0]
    assert defaults.input_timeout_s == 2.0
    assert not defaults.has_workspace
    for name in (*MAXIMA, 'input_timeout_s', 'default_workspace_half_m', 'max_tracking_error_m'):
        assert written[name] == getattr(defaults, name), name


def test_the_defaults_and_a_panda_with_its_own_limits_fit_under_a_pandas_ceiling():
    ceiling = read_config(CONFIG / 'panda.yaml')['policy']
    assert sorted(ceiling) == sorted(MAXIMA)
    panda = PolicyParameters.from_values(ceiling)
    assert loosened(panda, PolicyParameters()) == ''
    assert ceiling['max_linear_acceleration_m_s2'] == 13.0


def test_the_simulated_world_is_as_fast_as_its_demonstrations():
    policy = next(node for node in describe({'world': True, 'checkpoint': 'x'})
                  if node.name == 'policy')
    world = PolicyParameters.from_values(policy.parameters)
    assert world.max_step_translation_m == 0.0875
    assert world.max_linear_acceleration_m_s2 * 0.05**2 == pytest.approx(0.0875)
    assert world.has_workspace
    assert world.max_tracking_error_m > 0.0


def test_a_recording_does_not_follow_commands_and_is_not_asked_to(tmp_path):
    nodes = {node.name: node for node in describe({'play': str(tmp_path), 'checkpoint': 'x'})}
    assert nodes['policy'].parameters['max_tracking_error_m'] == 0.0
