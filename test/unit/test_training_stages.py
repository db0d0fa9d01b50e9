"""Stages of training by name: one object each, which alone says what is special about it."""

import re
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from vla_policy_node.acceleration.deer_training import EarlyExits
from vla_policy_node.families import config_of
from vla_policy_node.runtime import small
from vla_policy_node.runtime.small import CONFIG, sized_config
from vla_policy_node.training import stages
from vla_policy_node.training.config import TrainingConfig, read_training_config

ROOT = Path(__file__).parents[2]
YAMLS = ROOT / 'config' / 'training'


@pytest.mark.parametrize('path', sorted(YAMLS.glob('*.yaml')), ids=lambda path: path.stem)
def test_the_yaml_of_a_stage_has_its_name_and_entries(path):
    config = read_training_config(path, {})
    assert config.stage == path.stem
    assert config.objective.keys() == stages.named(path.stem).entries.keys()
    assert set(config.losses) <= set(stages.losses())


def test_every_stage_has_a_yaml():
    assert set(stages.available()) == {path.stem for path in YAMLS.glob('*.yaml')}


def test_what_is_no_stage_loss_or_entry_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match=r"^stage must be one of grounding, .*, not 'flying'\.$"):
        TrainingConfig(stage='flying', steps=1)
    with pytest.raises(ValueError, match=r"^There is no loss 'joy'; choose from token, point, "):
        TrainingConfig(stage='grounding', steps=1, losses={'joy': 1.0})
    with pytest.raises(ValueError, match=r"^Stage grounding has no entry 'exit_every'\.$"):
        TrainingConfig(stage='grounding', steps=1, objective={'exit_every': 2})
    with pytest.raises(ValueError, match=r"there is no entry 'head_blocks'; known are stage, "):
        read_training_config(YAMLS / 'grounding.yaml', {'head_blocks': 2})
    with pytest.raises(ValueError, match=r"^noise must be 'uniform' or 'gumbel', not 'pink'\.$"):
        read_training_config(YAMLS / 'lightvla.yaml', {'noise': 'pink'})


def test_a_former_name_reads_the_entries_of_its_stage(tmp_path):
    (tmp_path / 'old.yaml').write_text('stage: clone\nsteps: 3\n')
    assert read_training_config(tmp_path / 'old.yaml', {}).stage == 'behavior_cloning'


def test_only_the_stage_of_the_head_alone_leaves_the_rest_as_it_is():
    for name in stages.available():
        stage = stages.named(name)
        assert stage.trains('action_head.net.fc1.weight'), name
        assert stage.trains('language_model.norm.weight') == (name != 'cogact_head'), name


def test_a_policy_too_shallow_for_an_exit_is_refused():
    config = config_of(CONFIG)
    with pytest.raises(ValueError, match=r'^deer finds no exit after every 6 of 6 layers; '):
        EarlyExits(config, 6, 1.0)


def test_every_entry_is_explained_with_its_default():
    """In the table of docs/training_a_policy.md."""
    explained = {}
    for line in (ROOT / 'docs' / 'training_a_policy.md').read_text().splitlines():
        if line.startswith('| `'):
            names, values = line.split('|')[1:3]
            names = re.findall(r'`(\w+)`', names)
            values = values.split(',') if len(names) > 1 else [values]
            explained |= dict(zip(names, map(yaml.safe_load, values), strict=True))
    for entry in fields(TrainingConfig):
        if entry.name == 'objective':
            continue
        default = entry.default_factory() if entry.name == 'losses' else entry.default
        default = [] if default == () else default
        assert explained[entry.name] == (None if default is MISSING else default), entry.name
    for stage in stages.available():
        for name, default in stages.named(stage).entries.items():
            assert explained[name] == default, name


def test_a_first_stage_begins_with_a_network_of_the_sizes_that_it_says():
    assert sized_config({}) == CONFIG
    sizes = config_of(sized_config({'layers': 12, 'width': 320, 'vision_blocks': 6}))
    assert (sizes.language_model.layers, sizes.language_model.width) == (12, 320)
    assert (sizes.language_model.heads, sizes.language_model.mlp_width) == (5, 856)
    assert {(e.blocks, e.width, e.heads) for e in (sizes.dino, sizes.siglip)} == {(6, 96, 3)}


@pytest.mark.parametrize(('changes', 'why'), [
    ({'layers': 65}, r'^layers is 65; take 1 to 64\.$'),
    ({'layers': -1}, r'^layers is -1; take 1 to 64\.$'),
    ({'width': 100}, r'^width is 100; take a multiple of 64, or with heads a number'),
    ({'width': 192, 'heads': 64}, 'divides it into even widths'),
    ({'vision_width': 100}, r'^vision_width is 100; take a multiple of 32, or with vision_heads'),
    ({'layers': 'many'}, r'layers takes a int, not'),
])
def test_sizes_that_cannot_be_are_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        read_training_config(YAMLS / 'grounding.yaml', changes)


def test_a_network_that_cannot_be_trained_here_is_refused_before_memory_is_taken(monkeypatch):
    monkeypatch.setattr(small, 'memory_bytes', lambda: 8 << 30)
    with pytest.raises(ValueError, match=r'takes \d+\.\d GB to train, and this machine has 8'):
        read_training_config(YAMLS / 'grounding.yaml', {'layers': 64, 'width': 8192})


def test_sizes_are_not_for_a_checkpoint_that_has_others(tmp_path):
    config = read_training_config(YAMLS / 'grounding.yaml', {'layers': 3})
    run = SimpleNamespace(config=config, start=tmp_path)
    stage = stages.named('grounding')
    stage.check_run(run, config_of(sized_config({'layers': 3})))
    with pytest.raises(ValueError, match=r'^layers=3 is for a new network, and .* Llama 6x192'):
        stage.check_run(run, config_of(CONFIG))
