"""What a method does in a run is what it declares, for every method."""

import re
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from checkpoint_variants import COGACT, random_model
from checkpoint_variants import CONFIG as VARIANT
from tiny_model import (
    CONFIG,
    DESCRIPTION,
    chunk_of,
    execution_of,
    load_model,
    runs_here,
    shared_inputs,
    step_of,
)

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Capability, Effect, create
from vla_policy_node.acceleration.declarations import check_policy
from vla_policy_node.acceleration.lightvla_star import LearnedQueries
from vla_policy_node.families import config_of, read_model_config
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.lazy_attention import LazyAttention
from vla_policy_node.policy.interface import EXECUTION_MODES, InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import create_small_checkpoint

SIMPLE_MOTION = {'buffer': 2, 'min_speed': -1.0, 'max_speed': 1e9, 'network_share': 0.4}
# Settings under which a method shows all that it can do, in one run after the other.
RUNS = {
    'adp': [{'keep': 0.5, 'windows': 3}],
    'deer': [{'threshold': 0.4}],
    'flashvla': [{'count': 10, 'max_angle': 4.0, 'min_overlap': -1.0}],
    'lightvla': [{}, {'count': 5}, {'extra_random': 3}],
    'lightvla_star': [{}, {}],
    'sp_vla': [{'slow': -1.0, 'fast': 0.5, 'min_keep': 0.3}, SIMPLE_MOTION],
    'specprune': [{'static': 14, 'static_fine': 14, 'similarity': -1.0, 'local_share': 0.1}],
    'sqap_vla': [{'robot': 1}, {'four_bits': False}],
    'ttf_vla': [{'threshold': 10.0, 'count': 0}],
    'vla_cache': [{'static': 10, 'relevant': 2, 'similarity': -1.0}],
}


@dataclass
class Witness:
    """Sees what a method does, by standing around its hooks."""

    method: acceleration.Method
    seen: set[Effect] = field(default_factory=set)

    def __post_init__(self):
        for name in ('visual_features', 'select_tokens', 'select_layers', 'before_layer',
                     'should_exit', 'keys_values', 'watch_attention', 'watch_output', 'denoise'):
            setattr(self.method, name, self._around(name, getattr(self.method, name)))

    def _around(self, name, hook):
        def watched(*arguments):
            spied = list(arguments)
            if name == 'watch_attention':
                spied[-1] = SpiedAttention(arguments[-1], self.seen)
            if name == 'watch_output':
                spied[-1] = Spied(arguments[-1].clone(), self.seen)
            if name == 'denoise':
                object.__setattr__(arguments[-1], 'run', self._runs_head(arguments[-1].run))
                self._ran_head = False
            result = hook(*spied)
            if name == 'select_tokens' and self.method.select_static(*arguments) is not None:
                self.seen.add(Effect.FIXED_SHAPES)
            if getattr(self, f'_sees_{name}', lambda *_: False)(result, *arguments):
                self.seen.add(EFFECT_OF[name])
            return result

        return watched

    def _runs_head(self, run):
        def ran():
            self._ran_head = True
            return run()

        return ran

    def _sees_visual_features(self, result, features):
        return not torch.equal(result, features)

    def _sees_select_tokens(self, result, sequence):
        return result.visual_rows < sequence.visual_rows

    def _sees_before_layer(self, result, index, sequence):
        # Rows whose keys and values stay are reused, not dropped.
        return result.visual_rows < sequence.visual_rows and index not in getattr(
            self.method, '_drop_layers', ())

    def _sees_select_layers(self, result, sequence, layers):
        return len(result) < len(layers)

    def _sees_should_exit(self, result, index, answer):
        return result

    def _sees_keys_values(self, result, index, sequence, key, value):
        return result[0].shape[2] > sequence.states.shape[1]

    def _sees_denoise(self, result, state):
        return result is not None and not self._ran_head


EFFECT_OF = {
    'visual_features': Effect.REUSES_FEATURES,
    'select_tokens': Effect.DROPS_TOKENS,
    'before_layer': Effect.DROPS_TOKENS_LATER,
    'select_layers': Effect.SKIPS_LAYERS,
    'should_exit': Effect.EXITS_EARLY,
    'keys_values': Effect.REUSES_KEYS_VALUES,
    'denoise': Effect.REUSES_DENOISING,
}


class SpiedAttention(LazyAttention):
    """Attention that tells when somebody computes it."""

    def __init__(self, attention, seen):
        self.__dict__.update(vars(attention))
        self._seen = seen

    def __call__(self, asking):
        self._seen.add(Effect.READS_ATTENTION)
        return super().__call__(asking)


class Spied(torch.Tensor):
    """A tensor that tells when somebody computes with it."""

    def __new__(cls, tensor, seen):
        spied = tensor.as_subclass(cls)
        spied._seen = seen
        return spied

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        for argument in arguments:
            if isinstance(argument, cls) and function.__name__ != '__get__':
                vars(argument).get('_seen', set()).add(Effect.READS_OUTPUTS)
        return super().__torch_function__(function, types, arguments, named or {})


@pytest.fixture(scope='module')
def learnt(tmp_path_factory):
    """What learnt methods read, with random weights."""
    folder = tmp_path_factory.mktemp('learnt')
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for method in map(acceleration.named, acceleration.available()):
            method.save_untrained(folder, CONFIG)
        for layer in (0, 2):
            (folder / str(layer)).mkdir()
            LearnedQueries(CONFIG.language_model.width, 4, layer).save(folder / str(layer))
    return folder


def world_of(name):
    """Config, network and inputs of a policy on which the method runs."""
    if not runs_here(name):
        config = config_of({**VARIANT, **COGACT, 'head': 'cogact'})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            generator = torch.Generator().manual_seed(0)
            side = config.image_px
            pictures = [torch.rand(1, config.cameras, 6, side, side, generator=generator)
                        for _ in range(4)]
            prompt = torch.tensor([[1, 40, 41, 42, 2]])
            return config, random_model(config), [
                (picture, torch.zeros(1, 8), prompt) for picture in pictures]
    proprio, prompt = shared_inputs(0)[1:]
    pictures = [shared_inputs(index)[0] for index in range(4)]
    return CONFIG, load_model(), [(picture, proprio, prompt) for picture in pictures]


@torch.inference_mode()
def observed(name, settings, checkpoint):
    """Effects of a run of eight steps, and what the method declared."""
    config, model, inputs = world_of(name)
    method, seen = create(name, **settings), set()
    acceleration.prepare([method], checkpoint, config)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    acceleration.change_network([method], model)
    after = model.state_dict()
    if before.keys() != after.keys() or any(
            not torch.equal(before[key], after[key]) for key in before):
        seen.add(Effect.CHANGES_WEIGHTS)
    witness, costs = Witness(method, seen), []
    actions = ()
    for number in range(8):
        picture = inputs[number % len(inputs)]
        position = (0.01 * number**2 * (-1) ** (number // 3), 0.0, 0.0)
        request = InferenceRequest(Observation({}, np.zeros(8), 'go'), execution_of(actions))
        answer = method.answers and method.answers.answer(request, DESCRIPTION)
        if answer is None:
            if config is CONFIG:
                method.begin_step(step_of(picture, position, actions))
            forward_pass = ForwardPass([method])
            actions = model(picture, forward_pass)[0].double().numpy()
            costs.append(tuple(forward_pass.layer_rows))
        else:
            seen.add(Effect.ANSWERS_STEPS)
            costs.append(())
            actions = answer
        if method.answers is not None:
            method.answers.record(chunk_of(
                actions, method.report().kept, name if answer is not None else ''))
    if len(set(costs[1:])) > 1:  # nobody remembers anything in the first step
        seen.add(Effect.COST_VARIES)
    return witness.seen, method.does


@pytest.mark.parametrize('name', acceleration.available())
def test_it_does_what_it_declares_and_nothing_else(name, learnt):
    runs = RUNS.get(name, [{}])
    everything, promised = set(), set()
    for number, settings in enumerate(runs):
        checkpoint = learnt
        if name == 'lightvla_star':
            checkpoint = learnt / str((0, 2)[number])
        seen, declared = observed(name, settings, checkpoint)
        assert seen <= declared, settings
        everything |= seen
        promised |= declared
    assert everything == promised >= create(name).does


@pytest.mark.parametrize(('layer', 'drops'), [
    (0, {Effect.DROPS_TOKENS, Effect.FIXED_SHAPES}), (2, {Effect.DROPS_TOKENS_LATER})])
def test_queries_that_were_learnt_for_one_layer_declare_what_they_do_there(layer, drops, learnt):
    method = create('lightvla_star')
    for number in (2 - layer, layer):  # what the other checkpoint said is forgotten
        acceleration.prepare([method], learnt / str(number), CONFIG)
    assert method.does == {Effect.COST_VARIES, *drops}


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return create_small_checkpoint(tmp_path_factory.mktemp('small'))


def reading_nothing(*_, **__):
    raise AssertionError('weights were read')


@pytest.mark.parametrize('name', [
    name for name in acceleration.available()
    if (method := create(name)).acts_in_pass and Effect.FIXED_SHAPES not in method.does
    and runs_here(name)])
def test_what_cannot_choose_in_fixed_shapes_is_refused_before_weights_are_read(name, small):
    acceleration.named(name).save_untrained(small, read_model_config(small))
    sentence = f"{name}, as it is set, cannot run in fixed shapes; choose optimisation 'fused'."
    for optimisation in ('graphs', 'compiled'):
        with pytest.raises(ValueError, match=f'^{re.escape(sentence)}$'):
            LocalPolicy.load(small, methods=(name,), optimisation=optimisation,
                             load_model=reading_nothing)


def test_of_two_that_choose_in_the_pass_fixed_shapes_refuse_one_before_weights_are_read(small):
    with pytest.raises(ValueError, match=r'one acceleration method.* lightvla\+random_tokens\.'):
        LocalPolicy.load(small, methods=('lightvla', 'random_tokens'), optimisation='graphs',
                         load_model=reading_nothing)
    with pytest.raises(AssertionError, match='weights were read'):
        LocalPolicy.load(small, methods=('lightvla', 'depth_cut'), optimisation='graphs',
                         load_model=reading_nothing)


@pytest.mark.parametrize('name', acceleration.available())
def test_execution_modes_are_those_that_keep_what_a_method_assumes(name):
    modes = acceleration.execution_modes([name])
    assert 'sync' in modes
    assert (modes == EXECUTION_MODES) == (not create(name).assumes)
    for mode in EXECUTION_MODES:
        if mode in modes:
            acceleration.check_execution([name], mode)
        else:
            with pytest.raises(ValueError, match=(
                    f'^{name} takes it that a chunk is executed to its end before the next '
                    f"inference: set execution_mode to 'sync', it is '{mode}', or choose another "
                    'method[.]$')):
                acceleration.check_execution([name], mode)


@pytest.mark.parametrize('name', acceleration.available())
def test_a_policy_that_offers_less_than_it_needs_is_refused_with_a_sentence(name):
    method = create(name)
    assert method.needs <= frozenset(Capability)
    for need in method.needs:
        family = replace(CONFIG.family, capabilities=frozenset(Capability) - {need})
        with pytest.raises(ValueError, match=f'^{name} .*[.]$'):
            check_policy([method], replace(CONFIG, family=family))


def test_what_a_method_needs_its_policies_offer():
    cogact = config_of({**VARIANT, **COGACT, 'head': 'cogact'})
    offered = CONFIG.family.capabilities | cogact.family.capabilities
    assert not CONFIG.can(Capability.DENOISING)
    for name in acceleration.available():
        assert create(name).needs, name
        assert create(name).needs <= offered, name
