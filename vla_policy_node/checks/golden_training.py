"""Recorded training steps: a batched forward pass with loss and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vla_policy_node import families
from vla_policy_node.acceleration.lightvla import find_winners, score
from vla_policy_node.acceleration.lightvla_training import LightVlaTraining
from vla_policy_node.checkpoints.weights import MODEL
from vla_policy_node.checks.findings import (
    Comparison,
    Rule,
    absolute,
    compare,
    exact,
    relative,
)
from vla_policy_node.checks.golden_model import GoldenModel
from vla_policy_node.encoding.encoder import Inputs
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.sequence import TokenSequence

FLOAT, GRADIENT = relative(1e-4), relative(1e-3)
IGNORED = -100  # label of what is not predicted

_STAGES: dict[str, tuple[str, Rule]] = {
    'input_ids': ('training: token ids', exact),
    'attention_mask': ('training: attention mask', exact),
    'labels': ('training: labels', exact),
    'proprio_norm': ('training: proprio normalisation', absolute(1e-5)),
    'scores': ('training: LightVLA scores', absolute(1e-4)),
    'selected': ('training: LightVLA votes', exact),
    'selected_visual': ('training: selected rows', FLOAT),
    'pruned_position_ids': ('training: positions', exact),
    'pruned_attention_mask': ('training: attention mask', exact),
    'last_hidden': ('training: last states', FLOAT),
    'action_hidden': ('training: states of the action rows', FLOAT),
    'pred_actions': ('training: action head', FLOAT),
    'l1_loss': ('training: loss', FLOAT),
}
_INPUTS = {'case_index', 'gt_actions', 'noise_scale'}


def compare_training(
    golden: GoldenModel,
    name: str,
    recording: Mapping[str, np.ndarray],
    recordings: Mapping[str, Mapping[str, np.ndarray]],
) -> Iterator[Comparison]:
    """One step, noise-free; images, prompts and raw proprio come from the cases it names."""
    cases = [recordings.get(f'case{index}') for index in recording['case_index']]
    if None in cases:
        yield Comparison('training', np.inf, 0.0, name, 'names a case that the pack lacks')
        return
    if recording.get('noise_scale', 0.0) != 0.0:
        yield Comparison('training', np.inf, 0.0, name, 'was recorded with random noise')
        return
    inputs = _batch(golden, cases, recording)
    values = _tokens(golden, inputs, recording['labels'])
    values['proprio_norm'] = [
        golden.statistics.normalise_proprio(case['proprio_raw']) for case in cases
    ]
    methods = []
    if 'selected' in recording:
        # The authors' scorer sees the rows that fill up shorter prompts, which ours leaves out.
        methods = [LightVlaTraining(padding_votes=True)]
        values |= _selection(golden, inputs, values['attention_mask'])
    elif 'last_hidden' in recording:
        with torch.no_grad():
            _, sequence = golden.assemble(inputs)
            values['last_hidden'] = golden.model.language_model(sequence)
    values |= _step(golden, inputs, methods, recording)
    for key, (stage, rule) in _STAGES.items():
        if key in recording and key in values:
            yield compare(stage, rule, values[key], recording[key], name)
    for key in sorted(key for key in recording if key.startswith('grad__')):
        if key in values:
            yield compare('training: gradients', GRADIENT, values[key], recording[key], name)
    for key in sorted(recording.keys() - values.keys() - _INPUTS):
        yield Comparison('recording', np.inf, 0.0, name, f'has an array {key!r} not known here')


def _batch(
    golden: GoldenModel,
    cases: list[Mapping[str, np.ndarray]],
    recording: Mapping[str, np.ndarray],
) -> Inputs:
    """Shorter prompts are filled up right after BOS, as `PrismaticVla.forward` wants them."""
    pixels = [golden.preprocess(list(case['images_u8']), center_crop=False) for case in cases]
    prompts = [golden.prompt(case['prompt_ids']) for case in cases]
    longest, pad = max(map(len, prompts)), golden.model.config.token_ids.pad
    ids = [[p[0], *[pad] * (longest - len(p)), *p[1:]] for p in prompts]
    proprio = torch.from_numpy(recording['proprio_norm']).float()
    device = golden.device
    return Inputs(
        torch.cat(pixels).to(device), proprio.to(device), torch.tensor(ids, device=device)
    )


def _tokens(golden: GoldenModel, inputs: Inputs, labels: np.ndarray) -> dict[str, object]:
    """Ids, labels and mask as the reference lays them out, with the padding at the end."""
    config = golden.model.config
    pad, stop = config.token_ids.pad, config.token_ids.stop
    slots = [golden.placeholder] * config.action_slots
    prompts = [
        [prompt[0], *(token for token in prompt[1:] if token != pad)]
        for prompt in inputs.prompt_ids.tolist()
    ]
    total = max(map(len, prompts)) + len(slots) + 1
    ids, expected = np.full((len(prompts), total), pad), np.full((len(prompts), total), IGNORED)
    for row, prompt in enumerate(prompts):
        filled = [*prompt, *slots, stop]
        ids[row, : len(filled)] = filled
        expected[row, len(filled) - 1] = stop
    mask = np.arange(total) < np.array([[len(prompt) + len(slots) + 1] for prompt in prompts])
    if labels.shape == expected.shape:
        answers = (ids == golden.placeholder) & (labels >= 0) & (expected == IGNORED)
        expected[answers] = labels[answers]  # the actions; their ids are the recording's
    return {'input_ids': ids, 'labels': expected, 'attention_mask': mask}


@torch.no_grad()
def _selection(golden: GoldenModel, inputs: Inputs, mask: np.ndarray) -> dict[str, object]:
    """The selection as the reference has it: as many rows as before, duplicates included."""
    _, sequence = golden.assemble(inputs)
    scores = score(sequence.visual, sequence.context)
    winners = find_winners(scores)
    chosen = sequence.visual.gather(1, winners[..., None].expand_as(sequence.visual))
    batch, total = sequence.positions.shape
    positions = torch.arange(total).repeat(batch, 1)
    positions[:, sequence.span('visual')] = sequence.first('visual') + winners.cpu()
    rest = np.ones((batch, total - mask.shape[1]), bool)  # visual tokens and proprio
    values: dict[str, object] = {
        'scores': scores,
        'selected': winners,
        'selected_visual': chosen,
        'pruned_position_ids': positions,
        'pruned_attention_mask': np.concatenate([mask[:, :1], rest, mask[:, 1:]], axis=1),
    }
    if batch == 1:
        values['last_hidden'] = golden.model.language_model(
            _duplicated(sequence, chosen, positions.to(chosen.device))
        )
    return values


def _duplicated(sequence: TokenSequence, chosen: Tensor, positions: Tensor) -> TokenSequence:
    return replace(sequence.with_visual(chosen), positions=positions)


def _step(
    golden: GoldenModel,
    inputs: Inputs,
    methods: list[LightVlaTraining],
    recording: Mapping[str, np.ndarray],
) -> dict[str, object]:
    """Forward and, if there is something to compare with, backward through our training."""
    model, read, locate = golden.model, [], families.locator(golden.model.config)
    hook = model.action_head.register_forward_pre_hook(
        lambda _, arguments: read.append(arguments[0])
    )
    model.requires_grad_('gt_actions' in recording)
    actions = model(inputs, ForwardPass(methods))
    hook.remove()
    values: dict[str, object] = {'pred_actions': actions, 'action_hidden': read[0]}
    if 'gt_actions' in recording:
        wanted = torch.from_numpy(recording['gt_actions']).to(actions)
        loss = (actions - wanted).abs().mean()
        loss.backward()
        values['l1_loss'] = loss
        for own_name, parameter in model.named_parameters():
            kind, file_name = locate(own_name)
            name = file_name if kind == MODEL else f'{kind}.{file_name}'
            if parameter.grad is not None:
                values[f'grad__{name}'] = parameter.grad
        model.zero_grad()
        model.requires_grad_(False)
    return values
