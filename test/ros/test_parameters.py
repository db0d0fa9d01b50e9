"""A bad parameter is answered with a sentence: it neither crashes a node nor is ignored."""

import math
from dataclasses import dataclass

import pytest
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_testing import ros  # noqa: F401

from vla_policy_node.nodes.parameters import ParameterError, ParameterStore, parameter

pytestmark = pytest.mark.usefixtures('ros')


@dataclass(frozen=True)
class Settings:
    """Parameters of a node that does nothing."""

    rate_hz: float = parameter(20.0, 'A rate.', 'Hz', 1.0, 200.0, tunable=True)
    count: int = parameter(3, 'A count.', '', 0, 10)
    mode: str = parameter('fast', 'A mode.', choices=('fast', 'slow'), tunable=True)
    loud: bool = parameter(False, 'Whether to shout.')
    box_m: tuple = parameter([0.0, 1.0], 'A range.', 'm', -1.0, 1.0, tunable=True)
    names: tuple = parameter(['a'], 'Some names.')

    def __post_init__(self):
        if self.box_m[0] > self.box_m[-1]:
            raise ValueError('box_m is upside down; give the smaller end first.')


class Setting:
    """A node with these overrides, its store, and what the store applied."""

    def __init__(self, configured=False, **overrides):
        self.node = Node(
            'node', parameter_overrides=[Parameter(k, value=v) for k, v in overrides.items()])
        self.applied = []
        self.configured = configured
        self.store = ParameterStore(
            self.node, Settings, lambda: self.configured, self.applied.append)

    def set(self, **values):
        (result,) = self.node.set_parameters(
            [Parameter(name, value=value) for name, value in values.items()])
        return result


def test_defaults_become_the_dataclass_with_lists_as_tuples():
    assert Setting().store.checked() == Settings(box_m=(0.0, 1.0), names=('a',))


def test_overrides_become_the_dataclass():
    settings = Setting(rate_hz=50.0, mode='slow', names=['x', 'y']).store.checked()
    assert settings == Settings(50.0, mode='slow', box_m=(0.0, 1.0), names=('x', 'y'))


@pytest.mark.parametrize(('name', 'value', 'sentence'), [
    ('rate_hz', '50 Hz', "rate_hz is '50 Hz'; it must be a number"),
    ('rate_hz', 500, 'rate_hz is 500.0 Hz; it must lie between 1 and 200 Hz.'),
    ('box_m', ['a', 'b'], 'it must be a list of numbers'),
    ('box_m', [], 'it must be a list of numbers'),
    ('box_m', '[1, two]', 'it must be a list of numbers'),
    ('rate_hz', 500.0, 'rate_hz is 500.0 Hz; it must lie between 1 and 200 Hz.'),
    ('rate_hz', math.nan, 'rate_hz is nan; it must be a finite number.'),
    ('count', 3.0, 'count is 3.0; it must be a whole number.'),
    ('count', -1, 'count is -1; it must lie between 0 and 10.'),
    ('mode', 'medium', "mode is 'medium'; it must be one of fast, slow."),
    ('loud', 'yes', "loud is 'yes'; it must be true or false."),
    ('box_m', [0.0, 2.0], 'box_m is 2.0 m; it must lie between -1 and 1 m.'),
    ('box_m', [1.0, 0.0], 'box_m is upside down; give the smaller end first.'),
    ('names', [1, 2], 'it must be a list of strings.'),
    ('rate_hs', 50.0, 'There is no parameter rate_hs; did you mean rate_hz?'),
    ('xyz', 'red', 'There is no parameter xyz; remove it.'),
])
def test_a_bad_override_is_refused_with_a_sentence(name, value, sentence):
    store = Setting(**{name: value}).store
    with pytest.raises(ParameterError) as caught:
        store.checked()
    assert sentence in str(caught.value)


@pytest.mark.parametrize(('name', 'given', 'meant'), [
    ('rate_hz', 50, 50.0), ('rate_hz', '2e1', 20.0), ('box_m', [-1, 1], (-1.0, 1.0)),
    ('box_m', '[-1, 0.5]', (-1.0, 0.5)),
])
def test_a_number_may_be_written_in_any_way_at_the_start_and_later(name, given, meant):
    setting = Setting(**{name: given})
    assert getattr(setting.store.checked(), name) == meant
    setting = Setting(configured=True)
    assert setting.set(**{name: given}).successful
    assert [getattr(settings, name) for settings in setting.applied] == [meant]


def test_an_empty_list_of_words_has_none_in_it_and_the_node_goes_on():
    setting = Setting(names=[])
    assert setting.store.checked().names == ('',)
    assert setting.set(names=['x']).successful
    assert setting.set(names=[]).successful
    assert setting.store.checked().names == ('',)


def test_a_parameter_cannot_be_deleted():
    setting = Setting()
    for name in ('names', 'rate_hz'):
        assert not setting.set(**{name: None}).successful
    assert setting.store.checked() == Settings(box_m=(0.0, 1.0), names=('a',))


def test_all_values_of_a_node_can_be_set_again_while_it_is_configured():
    setting = Setting(configured=True, count=4, box_m=[0.0, 0.5])
    for name in ('rate_hz', 'count', 'mode', 'loud', 'box_m', 'names', 'use_sim_time'):
        assert setting.set(**{name: setting.node.get_parameter(name).value}).successful, name
    assert setting.store.checked() == Settings(count=4, box_m=(0.0, 0.5), names=('a',))


def test_every_problem_is_named_at_once():
    with pytest.raises(ParameterError, match=r'rate_hz .* mode '):
        Setting(rate_hz=0.0, mode='').store.checked()


def test_a_bad_override_can_be_mended_while_the_node_runs():
    setting = Setting(count=99)
    assert setting.set(count=9).successful
    assert setting.store.checked().count == 9


def test_a_tunable_parameter_changes_while_configured_and_is_applied():
    setting = Setting(configured=True)
    assert setting.set(rate_hz=30.0).successful
    assert [settings.rate_hz for settings in setting.applied] == [30.0]


@pytest.mark.parametrize(('values', 'reason'), [
    ({'count': 4}, 'count cannot change while the node is configured'),
    ({'rate_hz': 0.5}, 'out of range'),
    ({'mode': 'medium'}, 'one of fast, slow'),
    ({'box_m': [1.0, 0.0]}, 'upside down'),
])
def test_a_refused_change_changes_nothing(values, reason):
    setting = Setting(configured=True)
    result = setting.set(**values)
    assert not result.successful
    assert reason in result.reason
    assert setting.applied == []
    assert setting.store.checked() == Setting().store.checked()


def test_anything_may_change_while_unconfigured_and_nothing_is_applied():
    setting = Setting()
    assert setting.set(count=4).successful
    assert setting.applied == []
    assert setting.store.checked().count == 4


def test_descriptors_carry_unit_and_bounds():
    setting = Setting()
    descriptor = setting.node.describe_parameter('rate_hz')
    assert descriptor.description == 'A rate. [Hz]'
    (bounds,) = descriptor.floating_point_range
    assert (bounds.from_value, bounds.to_value) == (1.0, 200.0)
    assert setting.node.describe_parameter('mode').additional_constraints == 'one of fast, slow'
