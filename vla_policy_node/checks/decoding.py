"""Which decoding weights were made for: all action tokens in one pass, or one after the other.

The files of a discrete OpenVLA-OFT with one camera and no state are those of an OpenVLA. Where
tokens are decoded as in training, nearly all of the probability is on action tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vla_policy_node import families
from vla_policy_node.checks.behaviour import PrismaticRun
from vla_policy_node.checks.findings import FAIL, PASS, SKIP, WARN, Finding
from vla_policy_node.families.openvla import OpenVla
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.heads import VocabularyHead
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.policy.assumptions import Assumed

PARALLEL, SERIAL = 'discrete', 'autoregressive'
WORDS = {PARALLEL: 'all in one pass (discrete OpenVLA-OFT)',
         SERIAL: 'one after the other (OpenVLA)'}
CHUNK = 8  # of most discrete policies; what a slot says hardly depends on how many follow
# Of the probability, at least so much is on action tokens where they are decoded as in training,
# and where they are not, at most this share of it.
ENOUGH, MUCH_LESS = 0.5, 0.5


def check_decoding(trial: PrismaticRun, assumed: Assumed) -> Finding:
    """The weights were made for the decoding that is assumed, as far as they tell.

    A failure where they were made for the other one; a warning where it was guessed and they do
    not tell, as random ones do not.
    """
    if not isinstance(trial.model.action_head, VocabularyHead):
        return Finding('decoding', SKIP, 'the action head has weights of its own, which tell')
    shares = {PARALLEL: share_in_parallel(trial), SERIAL: share_in_turn(trial)}
    text = (f'{shares[PARALLEL]:.2f} of the probability is on action tokens if all come in one '
            f'pass, {shares[SERIAL]:.2f} one after the other')
    made, used = made_for(shares), trial.config.family.name
    if made == used:
        return Finding('decoding', PASS, f'{text}: made for {WORDS[made]}, as assumed')
    if made:
        return Finding(
            'decoding', FAIL, f'{text}: made for {WORDS[made]}, and taken for {WORDS[used]}; '
            f'write "head": "{made}" into config.json' + _also(trial, made))
    if max(shares.values()) < ENOUGH:
        return Finding('decoding', WARN, f'{text}: untrained, or no action tokens were learnt')
    if not assumed.guessed:
        return Finding('decoding', PASS, f'{text}, which does not tell; {assumed.source} does')
    return Finding(
        'decoding', WARN, f'{text}, which does not tell; guessed: {WORDS[used]}. Write "head" '
        f'into config.json, "{PARALLEL}" or "{SERIAL}"')


def _also(trial: PrismaticRun, made: str) -> str:
    if made == SERIAL or trial.config.proprio:
        return ''
    return ', "proprio": false, and under "cameras" what training saw'


def made_for(shares: dict[str, float]) -> str:
    """Return which decoding stands out, '' if none does; shares: decoding -> of probability."""
    best, other = sorted(shares, key=shares.__getitem__, reverse=True)
    clear = shares[best] >= ENOUGH and shares[other] <= MUCH_LESS * shares[best]
    return best if clear else ''


@torch.inference_mode()
def share_in_parallel(trial: PrismaticRun) -> float:
    """Mean share of the probability on action tokens in all slots, which hold zeros."""
    run = _as(trial, PARALLEL)
    return _share(run.model, run.model.run_layers(run.sequence(), ForwardPass()))


@torch.inference_mode()
def share_in_turn(trial: PrismaticRun) -> float:
    """Mean share on action tokens of one action, each token told the likeliest before it."""
    run = _as(trial, SERIAL)
    model, sequence = run.model, run.sequence()
    assert isinstance(model, OpenVla)
    ids = model.generate(model.prefill(sequence, ForwardPass()))
    told = model.language_model.embed_words(ids[:, :-1].clamp(min=0))
    states = torch.cat([sequence.states, told], dim=1)
    rows = TokenSequence.of({'bos': states[:, :1], 'prompt': states[:, 1:]})  # and all others
    return _share(model, model.language_model(rows, slice(-ids.shape[1], None)))


def _share(model: PrismaticVla, states: Tensor) -> float:
    head = model.action_head
    assert isinstance(head, VocabularyHead)
    probability = head.lm_head(states).float().softmax(dim=-1)
    return float(probability[..., head.ids_end - head.bins : head.ids_end].sum(dim=-1).mean())


def _as(trial: PrismaticRun, decoding: str) -> PrismaticRun:
    """Run the same weights with another decoding."""
    if trial.config.family.name == decoding:
        return trial
    family = families.named(decoding)
    config = replace(trial.config, family=family.traits, chunk_length=CHUNK)
    with torch.device('meta'):
        network = family.create_network(config)
    assert isinstance(network, PrismaticVla)
    network.load_state_dict(trial.model.state_dict(), assign=True)
    return replace(trial, model=network.eval().requires_grad_(False))
