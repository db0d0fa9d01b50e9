"""Low-rank updates, through the `peft` library, for models too large to train in full.

As OpenVLA-OFT fine-tunes: every linear layer of vision encoders, projector and language model gets
an update of rank r, scaled by min(r, 16) / r, zero at first; action head and proprio projector are
trained whole, and so is the expert of a flow policy. The checkpoint holds merged weights and no
trace of the updates.
"""

from __future__ import annotations

import logging

from torch import nn

PARTS = ('vision_backbone.', 'vision.', 'projector.', 'connector.', 'language_model.')
WHOLE = ('action_head.', 'proprio_projector.', 'state_proj.')
_MARK = 'lora_'


def add_lora(model: nn.Module, rank: int) -> None:
    """Put updates of `rank` beside all linear layers of PARTS, in place."""
    # peft is imported by those who use it: it brings torchao, which takes seconds and reports each
    # of its compiled parts that is for another kind of machine.
    logging.getLogger('torchao').setLevel(logging.ERROR)
    from peft import LoraConfig, inject_adapter_in_model

    layers = [
        name for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(PARTS)
    ]
    config = LoraConfig(
        r=rank, lora_alpha=min(rank, 16), target_modules=layers, lora_dropout=0.0,
        init_lora_weights='gaussian')
    inject_adapter_in_model(config, model)


def is_trained(name: str) -> bool:
    """Whether a parameter of a model with updates is trained: the updates, and WHOLE."""
    return _MARK in name or name.startswith(WHOLE)


def merge_lora(model: nn.Module) -> None:
    """Add the updates to the weights and take the extra layers out, in place.

    ValueError if there are none: a merge that ran twice would have added them twice, which
    loads, runs and fails on the robot (openvla-oft issue 151).
    """
    from peft.tuners.lora import LoraLayer

    layers = [
        (name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)
    ]
    if not layers:
        raise ValueError('There are no low-rank updates to merge; were they merged before?')
    for name, layer in layers:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
