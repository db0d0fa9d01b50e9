"""Weights of 4 bits compute on a GPU. Needs torchao."""

import checkpoint_variants as variants
import pytest
import torch

from vla_policy_node.families import read_model_config
from vla_policy_node.runtime import loading


def test_int4_runs_on_cuda(tmp_path):
    pytest.importorskip('torchao', reason='torchao is not installed')
    sizes = {**variants.CONFIG['text_config'], 'hidden_size': 128, 'intermediate_size': 256}
    directory = variants.make(tmp_path / 'policy', text_config=sizes)
    config = read_model_config(directory)
    model = loading.load_model(directory, config, 'cuda', 'int4')
    inputs = (torch.randn(1, 2, 6, 56, 56).bfloat16().cuda(), torch.zeros(1, 8).bfloat16().cuda(),
              torch.tensor([[1, 40, 41, 3]]).cuda())
    with torch.inference_mode():
        assert torch.isfinite(model(inputs)).all()
