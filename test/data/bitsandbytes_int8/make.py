"""Writes layer.safetensors with bitsandbytes itself; see README.md."""

import sys
from pathlib import Path

import bitsandbytes
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
layer = bitsandbytes.nn.Linear8bitLt(16, 24, bias=False, has_fp16_weights=False)
weight = torch.randn(24, 16).half()
layer.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
layer = layer.to('cpu')
layer(torch.zeros(1, 16).half())  # quantises
state = {name: tensor.contiguous() for name, tensor in layer.state_dict().items()}
numbers = bitsandbytes.functional.int8_vectorwise_dequant(state['weight'], state['SCB'])
save_file({**state, 'numbers': numbers}, Path(sys.argv[1]) / 'layer.safetensors')
