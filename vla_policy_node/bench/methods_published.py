"""What the methods would compute in the published sizes, counted and not run.

The rows that each layer works on come from a stand-in: 32 layers and 512 visual tokens as in the
public 7.5-billion-parameter checkpoints, but narrow, with random weights. For methods that keep a
fixed number of tokens or layers that is their schedule; for those that look at the picture first
(LightVLA, gates, caches, early exits) it is the schedule of random weights on noise, and says so.
What choosing itself costs is left out: it depends on widths the stand-in does not have.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Step
from vla_policy_node.acceleration.row_recorder import RowRecorder
from vla_policy_node.evaluation.contenders import Contender
from vla_policy_node.models import small
from vla_policy_node.models.config import read_config
from vla_policy_node.models.flops import count_flops
from vla_policy_node.models.openvla_oft import OpenVlaOft

PUBLISHED = {'vision_backbone_id': 'dinosiglip-vit-so-224px', 'text_config': {}}
MODEL = 'OpenVLA-OFT 7.5 B (counted, not run)'
PROMPT_IDS = 36
FRAMES = 3  # the last of which is counted, so that caches are warm
DEPENDS_ON_INPUT = frozenset({
    'lightvla', 'lightvla_star', 'sp_vla', 'flashvla', 'adp', 'vla_cache', 'specprune', 'deer',
})


def published_rows(contenders: Sequence[Contender]) -> list[dict]:
    """Return a row for each contender that needs no weights of its own."""
    model = _stand_in()
    rows = []
    for contender in contenders:
        try:
            rows.append(_row(copy.deepcopy(model), contender))
        except ValueError:
            continue  # what has to be learnt cannot be stood in for
    return rows


def _row(model: OpenVlaOft, contender: Contender) -> dict:
    methods = [
        acceleration.create(name, **contender.settings.get(name, {}))
        for name in contender.methods
    ]
    acceleration.prepare(methods, Path(), model.config)
    for method in methods:
        method.change_model(model)
    recorder = RowRecorder()
    generator = torch.Generator().manual_seed(0)
    side = model.config.image_px
    images = torch.rand(model.config.cameras, 3, side, side, generator=generator)
    prompt_ids = torch.randint(4, 64, (1, PROMPT_IDS), generator=generator)
    step = Step(images, np.zeros(8), np.full(7, -1.0), np.ones(7))
    with torch.inference_mode():
        for _ in range(FRAMES):
            answers = [method.begin_step(step) for method in methods]
            if any(answer is not None for answer in answers):
                continue  # counted is what the network costs when it runs
            recorder.reset()
            pixels = torch.cat([images, images], dim=1)[None]
            actions = model(pixels, torch.zeros(1, 8), prompt_ids, (*methods, recorder))
            for method in methods:
                method.end_step(actions[0].numpy().astype(float), reused=False)
    kept = np.ones(model.config.visual_tokens, bool)
    for report in (method.report() for method in methods):
        kept = kept if report is None else kept & report.kept
    flops = count_flops(read_config(PUBLISHED), recorder.layer_rows)
    return {
        'method': contender.label,
        'model': MODEL,
        'success_rate': None,
        'episodes': 0,
        'tokens': float(kept.sum()),
        'tokens_total': len(kept),
        'layers': float(len(recorder.layer_rows)),
        'layers_total': model.config.language_model.layers,
        'flops': float(sum(flops.values())),
        'flops_by_stage': {stage: float(count) for stage, count in flops.items()},
        'latency_ms': None,
        'depends_on_input': bool(DEPENDS_ON_INPUT & set(contender.methods)),
    }


def _stand_in() -> OpenVlaOft:
    """As deep as the published model and with as many rows, 64 wide."""
    document = copy.deepcopy(dict(small.CONFIG))
    for tower in document['vision_tiny'].values():
        tower.update(embed_dim=16, feature_block=0, num_heads=1, mlp_hidden=16)
    document['text_config'] = {
        'hidden_size': 64, 'num_hidden_layers': 32, 'num_attention_heads': 2,
        'intermediate_size': 64, 'vocab_size': 64,
    }
    torch.manual_seed(0)
    return OpenVlaOft(read_config(document)).eval()
