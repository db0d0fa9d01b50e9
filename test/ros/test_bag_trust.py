"""What a bag says of the policy: followed where it can do no harm, asked for otherwise."""

import os
import time

import pytest
import typer
import yaml
from node_bench import create_tiny_checkpoint
from replay_bag import PERIOD_NS, make_bag

from vla_msgs.msg import PolicyInfo
from vla_policy_node.cli import trust
from vla_policy_node.loop.parameters import PolicyParameters
from vla_policy_node.replay.bag import Bag, BagError
from vla_policy_node.replay.settings import ReplaySettings, parameters_of, read_info, untrusted
from vla_policy_node.system.description import describe
from vla_policy_node.system.files import (
    SystemDescriptionError,
    default_config,
    read_config,
    shipped_checkpoint,
)
from vla_policy_node.system.recorded import RECORDED_PARAMETERS, UntrustedBagError

CONFIGURED = read_config(default_config())['policy']


@pytest.fixture(scope='module')
def messages(tmp_path_factory):
    return make_bag(tmp_path_factory.mktemp('bags') / 'bag', seconds=0.2)


@pytest.fixture
def says(messages):
    """The bag with another policy.yaml, text or parameters."""
    file = messages / RECORDED_PARAMETERS

    def say(content):
        if not isinstance(content, str):
            content = yaml.safe_dump({'policy': {'ros__parameters': content}})
        file.write_text(content)
        return messages

    yield say
    if file.exists() or file.is_symlink():
        file.unlink()


def replayed(bag, **settings):
    with Bag(bag) as opened:
        return parameters_of('', ReplaySettings(**settings), opened, read_info(opened))[0]


def played(bag, **arguments):
    nodes = describe({'play': str(bag), **arguments})
    return next(node.parameters for node in nodes if node.name == 'policy')


@pytest.mark.parametrize('wanted', ['someone/policy', 'someone/policy@main'])
def test_a_bag_does_not_choose_a_checkpoint_of_the_hub(says, wanted):
    bag = says({'checkpoint': wanted, 'methods': ['fastv']})
    for run, allow in ((replayed, '--trust-bag'), (played, 'trust_bag:=true')):
        with pytest.raises(UntrustedBagError) as caught:
            run(bag)
        assert all(word in str(caught.value) for word in (wanted, 'Hugging Face', 'fastv', allow))
    assert replayed(bag, trust_bag=True).checkpoint == wanted
    assert played(bag, trust_bag=True)['checkpoint'] == wanted


@pytest.mark.parametrize('form', ['absolute', 'relative', 'home'])
def test_a_bag_does_not_choose_a_directory(says, tmp_path, monkeypatch, form):
    checkpoint = create_tiny_checkpoint(tmp_path / 'elsewhere')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    name = str(checkpoint.relative_to(tmp_path))
    wanted = {'absolute': str(checkpoint), 'relative': name, 'home': f'~/{name}'}[form]
    bag = says({'checkpoint': wanted})
    for run in (replayed, played):
        with pytest.raises(UntrustedBagError, match='name a checkpoint yourself'):
            run(bag)
        named = run(bag, checkpoint='named/by_the_user')
        chosen = named.checkpoint if run is replayed else named['checkpoint']
        assert chosen == 'named/by_the_user'
    assert [str(bag) in str(wish) for wish in untrusted([bag], ReplaySettings())] == [True]
    assert untrusted([bag], ReplaySettings(checkpoint=str(checkpoint))) == []


@pytest.mark.parametrize('wanted', ['', str(shipped_checkpoint()), '/of/another/machine', 7])
def test_a_bag_of_a_shipped_policy_needs_no_word(says, wanted):
    bag = says({'checkpoint': wanted, 'methods': ['dense']})
    assert replayed(bag).checkpoint == str(shipped_checkpoint())
    assert played(bag)['checkpoint'] == str(shipped_checkpoint())
    assert replayed(bag).method_names == ()


def test_what_the_policy_says_of_itself_in_a_message_is_no_more_trusted(tmp_path):
    info = PolicyInfo(checkpoint='someone/policy', control_period_s=PERIOD_NS / 1e9)
    info.action.frame_id, info.action.rotation_form = 'base_link', 'axis_angle'
    info.action.translation_scale_m = info.action.rotation_scale_rad = 0.1
    info.action.gripper_open = 1.0
    info.execution_mode, info.dtype = 'sync', 'float32'
    bag = make_bag(tmp_path / 'bag', seconds=0.2, info=info)
    with pytest.raises(UntrustedBagError, match='someone/policy'):
        replayed(bag)
    assert replayed(bag, checkpoint='mine').execution_mode == 'sync'
    info.method_settings = ['fastv.count=[' + '*a,' * 1000 + ']']
    bag = make_bag(tmp_path / 'bomb', seconds=0.2, info=info)
    with pytest.raises(ValueError, match='method_settings'):
        replayed(bag, checkpoint='mine')
    info.method_settings, info.control_period_s = [], 0.0
    bag = make_bag(tmp_path / 'still', seconds=0.2, info=info)
    with pytest.raises(BagError, match='no control period'):
        replayed(bag, checkpoint='mine')


def test_only_what_computes_the_actions_is_followed(says):
    wanted = {
        'max_age_s': 0.7, 'execution_mode': 'sync', 'translation_scale_m': 0.02,
        'frame_id': 'world', 'gripper_open': -1.0, 'pacing': 'observation',
        # Not a bag's to say:
        'device': 'cuda:7', 'threads': 1024, 'warmup_inferences': 100, 'shadow_every': 1,
        'warmup_instructions': ['x'] * 200, 'publish_twist': True, 'autostart': False,
        'inference_timeout_s': 3600.0, 'third_person_reference': '/etc/passwd', 'invented': 1,
    }
    bag = says(wanted)
    for trusted in (False, True):
        for values in (vars(replayed(bag, trust_bag=trusted)), played(bag, trust_bag=trusted)):
            for name in list(wanted)[:6]:
                assert values[name] == wanted[name], name
            for name in list(wanted)[6:-3]:
                value = values[name]
                value = list(value) if isinstance(value, tuple) else value
                assert value == CONFIGURED[name] or name == 'autostart', name
            assert 'invented' not in values
            assert values.get('third_person_reference', '') == ''
    assert played(bag)['autostart'] is True


def test_where_a_robot_may_listen_the_tighter_limit_counts(says):
    wide = {'max_step_translation_m': 1.0, 'max_linear_velocity_m_s': 10.0,
            'max_angular_velocity_rad_s': 50.0, 'max_linear_acceleration_m_s2': 1000.0,
            'workspace_min_m': [-100.0] * 3, 'workspace_max_m': [100.0] * 3}
    tight = {'max_step_rotation_rad': 1e-3, 'max_angular_acceleration_rad_s2': 0.1}
    bag = says({**wide, **tight})
    live = played(bag)
    assert {name: live[name] for name in wide} == {name: CONFIGURED[name] for name in wide}
    assert {name: live[name] for name in tight} == tight
    trusted = played(bag, trust_bag=True)
    assert {name: trusted[name] for name in wide} == wide
    assert replayed(bag).max_linear_velocity_m_s == 10.0  # nobody listens
    for broken in (0.0, -1.0, 'fast', True, [1.0]):
        assert played(says({'max_linear_velocity_m_s': broken}))[
            'max_linear_velocity_m_s'] == CONFIGURED['max_linear_velocity_m_s']


_LAUGHS = 'a: &a [x, x]\n' + ''.join(
    f'{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n' for i in range(20))


@pytest.mark.parametrize('text', [
    _LAUGHS, 'a: &a {b: c}\nd: {<<: *a}\n', '[' * 20_000, '{a: ' * 20_000, 'x' * 70_000,
    'policy: !!python/object/apply:os.system ["touch /tmp/owned"]\n', 'policy: {\n', '\x00\x01',
    '', '[]', 'policy: 1', 'policy: {ros__parameters: [1]}',
    'policy: {ros__parameters: {methods: {a: b}}}',
    'policy: {ros__parameters: {methods: [[lightvla]]}}',
    'policy: {ros__parameters: {max_age_s: .nan}}', 'policy: {ros__parameters: {1: 2}}',
    'policy: {ros__parameters: {chunk_length: ' + '9' * 5000 + '}}',
    "policy: {ros__parameters: {method_settings: ['fastv.count=!!python/none x']}}",
    'policy: {ros__parameters: {method_settings: 7}}',
], ids=lambda text: text[:24])
def test_a_parameter_file_of_any_other_form_is_one_sentence_at_once(says, text):
    bag = says(text)
    for run, error in ((replayed, ValueError), (played, SystemDescriptionError)):
        started = time.process_time()
        with pytest.raises(error) as caught:
            run(bag, checkpoint='mine')
        assert time.process_time() - started < 5.0
        sentence = str(caught.value)
        assert RECORDED_PARAMETERS in sentence
        assert len(sentence) < 500
        assert '\n' not in sentence


def test_a_parameter_file_that_would_never_end_is_not_read(messages):
    for make in (lambda file: os.mkfifo(file), lambda file: file.symlink_to('/dev/zero'),
                 lambda file: file.mkdir()):
        file = messages / RECORDED_PARAMETERS
        make(file)
        try:
            with pytest.raises(ValueError, match='is no regular file'):
                replayed(messages)
        finally:
            file.rmdir() if file.is_dir() else file.unlink()


@pytest.mark.parametrize(('name', 'value'), [
    ('control_rate_hz', 1e-300), ('control_rate_hz', 0), ('control_rate_hz', 'fast'),
    ('ensemble_horizon', 10**9), ('chunk_length', -1), ('translation_scale_m', 1e300),
    ('execution_mode', 'fastest'), ('compressed', 1), ('workspace_min_m', [0.0, 0.0, 1e9]),
    ('methods', ['a', 1]), ('methods', 'lightvla'), ('max_age_s', float('nan')),
])
def test_a_value_that_no_parameter_can_have_is_one_sentence(name, value):
    with pytest.raises(ValueError, match=f'^{name} is '):
        PolicyParameters.from_values({**CONFIGURED, name: value})


def test_every_value_of_the_configuration_is_one_that_a_parameter_can_have():
    PolicyParameters.from_values(CONFIGURED)
    PolicyParameters.from_values({})


class Terminal:
    def __init__(self, is_one):
        self.isatty = lambda: is_one


@pytest.mark.parametrize(('is_terminal', 'answer'), [(True, True), (True, False), (False, True)])
def test_only_a_person_at_a_terminal_is_asked(monkeypatch, is_terminal, answer):
    asked = []
    monkeypatch.setattr(trust.sys, 'stdin', Terminal(is_terminal))
    monkeypatch.setattr(trust.sys, 'stderr', Terminal(is_terminal))
    monkeypatch.setattr(typer, 'secho', lambda text, **_: asked.append(text))
    monkeypatch.setattr(typer, 'confirm', lambda *_, **__: answer)
    assert trust.agrees(['The bag wants x.']) == (is_terminal and answer)
    assert asked == (['The bag wants x.'] if is_terminal else [])
    assert not trust.agrees([])
