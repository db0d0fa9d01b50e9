"""`vla check --golden` on pi0.5, from pixels to actions and through a training step."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.checks.findings import PASS, worst_by_stage
from vla_policy_node.checks.golden import compare_pack
from vla_policy_node.families import pi0
from vla_policy_node.nn import flow, flow_head, norms, transformer
from vla_policy_node.nn.masks import BIDIRECTIONAL, Visibility

DATA = Path(__file__).parents[1] / 'data'
PI05 = DATA / 'pi05_tiny'
STAGES = [
    'vision: every block', 'vision: last states', 'visual tokens', 'embeddings of the words',
    'prefix: rows that count', 'prefix: positions', 'prefix: who sees whom',
    'prefix: every layer', 'prefix: cached k', 'prefix: cached v', 'time', 'waves of the time',
    'expert: conditions', 'adaptive norms', 'expert: rows', 'expert: every layer',
    'expert: last states', 'velocity', 'noisy actions', 'expert: positions',
    'expert: who sees whom', 'both decoders in one pass', 'normalised actions']
OTHERS = [
    'times of openpi', 'actions of openpi', 'state', 'prompt', 'prompt: ids',
    'end to end: normalised', 'end to end: actions', 'guidance: schedules', 'guided flow',
    'guidance: factors', 'guided flow, differentiated', 'training: who sees whom',
    'training: positions', 'training: last states', 'training: velocity', 'training: losses',
    "training: LeRobot's loss",
    "training: openpi's loss", 'training: gradients', 'training: norms of gradients',
    "openpi's prompts"]


@pytest.fixture
def vla():
    return lambda *arguments: CliRunner().invoke(cli.app, list(map(str, arguments)))


@pytest.fixture(scope='module')
def one_case(tmp_path_factory):
    """One recorded inference, of which every stage is there."""
    folder = tmp_path_factory.mktemp('one')
    shutil.copy(PI05 / 'case0.npz', folder)
    return folder


@pytest.fixture
def pack(tmp_path):
    return Path(shutil.copytree(PI05, tmp_path / 'pi05_tiny'))


def stages(pack, checkpoint=None):
    return worst_by_stage(compare_pack(checkpoint or pack / 'checkpoint', pack))


def failing(pack, checkpoint=None):
    return [stage.stage for stage in stages(pack, checkpoint) if not stage.ok]


def test_every_stage_agrees_with_the_public_implementations():
    compared = stages(PI05)
    found = [stage.stage for stage in compared]
    assert [stage for stage in found if stage in STAGES] == STAGES
    assert [stage for stage in found if stage in OTHERS] == OTHERS
    assert {stage.verdict for stage in compared} == {PASS}
    # Far within: the tolerance is for other processors.
    assert max(stage.ratio for stage in compared) < 0.4


def test_the_command_needs_no_tokenizer_beside_a_pack(vla):
    result = vla('check', PI05 / 'checkpoint', '--golden', PI05)
    assert result.exit_code == 0, result.output
    assert 'All checks passed' in result.output
    result = vla('check', PI05 / 'checkpoint')
    assert result.exit_code == 1
    assert "PaliGemma's is given out by Google" in ' '.join(result.output.split())


@pytest.mark.parametrize(('owner', 'name', 'value', 'first'), [
    (pi0, 'VISIBILITY', BIDIRECTIONAL, 'both decoders in one pass'),
    (pi0, 'VISIBILITY', Visibility(causal=(0,)), 'prefix: who sees whom'),
    (pi0, 'VISIBILITY', Visibility((('actions',),), causal=(1,)), 'expert: who sees whom'),
    (transformer, 'activate', lambda x, _: torch.nn.functional.gelu(x), 'prefix: every layer'),
    (norms, 'normalise', lambda x, eps: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5),
     'prefix: every layer'),
    (transformer, 'gated', lambda x, gate: x, 'expert: rows'),
    (pi0, 'flow_times', lambda steps, _: flow.flow_times(steps, accumulated=True),
     'expert: last states'),
    (flow_head, 'embed_time', lambda time, width, periods: flow.embed_time(
        time, width, periods).roll(width // 2, -1), 'expert: conditions'),
])
def test_one_wrong_constant_is_found_in_its_stage(
    monkeypatch, one_case, owner, name, value, first
):
    monkeypatch.setattr(owner, name, value)
    assert failing(one_case, PI05 / 'checkpoint')[0] == first


@pytest.mark.parametrize(('heads', 'first'), [
    ({'vision': 4}, 'vision: every block'),
    ({'paligemma': 16, 'action_expert': 16}, 'prefix: every layer'),
])
def test_other_heads_than_in_training_are_found(pack, one_case, heads, first):
    path = pack / 'checkpoint' / 'tiny_sizes.json'
    sizes = json.loads(path.read_text())
    for part, count in heads.items():
        sizes[part]['num_heads'] = count
    path.write_text(json.dumps(sizes))
    assert failing(one_case, pack / 'checkpoint')[0] == first


def test_masked_rows_must_not_move_the_others(pack):
    """The expert's positions follow the rows that count."""
    path = pack / 'case1.npz'
    arrays = dict(np.load(path))
    arrays['lang_masks'][:, -1] = True
    np.savez(path, **arrays)
    assert 'prefix: positions' in failing(pack)


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda tensors: tensors.pop(next(name for name in tensors if 'down_proj' in name)),
     r'lacks 1 of \d+ tensors'),
    (lambda tensors: tensors.clear() or tensors.update(x=torch.zeros(1)),
     'has no weights paligemma_with_expert'),
    (lambda tensors: tensors.update({name: tensor[0] for name, tensor in tensors.items()}),
     'which no policy has there'),
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
    assert "lacks the array 'lang_masks'" in {
        stage.text for stage in compare_pack(pack / 'checkpoint', pack) if not stage.ok}


def test_an_unknown_kind_of_recordings_is_told_which_are_known(tmp_path):
    np.savez(tmp_path / 'strange.npz', x=np.zeros(3))
    for name in ('oft_tiny', 'pi05_tiny'):
        finding, *_ = compare_pack(DATA / name / 'checkpoint', tmp_path)
        assert finding.case == 'strange'
        assert 'OpenVLA-OFT, LightVLA, preprocessing, pi0, pi0.5 and SmolVLA' in finding.text


def test_recordings_of_another_kind_than_the_checkpoint_are_told_apart(pack):
    finding, *_ = compare_pack(DATA / 'oft_tiny' / 'checkpoint', pack)
    assert finding.text == 'is of another kind of policy than the checkpoint'
    finding, *_ = compare_pack(DATA / 'smolvla_tiny' / 'checkpoint', pack)
    assert finding.text.startswith('is of no inference of SmolVLA')
