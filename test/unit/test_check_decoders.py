"""`vla check --golden` on policies of which only the decoders are here: SmolVLA."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vla_policy_node.checks import golden_smolvla
from vla_policy_node.checks.findings import PASS, worst_by_stage
from vla_policy_node.checks.golden import compare_pack

DATA = Path(__file__).parents[1] / 'data'


def stages(pack, checkpoint=None):
    return worst_by_stage(compare_pack(checkpoint or pack / 'checkpoint', pack))


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
