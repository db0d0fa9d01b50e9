"""Analytic FLOPs of the methods at published model sizes.

The rows that each layer works on come from stand-ins: 32 layers and as many visual tokens as in
the public checkpoints, but narrow, with random weights. For methods that keep a fixed number of
tokens or layers, this is their true schedule. LightVLA is counted at its published share of
tokens, and learnt methods (MoLE, FastDriveVLA) at their published number with random weights. For
methods that depend on the picture (gates, caches), it is the schedule of random weights on noise,
and rows are marked so. The cost of choosing is left out: it depends on widths that the stand-ins
lack.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vla_policy_node import acceleration
from vla_policy_node.acceleration import Effect, Step
from vla_policy_node.acceleration.lightvla import PUBLISHED_COUNT as KEPT
from vla_policy_node.acceleration.mole import layers_to_run
from vla_policy_node.encoding.encoder import Inputs
from vla_policy_node.evaluation.contenders import Contender
from vla_policy_node.families import config_of, count_flops, create_network
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy.interface import Execution
from vla_policy_node.runtime import small

FRAMES = 3  # the last of which is counted, so that caches are warm
LAYERS = 32
RUN = layers_to_run(LAYERS)  # by MoLE

NOTES = f'''\
FLOPs of the rows that each layer works on and of the action head, without what choosing costs.
`lightvla` is counted at the {KEPT} of 512 tokens that it keeps on LIBERO, with one camera
at the same share; `mole` at its published {RUN} of {LAYERS} layers and `fastdrivevla` at half of
the tokens, whichever these are. Rows with * depend on the picture, and here on noise and random
weights.
'''


@dataclass(frozen=True)
class Published:
    """A public model. document: its config.json. prompt_ids: of an instruction of LIBERO."""

    name: str
    document: Mapping
    prompt_ids: int

    @property
    def config(self) -> ModelConfig:
        """Its sizes."""
        return config_of(self.document)

    def stand_in(self) -> PrismaticVla:
        """As deep as the model and with as many rows, 64 wide."""
        document = copy.deepcopy({**small.CONFIG, **self.document})
        for encoder in document['vision_tiny'].values():
            encoder.update(embed_dim=16, feature_block=0, num_heads=1, mlp_hidden=16)
        document['text_config'] = {
            'hidden_size': 64, 'num_hidden_layers': LAYERS, 'num_attention_heads': 2,
            'intermediate_size': 64, 'vocab_size': 64,
        }
        if 'dit' in document:
            document['dit'] = {'blocks': 1, 'width': 16, 'heads': 1}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return create_network(config_of(document)).eval()


_VISION_ENCODERS_AND_LLAMA = {'vision_backbone_id': 'dinosiglip-vit-so-224px'}
MODELS = (
    Published('OpenVLA-OFT 7.5 B (counted, not run)', _VISION_ENCODERS_AND_LLAMA, prompt_ids=36),
    # With so long a prompt the FLOPs are those of EfficientVLA's table 1.
    Published('CogACT-Base 7.6 B (counted, not run)', {
        **_VISION_ENCODERS_AND_LLAMA, 'head': 'cogact', 'dit': {}, 'chunk_length': 16,
        'cameras': 1, 'proprio': False}, prompt_ids=25),
)


def published_rows(contenders: Sequence[Contender]) -> list[dict]:
    """Return a row for each model and each contender that can be counted on it.

    Which checkpoint a contender learnt in does not matter here, only its computation.
    """
    chosen = {contender.label.partition('@')[0]: contender for contender in contenders}
    rows = []
    for published in MODELS:
        model = published.stand_in()
        with tempfile.TemporaryDirectory() as folder:
            for method in map(acceleration.named, acceleration.available()):
                if Effect.COST_VARIES not in method.does:  # else training decides what it costs
                    method.save_untrained(Path(folder), model.config)
            for label, contender in chosen.items():
                try:
                    row = _row(published, copy.deepcopy(model), contender, Path(folder))
                except ValueError:
                    continue  # not for this model, or its schedule itself is learnt
                rows.append({'method': label, **row})
    return rows


def _row(published: Published, model: PrismaticVla, contender: Contender, learnt: Path) -> dict:
    config = model.config
    methods = [
        acceleration.create(name, **{
            **acceleration.named(name).counted_settings(config),
            **contender.settings.get(name, {})})
        for name in contender.methods
    ]
    acceleration.prepare(methods, learnt, config)
    acceleration.change_network(methods, model)
    generator = torch.Generator().manual_seed(0)
    side = config.image_px
    images = torch.rand(config.cameras, 3, side, side, generator=generator)
    prompt_ids = torch.randint(4, 64, (1, published.prompt_ids), generator=generator)
    pixels = torch.cat([images, images], dim=1)[None]
    execution = Execution()
    with torch.inference_mode():
        for _ in range(FRAMES):  # of steps without the network there is nothing to count
            for method in methods:
                method.begin_step(Step(images, np.zeros(config.proprio_size), execution))
            forward_pass = ForwardPass(methods)
            proprio = torch.zeros(1, config.proprio_size)
            actions = model(Inputs(pixels, proprio, prompt_ids), forward_pass)
            execution = Execution('sync', actions[0].numpy().astype(float))
    reports = [report for report in (method.report() for method in methods) if report is not None]
    kept = np.logical_and.reduce([np.ones(config.visual_tokens, bool), *(r.kept for r in reports)])
    flops = count_flops(published.config, forward_pass.layer_rows,
                        sum(report.denoising_reused for report in reports))
    return {
        'model': published.name,
        'success_rate': None,
        'episodes': 0,
        'tokens': float(kept.sum()),
        'tokens_total': len(kept),
        'layers': float(len(forward_pass.layer_rows)),
        'layers_total': model.config.language_model.layers,
        'flops': float(sum(flops.values())),
        'flops_by_stage': {stage: float(count) for stage, count in flops.items()},
        'latency_ms': None,
        'depends_on_input': any(Effect.COST_VARIES in method.does for method in methods),
    }
