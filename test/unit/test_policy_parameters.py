"""Parameters of the policy node, without ROS: what is refused, and which files are read when."""

from dataclasses import fields

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_policy_node.commands.train import stage_config
from vla_policy_node.control.commander import CommanderParts
from vla_policy_node.evaluation.contenders import parse_contender
from vla_policy_node.loop.parameters import PolicyParameters

HOSTILE = {
    'open': '[',
    'deep': '[' * 100_000,
    'alias': '*a',
    'object': '!!python/object/apply:os.getcwd []',
    'control': '\x00',
    'digits': '1' * 5000,
    'date': '2026-99-99',
    'key': '{[1]: 2}',
}


@pytest.mark.parametrize('value', HOSTILE.values(), ids=HOSTILE)
def test_a_setting_that_is_no_plain_yaml_is_refused_with_a_sentence(value):
    with pytest.raises(ValueError, match=r'lightvla\.x in method_settings .*\.$'):
        PolicyParameters(method_settings=(f'lightvla.x={value}',))
    with pytest.raises(ValueError, match=r"'x'.*\.$"):
        parse_contender(f'lightvla:x={value}')
    with pytest.raises(ValueError, match=r'value of steps.*\.$'):
        stage_config('clone', None, [f'steps={value}'])


@given(st.text(max_size=50))
def test_any_setting_is_taken_or_a_value_error(value):
    try:
        settings = PolicyParameters(method_settings=(f'lightvla.x={value}',)).settings_by_method()
    except ValueError as error:
        assert str(error).endswith('.')
    else:
        assert list(settings) == ['lightvla']


def test_settings_are_values_of_yaml():
    parameters = PolicyParameters(method_settings=('a.x=true', 'a.y=[1, 2.5]', 'b.z=', 'b.w=word'))
    assert parameters.settings_by_method() == {
        'a': {'x': True, 'y': [1, 2.5]}, 'b': {'z': None, 'w': 'word'}}


def test_the_record_of_a_stop_has_a_place_that_does_not_depend_on_where_the_node_is_started():
    with pytest.raises(ValueError, match="begin it with '/' or '~'"):
        PolicyParameters(state_directory='state')
    for place in ('', '/var/lib/robot', '~/robot'):
        PolicyParameters(state_directory=place)


def test_the_reference_picture_is_read_when_asked_and_never_to_check_parameters(tmp_path):
    view = tmp_path / 'view.png'
    parameters = PolicyParameters(third_person_reference=str(view))
    with pytest.raises(ValueError, match=r'view\.png'):
        parameters.read_references()
    with pytest.raises(ValueError, match=r'view\.png'):
        parameters.make_parts()
    cv2.imwrite(str(view), np.eye(64, dtype=np.uint8) * 255)
    references = parameters.read_references()
    view.unlink()
    assert list(references) == ['third_person']
    parameters.make_parts(references)


OTHER = {'execution_mode': 'sync', 'ensemble_weighting': 'cogact', 'ensemble_horizon': 3,
         'workspace_min_m': (-0.5, -0.5, -0.5), 'workspace_max_m': (0.5, 0.5, 0.5)}
ENSEMBLE = {'execution_mode': 'temporal_ensemble'}
TUNABLE = {f.name: f.metadata['spec'] for f in fields(PolicyParameters)
           if f.metadata['spec'].tunable}


def contents(part):
    """All settings inside a part, as text that can be compared."""
    if hasattr(part, '__dict__') and type(part).__module__.startswith('vla_policy_node'):
        return {name: contents(value) for name, value in vars(part).items()}
    if isinstance(part, dict):
        return {name: contents(value) for name, value in part.items()}
    return '' if 'threading' in str(type(part)) or 'thread.' in repr(part) else repr(part)


@pytest.mark.parametrize('name', TUNABLE)
def test_a_parameter_declares_the_part_that_it_changes_and_no_other_is_made_anew(name):
    before = PolicyParameters(**({} if name == 'execution_mode' else ENSEMBLE))
    value = OTHER[name] if name in OTHER else getattr(before, name) / 2
    values = {f.name: getattr(before, f.name) for f in fields(before)}
    after = PolicyParameters(**{**values, name: value})
    parts = before.make_parts()
    retuned = after.retuned(parts, before)
    names = [field.name for field in fields(CommanderParts)]
    made_anew = {n for n in names if getattr(retuned, n) is not getattr(parts, n)}
    fresh = after.make_parts()
    differ = {n for n in names if contents(getattr(fresh, n)) != contents(getattr(parts, n))}
    assert made_anew == differ == {TUNABLE[name].part} - {''}
