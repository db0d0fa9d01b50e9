"""`vla train lora`: policies in public layouts are fine-tuned, and load like any other."""

import json
import shutil

import checkpoint_variants as variants
import numpy as np
import pytest
import torch
from pi_models import VOCABULARY, feature, inputs_of, random_network, write_tokenizer
from safetensors.torch import load_file
from training_data import CAMERAS, make_demonstrations

from vla_policy_node import families
from vla_policy_node.commands.train import stage_config
from vla_policy_node.policy.interface import InferenceRequest, Observation
from vla_policy_node.policy.local import LocalPolicy
from vla_policy_node.runtime.small import SPECIAL_TOKENS, make_tokenizer
from vla_policy_node.training import stage_run
from vla_policy_node.training.curves import read_metrics
from vla_policy_node.training.lora import add_lora, merge_lora
from vla_policy_node.training.stage_run import Run, train

from tiny_model import DATA  # isort: skip

FEW = ('steps=2', 'batch=4', 'validate_every_steps=2', 'validation_frames=4', 'lora_rank=2',
       'learning_rate=0.01', 'warmup_steps=1')
# Layout -> the loss by which it learns, and of what begins the name of a weight that must change.
LAYOUTS = {
    'oft_tiny': ('action', 'language_model.model.layers.0.self_attn.q_proj.'),
    'pi05_tiny': ('flow', 'paligemma_with_expert.paligemma.model.language_model.layers.0.'),
    'smolvla_tiny': ('flow', 'model.vlm_with_expert.vlm.model.text_model.layers.0.'),
}


@pytest.fixture(scope='module')
def demonstrations(tmp_path_factory):
    return make_demonstrations(tmp_path_factory.mktemp('lora') / 'demos')


def checkpoint_of(layout, directory):
    """A pack's checkpoint, told of the cameras and numbers of the demonstrations."""
    shutil.copytree(DATA / layout / 'checkpoint', directory)
    path = directory / 'config.json'
    document = json.loads(path.read_text())
    if layout == 'oft_tiny':
        # Single letters: the network knows 256 ids.
        make_tokenizer(SPECIAL_TOKENS, '<s>', 'a').save(str(directory / 'tokenizer.json'))
        return directory
    document['input_features'] = {
        **{f'observation.images.{name}': feature('VISUAL', 3, 56, 56) for name in CAMERAS},
        'observation.state': feature('STATE', 8)}
    path.write_text(json.dumps(document))
    if layout == 'smolvla_tiny':
        shutil.copytree(DATA / layout / 'vlm_backbone', directory / 'vlm_backbone')
    else:
        write_tokenizer(directory)
    return directory


def run_of(start, demonstrations, out, *changes):
    return Run(stage_config('lora', None, [*FEW, *changes]), start, demonstrations, None, out)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_policy_of_others_is_fine_tuned_end_to_end(layout, demonstrations, tmp_path):
    start = checkpoint_of(layout, tmp_path / 'start')
    run = run_of(start, demonstrations, tmp_path / 'run')
    checkpoint = train(run)
    loss, changed = LAYOUTS[layout]
    assert np.isfinite(read_metrics(run.out)[-1][loss])
    policy = LocalPolicy.load(checkpoint, methods=())
    assert policy.config.language_model == families.read_model_config(start).language_model
    gray = np.full((56, 56, 3), 128, np.uint8)
    chunk = policy.infer(InferenceRequest(
        Observation(dict.fromkeys(CAMERAS, gray), np.zeros(8), 'pick it up')))
    assert np.isfinite(chunk.actions).all()
    names = {
        name for path in checkpoint.glob('*.safetensors') if 'processor' not in path.name
        for name in load_file(path)}
    assert not [name for name in names if 'lora' in name or 'base_layer' in name]
    before, after = (
        {name: tensor for path in folder.glob('model*.safetensors')
         for name, tensor in load_file(path).items()} for folder in (start, checkpoint))
    assert any(not torch.equal(tensor.float(), before[name].float())
               for name, tensor in after.items() if name.startswith(changed))
    (entry,) = json.loads((demonstrations / 'dataset_statistics.json').read_text()).values()
    if loss == 'flow':
        found = families.of(policy.config).load_statistics(checkpoint, policy.config)
        wanted = entry['action']['mean' if found.action.rule.mode == 'MEAN_STD' else 'q01']
        np.testing.assert_allclose(found.action.origin, wanted, rtol=1e-6)


@pytest.mark.parametrize('kind', ['pi0', 'pi05'])
def test_merged_and_unmerged_give_the_same_velocity(kind):
    with torch.inference_mode(False):
        network = random_network(kind)
    add_lora(network, 2)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if 'lora_' in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    pixels, state, words = inputs_of(0)

    def answer():
        with torch.no_grad():
            return network.decode(
                network.prefill(network.assemble(
                    network.visual(pixels, None), state, words), forward()), forward())

    def forward():
        from vla_policy_node.nn.forward_pass import ForwardPass

        return ForwardPass()

    before = answer()
    merge_lora(network)
    torch.testing.assert_close(answer(), before, rtol=1e-4, atol=1e-4)
    assert words.max() < VOCABULARY


def test_words_as_actions_are_refused(demonstrations, tmp_path, monkeypatch):
    monkeypatch.setattr(stage_run, 'load_model', None)
    start = variants.make(tmp_path / 'start', 'autoregressive')
    with pytest.raises(ValueError, match=(
            r"^Stage lora learns by the loss 'action', which needs a policy whose actions come at "
            r'once, from the rows of their slots; .* is OpenVLA')):
        train(run_of(start, demonstrations, tmp_path / 'run'))


def test_a_rank_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r'^Stage lora trains low-rank updates, and lora_rank is'):
        stage_config('lora', None, ['lora_rank=0'])


def test_what_smolvla_is_not_trained_with_is_refused(demonstrations, tmp_path):
    start = checkpoint_of('smolvla_tiny', tmp_path / 'start')
    with pytest.raises(ValueError, match='which is trained on all visual tokens'):
        train(run_of(start, demonstrations, tmp_path / 'run', 'tokens_kept=4'))


def test_actions_that_count_from_the_state_are_refused(demonstrations, tmp_path):
    start = checkpoint_of('pi05_tiny', tmp_path / 'start')
    path = start / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'delta_action_mask': [6, -1]}))
    with pytest.raises(ValueError, match=r'^The policy counts actions from the state'):
        train(run_of(start, demonstrations, tmp_path / 'run'))


def test_cogact_learns_by_the_error_of_the_noise(demonstrations, tmp_path):
    start = variants.make(tmp_path / 'start', 'cogact', **variants.COGACT)
    run = run_of(start, demonstrations, tmp_path / 'run', 'steps=1', 'validate_every_steps=1')
    assert LocalPolicy.load(train(run), methods=()).config.family.name == 'cogact'
    assert np.isfinite(read_metrics(run.out)[-1]['noise'])
