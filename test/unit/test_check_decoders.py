"""`vla check --golden` on policies of which only the decoders are here: pi0, pi0.5, SmolVLA."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.checks import golden_pi, golden_smolvla
from vla_policy_node.checks.findings import PASS, SKIP, worst_by_stage
from vla_policy_node.checks.golden import compare_pack
from vla_policy_node.nn import norms, transformer
from vla_policy_node.nn.masks import BIDIRECTIONAL, Visibility

DATA = Path(__file__).parents[1] / 'data'
PI05 = DATA / 'pi05_tiny'
STAGES = [
    'embeddings of the words', 'prefix: rows that count', 'prefix: positions',
    'prefix: who sees whom', 'prefix: every layer', 'prefix: cached k', 'prefix: cached v',
    'expert: positions', 'expert: who sees whom', 'both decoders in one pass',
    'expert: last states', 'adaptive norms']


@pytest.fixture
def vla():
    return lambda *arguments: CliRunner().invoke(cli.app, list(map(str, arguments)))


@pytest.fixture
def pack(tmp_path):
    return Path(shutil.copytree(PI05, tmp_path / 'pi05_tiny'))


def stages(pack, checkpoint=None):
    return worst_by_stage(compare_pack(checkpoint or pack / 'checkpoint', pack))


def failing(pack, checkpoint=None):
    return [stage.stage for stage in stages(pack, checkpoint) if not stage.ok]


def test_every_stage_of_pi05_agrees_with_the_public_implementation():
    compared = [stage for stage in stages(PI05) if stage.verdict != SKIP]
    assert [stage.stage for stage in compared] == STAGES
    assert {stage.verdict for stage in compared} == {PASS}
    # Far within: the tolerance is for other processors.
    assert max(stage.ratio for stage in compared) < 0.2


def test_the_command_says_what_agrees_and_what_nothing_here_computes(vla):
    result = vla('check', PI05 / 'checkpoint', '--golden', PI05)
    assert result.exit_code == 0, result.output
    assert 'A pi05 policy cannot run here yet' in result.output
    assert 'not compared: actions, actions_norm' in ' '.join(result.output.split())
    assert 'All checks passed' not in result.output


def test_without_recordings_such_a_checkpoint_fails(vla):
    result = vla('check', PI05 / 'checkpoint')
    assert result.exit_code == 1
    assert 'a pi05 policy cannot run here yet; --golden compares its decoders' in result.output


@pytest.mark.parametrize(('owner', 'name', 'value', 'first'), [
    (golden_pi, 'VISIBILITY', BIDIRECTIONAL, 'both decoders in one pass'),
    (golden_pi, 'VISIBILITY', Visibility(causal=(0,)), 'prefix: who sees whom'),
    (golden_pi, 'VISIBILITY', Visibility((('actions',),), causal=(1,)), 'expert: who sees whom'),
    (golden_pi, 'HEADS', 16, 'prefix: every layer'),
    (transformer, 'activate', lambda x, _: torch.nn.functional.gelu(x), 'prefix: every layer'),
    (norms, 'normalise', lambda x, eps: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5),
     'prefix: every layer'),
    (transformer, 'gated', lambda x, gate: x, 'both decoders in one pass'),
])
def test_one_wrong_constant_is_found_in_its_stage(monkeypatch, owner, name, value, first):
    monkeypatch.setattr(owner, name, value)
    assert failing(PI05)[0] == first


def test_masked_rows_must_not_move_the_others(pack):
    """The expert's positions follow the rows that count."""
    path = pack / 'case1.npz'
    arrays = dict(np.load(path))
    arrays['lang_masks'][:, -1] = True
    np.savez(path, **arrays)
    assert 'prefix: positions' in failing(pack)


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda tensors: tensors.pop(next(name for name in tensors if 'down_proj' in name)),
     'holds another decoder than its kind has'),
    (lambda tensors: tensors.clear() or tensors.update(x=torch.zeros(1)),
     'has no tensors named paligemma_with_expert'),
    (lambda tensors: tensors.update({name: tensor[0] for name, tensor in tensors.items()}),
     'holds no decoders of pi05'),
])
def test_weights_of_something_else_are_refused_with_a_sentence(vla, pack, change, sentence):
    path = pack / 'checkpoint' / 'model.safetensors'
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=sentence):
        failing(pack)
    assert vla('check', pack / 'checkpoint', '--golden', pack).exit_code == 2


def test_a_recording_that_lacks_an_array_says_which(pack):
    path = pack / 'case1.npz'
    arrays = dict(np.load(path))
    del arrays['lang_masks']
    np.savez(path, **arrays)
    (broken,) = [stage for stage in stages(pack) if not stage.ok]
    assert broken.text == "lacks the array 'lang_masks'"


def test_an_unknown_kind_of_recordings_is_told_which_are_known(pack, tmp_path):
    for checkpoint in (DATA / 'oft_tiny' / 'checkpoint', pack / 'checkpoint'):
        folder = tmp_path / checkpoint.parent.name
        folder.mkdir(exist_ok=True)
        np.savez(folder / 'strange.npz', x=np.zeros(3))
        if folder == pack:
            (pack / 'case1.npz').unlink()
        (finding,) = compare_pack(checkpoint, folder)
        assert finding.case == 'strange'
        assert 'OpenVLA-OFT, LightVLA, preprocessing, pi0, pi0.5 and SmolVLA' in finding.text


def test_recordings_of_another_kind_than_the_checkpoint_are_told_apart(pack):
    (finding,) = compare_pack(DATA / 'oft_tiny' / 'checkpoint', pack)
    assert finding.text == 'is of another kind of policy than the checkpoint'
    document = json.loads((pack / 'checkpoint' / 'config.json').read_text())
    (pack / 'checkpoint' / 'config.json').write_text(json.dumps({**document, 'type': 'smolvla'}))
    (finding,) = compare_pack(pack / 'checkpoint', pack)
    assert finding.text.startswith('is of no inference of smolvla')


def smolvla_pack(folder):
    """A pack of SmolVLA's form that nobody but this code made: it must agree with itself."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    width, narrow, heads, keys = 24, 16, 6, 8
    root, tensors = 'model.vlm_with_expert.', {}
    for part, own in (('vlm.model.text_model', width), ('lm_expert', narrow)):
        for index in range(2):
            source = keys if (part, index) == ('lm_expert', 1) else own
            shapes = {
                'input_layernorm': (own,), 'post_attention_layernorm': (own,),
                'self_attn.q_proj': (heads * 4, own), 'self_attn.k_proj': (keys, source),
                'self_attn.v_proj': (keys, source), 'self_attn.o_proj': (own, heads * 4),
                'mlp.gate_proj': (40, own), 'mlp.up_proj': (40, own), 'mlp.down_proj': (own, 40)}
            for name, shape in shapes.items():
                tensors[f'{root}{part}.layers.{index}.{name}.weight'] = random(*shape)
        tensors[f'{root}{part}.norm.weight'] = random(own)
    tensors[f'{root}vlm.model.text_model.embed_tokens.weight'] = random(30, width)
    (folder / 'checkpoint').mkdir(parents=True)
    (folder / 'vlm_backbone').mkdir()
    save_file(tensors, folder / 'checkpoint' / 'model.safetensors')
    (folder / 'checkpoint' / 'config.json').write_text('{"type": "smolvla"}')
    (folder / 'vlm_backbone' / 'config.json').write_text(
        json.dumps({'text_config': {'num_attention_heads': heads}}))
    rows = {
        'image0_connector': random(1, 4, width), 'image0_mask': torch.tensor([True]),
        'lang_tokens': torch.tensor([[3, 4, 5]]), 'lang_mask': torch.tensor([[True, True, False]]),
        'state_embedding': random(1, width), 'noise': random(1, 5, 12),
        'suffix_layer_inputs_step0': random(2, 1, 5, narrow)}
    scale = width**0.5
    words = tensors[f'{root}vlm.model.text_model.embed_tokens.weight'][rows['lang_tokens']] * scale
    rows['prefix_embs'] = torch.cat(
        [rows['image0_connector'] * scale, words, rows['state_embedding'][:, None]], dim=1)
    rows['prefix_position_ids'] = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 6]])
    return rows


def test_smolvla_is_read_as_far_as_its_layers_are_here(tmp_path):
    """Rows, positions and masks by hand; layers are compared with recordings by hand."""
    rows = smolvla_pack(folder := tmp_path / 'smolvla')
    seen = torch.ones(8, 8, dtype=torch.bool)
    seen[:7, 7] = False  # only the state sees itself
    seen[6], seen[:, 6] = False, False  # the third word fills up
    rows['prefix_att_2d'] = seen[None]
    np.savez(folder / 'case0.npz', **{name: tensor.numpy() for name, tensor in rows.items()})
    found = {stage.stage: stage for stage in stages(folder)}
    for name in ('rows', 'positions', 'who sees whom'):
        assert found.pop(f'prefix: {name}').verdict == PASS
    # Its recorded output is noise here.
    assert not found['expert: layers that attend to themselves'].ok
    assert golden_smolvla.is_recording(rows)
