"""`vla check`: each point has a verdict, and each can fail."""

import json
import re

import checkpoint_variants as variants
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from vla_policy_node import cli
from vla_policy_node.checks import behaviour, files
from vla_policy_node.checks.behaviour import PrismaticRun
from vla_policy_node.checks.findings import FAIL, PASS, SKIP
from vla_policy_node.checks.prompts import LLAMA2_PROMPTS
from vla_policy_node.checks.report import check_checkpoint
from vla_policy_node.encoding.prompt import PromptEncoder
from vla_policy_node.families import read_model_config

HEADS = ('l1', 'discrete', 'diffusion', 'autoregressive')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('check')
    directories = {head: variants.make(root / head, head, diffusion_steps=3) for head in HEADS}
    variants.shard(directories['l1'], 2)
    return directories


@pytest.fixture
def l1(made, tmp_path):
    return variants.copy(made['l1'], tmp_path / 'l1')


@pytest.fixture
def trial(made):
    directory = made['l1']
    return PrismaticRun.prepare(directory, variants.load(directory))


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize('head', HEADS)
def test_every_kind_of_policy_passes(made, head):
    findings = {finding.name: finding for finding in check_checkpoint(made[head])}
    assert FAIL not in {finding.verdict for finding in findings.values()}, findings
    assert set(findings) == {'policy', 'files', 'statistics', 'assumptions', 'proprio',
                             'normalisation', 'prompt ids', 'dtype', 'decoding', 'attention',
                             'action rows', 'images'}
    assert (findings['attention'].verdict == SKIP) == (head == 'autoregressive')


def test_verdicts_and_exit_code(made, l1):
    result = CliRunner().invoke(cli.app, ['check', str(made['l1'])])
    assert result.exit_code == 0
    assert 'All checks passed.' in result.output
    (l1 / 'model-00001-of-00002.safetensors').unlink()
    result = CliRunner().invoke(cli.app, ['check', str(l1)])
    assert result.exit_code == 1
    assert 'tensors are missing' in result.output
    assert 'FAIL: files; loading' in result.output


def test_what_is_not_there_is_refused_with_a_sentence():
    result = CliRunner().invoke(cli.app, ['check', '/no/such'])
    assert result.exit_code == 2
    assert 'there is no such directory' in result.output


# --- files ---


def check_files(directory):
    return files.check_files(directory, read_model_config(directory))


def test_totals_are_said(made):
    finding = check_files(made['l1'])
    assert finding.verdict == PASS
    assert 'in 2 files' in finding.text
    assert 'action_head--7_checkpoint.safetensors' in finding.text


@pytest.mark.parametrize(('change', 'sentence'), [
    (lambda tensors: tensors.pop('projector.fc1.bias'), 'first projector.fc1.bias'),
    (lambda tensors: tensors.update({'projector.fc1.bias': torch.zeros(2)}),
     r'projector\.fc1\.bias: \[2\] instead of \[192\]'),
    (lambda tensors: tensors.update({'pruner.weight': torch.zeros(2)}),
     r'no place in this model, first pruner\.weight'),
])
def test_tensors_that_are_missing_misshapen_or_unknown_are_named(l1, change, sentence):
    rewrite(l1 / 'model-00001-of-00002.safetensors', change)
    finding = check_files(l1)
    assert finding.verdict == FAIL
    assert re.search(sentence, finding.text), finding.text


def test_what_no_forward_pass_uses_may_be_there_or_not(l1):
    unused = {
        'language_model.lm_head.weight': torch.zeros(3),
        'vision_backbone.fused_featurizer.attn_pool.q.bias': torch.zeros(3),
        'vision_backbone.featurizer.norm.weight': torch.zeros(3),
        'vision_backbone.featurizer.blocks.23.norm1.weight': torch.zeros(3),
    }
    (l1 / 'model.safetensors.index.json').unlink()
    rewrite(l1 / 'model-00001-of-00002.safetensors', lambda tensors: tensors.update(unused))
    assert check_files(l1).verdict == PASS


def test_a_film_policy_passes_with_the_backbone_it_replaces_beside_it(made, tmp_path):
    directory = variants.make(tmp_path / 'film', film=True)
    plain = load_file(next(made['discrete'].glob('model.safetensors')))
    backbone = {name: tensor for name, tensor in plain.items() if name.startswith('vision_')}
    rewrite(directory / 'model.safetensors', lambda tensors: tensors.update(backbone))
    assert {finding.verdict for finding in check_checkpoint(directory)} == {PASS, SKIP}


def test_the_index_promises_bytes_and_places(l1):
    index = l1 / 'model.safetensors.index.json'
    edit(index, lambda document: document['metadata'].update(total_size=5))
    assert 'the index says 5' in check_files(l1).text
    edit(index, lambda document: document['weight_map'].pop('projector.fc1.bias'))
    assert '1 tensors are not in the files' in check_files(l1).text


def test_public_sizes_have_public_totals(made, monkeypatch):
    """A checkpoint of the public size has to have 982 tensors and 7,541,237,184 parameters."""
    config = read_model_config(made['l1'])
    monkeypatch.setattr(files, 'DecoderConfig', lambda: config.language_model)
    monkeypatch.setattr(type(config), 'image_px', 224)
    assert 'public checkpoints 982 of 7,541,237,184' in files.check_files(
        made['l1'], config).text


# --- statistics, constants, prompts, dtype ---


def check_statistics(directory, suite='', key=''):
    config = read_model_config(directory)
    return files.check_statistics(directory, config, suite, key)


def test_statistics_of_the_suite_that_is_asked_for(l1):
    path = l1 / 'dataset_statistics.json'
    edit(path, lambda d: d.update(libero_10_no_noops=next(iter(d.values()))))
    assert check_statistics(l1, suite='libero_10').text.startswith('libero_10_no_noops')
    assert check_statistics(l1, suite='libero_goal').verdict == FAIL
    assert check_statistics(l1, key='libero_goal').verdict == FAIL
    assert 'a policy has to name one' in check_statistics(l1).text


def test_statistics_without_a_data_set_are_a_failure(l1):
    (l1 / 'dataset_statistics.json').write_text('{}')
    finding = check_statistics(l1)
    assert (finding.verdict, 'holds no data set' in finding.text) == (FAIL, True)


@pytest.mark.parametrize(('kept', 'sentence'), [
    ((6,), 'all numbers of an action but gripper are un-normalised'),
    ((), 'all numbers of an action are un-normalised'),
])
def test_what_of_an_action_stays_as_it_is_is_named(l1, kept, sentence):
    mask = [index not in kept for index in range(7)]
    edit(l1 / 'dataset_statistics.json',
         lambda document: next(iter(document.values()))['action'].update(mask=mask))
    finding = check_statistics(l1)
    assert (finding.verdict, finding.text.endswith(sentence)) == (PASS, True)


def test_a_gripper_is_found_by_its_name(l1):
    edit(l1 / 'config.json', lambda document: document.update(
        actions=['left_gripper', 'a', 'b', 'c', 'd', 'e', 'f']))

    def keep(index):
        edit(l1 / 'dataset_statistics.json',
             lambda document: next(iter(document.values()))['action'].update(
                 mask=[place != index for place in range(7)]))
        return check_statistics(l1)

    assert keep(0).text.endswith('but left_gripper are un-normalised')
    assert keep(6).verdict == FAIL


@pytest.mark.parametrize(('entry', 'value', 'sentence'), [
    ('mask', [True] * 6, 'action.mask must be a list of 7 numbers'),
    ('mask', [False] * 7, 'leaves a motion dimension as it is'),
    ('q99', [1.0] * 6, 'action.q99 must be a list of 7 numbers'),
    ('q99', [float('nan')] * 7, 'must be finite'),
    ('q99', [-9.0] * 7, 'q01 of action dimension 0 is above q99'),
    ('q01', 'low', 'must be a list of 7 numbers'),
])
def test_damaged_statistics_are_refused(l1, entry, value, sentence):
    edit(l1 / 'dataset_statistics.json',
         lambda document: next(iter(document.values()))['action'].update({entry: value}))
    finding = check_statistics(l1)
    assert finding.verdict == FAIL
    assert sentence in finding.text


def test_imagenets_constants_before_rounding_are_found(l1):
    edit(l1 / 'preprocessor_config.json',
         lambda d: d['tvf_normalize_params'][0].update(mean=[0.485, 0.456, 0.406]))
    assert files.check_normalisation(l1, read_model_config(l1)).verdict == FAIL


def test_prompt_ids_are_compared_where_the_vocabulary_is_llamas(l1, monkeypatch):
    config = read_model_config(l1)
    assert files.check_prompt_ids(l1, config).verdict == SKIP
    edit(l1 / 'config.json', lambda document: document.pop('tiny_token_ids'))
    edit(l1 / 'config.json', lambda document: document['text_config'].update(vocab_size=32064))
    config = read_model_config(l1)
    assert files.check_prompt_ids(l1, config).verdict == FAIL

    class Llama2:
        def encode(self, instruction):
            return list(LLAMA2_PROMPTS[instruction])

    monkeypatch.setattr(PromptEncoder, 'load', lambda *arguments: Llama2())
    assert files.check_prompt_ids(l1, config).verdict == PASS


def test_weights_that_are_no_numbers_are_found(made):
    directory = made['l1']
    model = variants.load(directory)
    assert files.check_dtypes(directory, model, 'float32').verdict == PASS
    assert files.check_dtypes(directory, model, 'bfloat16').verdict == FAIL
    model.projector.fc1.bias = torch.nn.Parameter(torch.full((192,), torch.nan))
    finding = files.check_dtypes(directory, model, 'float32')
    assert finding.text == 'projector.fc1.bias holds NaN or infinity'


def test_behind_weights_that_are_no_numbers_nothing_is_tried(l1):
    for path in l1.glob('model*.safetensors'):
        rewrite(path, lambda tensors: [tensor.fill_(torch.nan) for tensor in tensors.values()])
    *_, last = check_checkpoint(l1)
    assert (last.name, last.verdict) == ('dtype', FAIL)


# --- behaviour ---


def test_a_causal_mask_is_found(trial, monkeypatch):
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        'vla_policy_node.nn.transformer.functional.scaled_dot_product_attention',
        lambda query, key, value, attn_mask=None: attend(query, key, value, is_causal=True))
    finding = behaviour.check_attention(trial)
    assert finding.verdict == FAIL
    assert 'does not reach the first' in finding.text


def test_shifted_action_rows_are_found(trial, made, monkeypatch):
    monkeypatch.setitem(behaviour.ACTION_ROWS, 'oft', 1)
    finding = behaviour.check_action_rows(trial, made['l1'])
    assert finding.verdict == FAIL
    assert "'oft' does not read rows" in finding.text


@pytest.mark.parametrize(('blind', 'sentence'), [
    (lambda pixels: pixels * 0, 'black against white, camera 1 black, camera 2 black'),
    (lambda pixels: pixels[:, [0, 0]], 'with camera 2 black'),
    (lambda pixels: pixels.mean(dim=1, keepdim=True).expand_as(pixels), 'with cameras swapped'),
])
def test_a_policy_that_does_not_look_is_found(trial, monkeypatch, blind, sentence):
    see = trial.model.visual_features
    monkeypatch.setattr(
        trial.model, 'visual_features', lambda pixels, *rest: see(blind(pixels), *rest))
    finding = behaviour.check_images(trial)
    assert finding.verdict == FAIL
    assert sentence in finding.text
