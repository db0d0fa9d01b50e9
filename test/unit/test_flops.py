"""The analytic count is what torch itself counts, for every head, dense and pruned."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoint_variants import with_inputs
from torch.utils import flop_counter

from vla_policy_node import acceleration, families
from vla_policy_node.acceleration.base import Method
from vla_policy_node.families import config_of, count_flops, create_network, sequence_rows
from vla_policy_node.nn.config import DitConfig
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.runtime import small

PROMPT_IDS = 11
LAYERS = 4
COGACT = {'head': 'cogact', 'chunk_length': 16}


def make_model(**changes):
    document = copy.deepcopy(small.CONFIG)
    for encoder in document['vision_tiny'].values():
        encoder.update(embed_dim=24, feature_block=1, num_heads=2, mlp_hidden=40, img_size=56)
    document['text_config'].update(
        hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=48)
    family = families.named(changes.pop('head', 'l1'))
    config = with_inputs(config_of(document), *changes.pop('inputs', (2, True)))
    config = replace(family.configure(config), **changes)
    torch.manual_seed(0)
    return create_network(config).eval()


def torchs_count(model, methods=()):
    size = model.config.image_px
    # torch counts attention on GPUs only, unless it is told how.
    attention = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            lambda query, key, value, *_, **__: flop_counter.sdpa_flop_count(query, key, value)}
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=attention)
    pixels = torch.randn(1, model.config.cameras, 6, size, size)
    if hasattr(model.action_head, 'decode'):
        # What an untrained model answers need not be action tokens, and would be refused.
        model.action_head.decode = lambda ids: ids
    with torch.no_grad(), counter:
        prompt_ids = torch.ones(1, PROMPT_IDS, dtype=torch.int64)
        model((pixels, torch.zeros(1, 8), prompt_ids), ForwardPass(methods))
    return counter.get_total_flops()


def counted(model, layer_rows):
    return sum(count_flops(model.config, layer_rows).values())


class Rows(Method):
    """Records the rows of each layer; `first` and `later` visual tokens stay, if given."""

    def __init__(self, first=0, later=0):
        self.first, self.later, self.rows = first, later, []

    def select_tokens(self, sequence):
        return sequence.keep_visual(torch.arange(self.first)) if self.first else sequence

    def before_layer(self, index, sequence):
        drops = self.later and index == 1
        return sequence.keep_visual(torch.arange(self.later)) if drops else sequence

    def watch_attention(self, index, sequence, attention):
        self.rows.append(sequence.states.shape[1])


def test_dense():
    model = make_model()
    rows = sequence_rows(model.config, PROMPT_IDS)
    assert counted(model, [rows] * LAYERS) == torchs_count(model)


def test_rows_dropped_before_and_between_layers():
    model = make_model()
    rows = sequence_rows(model.config, PROMPT_IDS)
    expected = [rows - 32 + 20, *[rows - 32 + 7] * (LAYERS - 1)]
    assert counted(model, expected) == torchs_count(model, [Rows(20, 7)])


@pytest.mark.parametrize('changes', [
    {'head': 'discrete'},
    {'head': 'autoregressive', 'inputs': (1, False), 'chunk_length': 1},
    {'inputs': (2, False)},
    {'inputs': (1, True)},
])
def test_other_heads_and_inputs(changes):
    model = make_model(**changes)
    rows = sequence_rows(model.config, PROMPT_IDS)
    assert counted(model, [rows] * LAYERS) == torchs_count(model)


def test_a_diffusion_head_pays_for_every_step():
    model = make_model(head='diffusion', diffusion_steps=3)
    rows = sequence_rows(model.config, PROMPT_IDS)
    assert counted(model, [rows] * LAYERS * 3) == torchs_count(model)


@pytest.mark.parametrize('guidance', [1.0, 1.5])
@pytest.mark.parametrize('cameras', [1, 2])
def test_a_diffusion_transformer_pays_for_itself_in_every_step(guidance, cameras):
    model = make_model(**COGACT, inputs=(cameras, cameras == 2),
                       dit=DitConfig(2, 24, 2, denoising_steps=5, guidance=guidance))
    rows = sequence_rows(model.config, PROMPT_IDS)
    assert rows == PROMPT_IDS + 16 * cameras + (cameras == 2) + 1
    assert counted(model, [rows] * LAYERS) == torchs_count(model)


@pytest.mark.parametrize('interval', [1, 2, 5])
def test_reused_denoising_steps_cost_an_embedding_and_a_product(interval):
    model = make_model(**COGACT, dit=DitConfig(2, 24, 2))
    method = acceleration.create('efficientvla_cache', interval=interval)
    rows = sequence_rows(model.config, PROMPT_IDS)
    reused = 10 - 10 // interval
    expected = torchs_count(model, [method])
    assert method.report().denoising_reused == reused
    assert sum(count_flops(model.config, [rows] * LAYERS, reused).values()) == expected


def test_film():
    config = make_model().config
    encoders = {name: replace(getattr(config, name), language_width=32)
              for name in ('dino', 'siglip')}
    model = make_model(**encoders)
    rows = sequence_rows(model.config, PROMPT_IDS)
    assert counted(model, [rows] * LAYERS) == torchs_count(model)


@pytest.mark.parametrize(('name', 'settings'), [
    ('lightvla', {}),
    ('random_tokens', {'count': 5}),
    ('fastv', {'count': 5}),
    ('efficientvla_tokens', {'count': 7}),
    ('efficientvla_tokens', {'count': 7, 'attention_from': 'tokens'}),
])
def test_methods_report_what_choosing_costs(name, settings):
    model = make_model()
    method, rows = acceleration.create(name, **settings), Rows()
    method.prepare(Path(), model.config)
    expected = torchs_count(model, [method, rows])
    assert len(set(rows.rows)) == (2 if hasattr(method, 'layer') else 1)
    assert counted(model, rows.rows) + method.report().flops == expected


def test_the_published_sizes_cost_what_their_paper_says():
    """OpenVLA-OFT on two images: 8.8 TFLOPs in the LightVLA paper (arXiv 2509.12594)."""
    config = config_of({'vision_backbone_id': 'dinosiglip-vit-so-224px', 'text_config': {}})
    flops = count_flops(config, [605] * 32)
    assert sum(flops.values()) == pytest.approx(8.8e12, rel=0.03)
    assert flops['vision'] == pytest.approx(0.77e12 + 0.073e12, rel=0.05)
