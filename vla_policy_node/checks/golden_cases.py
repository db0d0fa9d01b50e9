"""Recorded inferences: the output of each stage of the forward pass, ours and the reference's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from vla_policy_node.acceleration.lightvla import LightVla, find_winners, score
from vla_policy_node.checks.findings import (
    Comparison,
    Rule,
    absolute,
    compare,
    exact,
    relative,
    share_of_differing,
)
from vla_policy_node.checks.golden_model import GoldenModel
from vla_policy_node.encoding.encoder import Inputs
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.sequence import TokenSequence

FLOAT = relative(1e-4)
PROJECTED = relative(5e-5)  # a GELU that is not the exact one is off by 6e-5
SCORE = absolute(1e-4)
# Rounding in the resize may go the other way.
PIXEL_STEP, PIXEL_SHARE = absolute(1.01), share_of_differing(0.01)

# Recorded array -> stage it belongs to and how close it must be, in the order of the pass.
_STAGES: dict[str, tuple[str, Rule]] = {
    'pixel_values': ('image normalisation', absolute(1e-5)),
    'dino_features': ('DINOv2 vision encoder', FLOAT),
    'siglip_features': ('SigLIP vision encoder', FLOAT),
    'projected': ('projector', PROJECTED),
    'proprio_norm': ('proprio normalisation', FLOAT),
    'proprio_token': ('proprio projector', FLOAT),
    'sequence_ids': ('token ids', exact),
    'input_embeds': ('sequence, input of layer 0', FLOAT),
    'scores': ('LightVLA scores', SCORE),
    'min_margin': ('LightVLA scores', SCORE),
    'argmax': ('LightVLA votes', exact),
    'vote_counts': ('LightVLA votes', exact),
    'kept_indices': ('LightVLA kept tokens', exact),
    'pruned_position_ids': ('positions after pruning', exact),
    'pruned_embeds': ('sequence after pruning', FLOAT),
    'all_hidden': ('language model, every layer', FLOAT),
    'last_hidden': ('language model, last states', FLOAT),
    'action_row_start': ('action rows', exact),
    'action_hidden': ('states of the action rows', FLOAT),
}
for _suffix, _rows in (('', ''), ('_last56', ', rows last56'), ('_oft_rows', ', rows oft')):
    _STAGES[f'normalized_actions{_suffix}'] = (f'action head{_rows}', FLOAT)
    _STAGES[f'actions{_suffix}'] = (f'un-normalisation{_rows}', FLOAT)

_INPUTS = {'images_u8', 'prompt_ids', 'proprio_raw', 'full_image', 'state_raw'}


@torch.inference_mode()
def compare_case(
    golden: GoldenModel, name: str, recording: Mapping[str, np.ndarray]
) -> Iterator[Comparison]:
    """Images at the model's size, prompt ids and raw proprio, through every stage."""
    pixels = golden.preprocess(list(recording['images_u8']), center_crop=False)
    inputs = golden.inputs(pixels, recording['proprio_raw'], recording['prompt_ids'])
    visual, sequence = golden.assemble(inputs)
    values = _inputs_and_encoders(golden, inputs, recording)
    values |= {'projected': visual[0], 'input_embeds': sequence.states[0]}
    if 'kept_indices' in recording:
        values |= _lightvla(golden, sequence)
    else:
        values |= _dense(golden, sequence)
    yield from compare_arrays(values, recording, name)


@torch.inference_mode()
def compare_end_to_end(
    golden: GoldenModel, name: str, recording: Mapping[str, np.ndarray]
) -> Iterator[Comparison]:
    """Raw camera images and raw state; the model starts from the recorded pixels.

    It has to: one value that rounds the other way in the resize would move everything after it.
    """
    cameras = ['full_image', *sorted(key for key in recording if 'wrist' in key)]
    pixels = golden.preprocess([recording[camera] for camera in cameras], center_crop=True)
    reference = recording['pixel_values']
    yield from compare_pixels('camera images', pixels.flatten(1, 2), reference, golden, name)

    recorded = torch.from_numpy(reference).unflatten(1, (len(cameras), 6))
    inputs = golden.inputs(recorded, recording['state_raw'], recording['prompt_ids'])
    _, sequence = golden.assemble(inputs)
    if 'kept_indices' in recording:
        values = _lightvla(golden, sequence)
        values['actions'] = values['actions_last56']
    else:
        values = _dense(golden, sequence)
    yield compare('whole pass', FLOAT, values['actions'], recording['actions'], name)
    rest = {k: v for k, v in recording.items() if k not in ('pixel_values', 'actions')}
    yield from compare_arrays(values, rest, name)


def compare_pixels(
    stage: str, pixels: Tensor, reference: np.ndarray, golden: GoldenModel, case: str
) -> Iterator[Comparison]:
    """Normalised pixels [..., 6 N, H, W], compared in steps of the 256 levels of an image."""
    encoders, cameras = golden.document['tvf_normalize_params'], reference.shape[-3] // 6
    mean, std = (
        np.tile(np.ravel([encoder[key] for encoder in encoders]), cameras)[:, None, None]
        for key in ('mean', 'std')
    )
    ours, theirs = (255 * (value * std + mean) for value in (pixels.numpy(), reference))
    yield compare(f'{stage} [levels]', PIXEL_STEP, ours, theirs, case)
    # Where the two are equal, they differ by nothing but the arithmetic above.
    yield compare(f'{stage} [share]', PIXEL_SHARE, ours.round(2), theirs.round(2), case)


def compare_arrays(
    values: Mapping[str, object], recording: Mapping[str, np.ndarray], case: str
) -> Iterator[Comparison]:
    """Compare all that is recorded, stage by stage; what nobody compares is a failure, too."""
    for key, (stage, rule) in _STAGES.items():
        if key in recording and key in values:
            yield compare(stage, rule, values[key], recording[key], case)
    for key in sorted(recording.keys() - values.keys() - _INPUTS):
        if 'wrist' in key:
            continue
        yield Comparison('recording', np.inf, 0.0, case, f'has an array {key!r} not known here')


def layer_inputs(golden: GoldenModel, sequence: TokenSequence) -> Tensor:
    """Input of every layer and the states after the final norm, [layers + 1, T, width]."""
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][0]))
        for layer in golden.model.language_model.layers
    ]
    last = golden.model.language_model(sequence)[0]
    for hook in hooks:
        hook.remove()
    return torch.stack([*seen, last])


def _inputs_and_encoders(
    golden: GoldenModel, inputs: Inputs, recording: Mapping[str, np.ndarray]
) -> dict[str, object]:
    model, ids = golden.model, inputs.prompt_ids[0].tolist()
    dino, siglip = inputs.pixels[0].split(3, dim=1)
    return {
        'pixel_values': inputs.pixels.flatten(1, 2),
        'dino_features': model.vision_backbone.featurizer(dino),
        'siglip_features': model.vision_backbone.fused_featurizer(siglip),
        'proprio_norm': golden.statistics.normalise_proprio(recording['proprio_raw']),
        'proprio_token': model.proprio_projector(inputs.proprio)[0, 0],
        'sequence_ids': [
            model.config.token_ids.bos,
            *ids[1:],
            *[golden.placeholder] * model.config.action_slots,
            model.config.token_ids.stop,
        ],
    }


def _dense(golden: GoldenModel, sequence: TokenSequence) -> dict[str, object]:
    states = layer_inputs(golden, sequence)
    rows = golden.model.action_rows('oft')
    read: list[Tensor] = []
    hook = golden.model.action_head.register_forward_pre_hook(
        lambda _, arguments: read.append(arguments[0][0])
    )
    # The way that inference takes, which computes only the rows that are read.
    normalised = golden.model.action_head(golden.model.prefill(sequence, ForwardPass()))[0]
    hook.remove()
    return {
        'all_hidden': states,
        'last_hidden': states[-1],
        'action_row_start': rows.indices(states.shape[1])[0],
        'action_hidden': read[0],
        'normalized_actions': normalised,
        'actions': golden.unnormalise(normalised),
    }


def _lightvla(golden: GoldenModel, sequence: TokenSequence) -> dict[str, object]:
    model, method = golden.model, LightVla()
    scores = score(sequence.visual[0], sequence.context[0])
    best = scores.topk(2, dim=-1).values
    pruned = method.select_tokens(sequence)
    report = method.report()
    values = {
        'scores': scores,
        'min_margin': (best[:, 0] - best[:, 1]).min(),
        'argmax': find_winners(scores),
        'vote_counts': report.scores.astype(np.int64),
        'kept_indices': report.kept.nonzero()[0],
        'pruned_position_ids': pruned.positions[0],
        'pruned_embeds': pruned.states[0],
        'last_hidden': model.language_model(pruned)[0],
    }
    for rows, suffix in (('last56', 'last56'), ('oft', 'oft_rows')):
        normalised = model.action_head(model.prefill(sequence, ForwardPass([LightVla()], rows)))[0]
        values[f'normalized_actions_{suffix}'] = normalised
        values[f'actions_{suffix}'] = golden.unnormalise(normalised)
    return values
