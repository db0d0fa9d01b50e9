"""What a policy's network lets others do: what a family offers, and what a method may need."""

from __future__ import annotations

from enum import Enum


class Capability(Enum):
    """Continues the sentence 'This needs a policy whose ...'."""

    VISUAL_TOKENS = 'visual tokens are rows that may be dropped'
    LAYERS = 'layers may be looked into and left out'
    PREFIX_KV = 'keys and values of visual tokens may outlive a step'
    EARLY_ANSWERS = 'action head may be asked behind any layer'
    DENOISING = 'action head denoises step by step'
    FLOW = 'actions follow a flow from noise'
    ONE_PASS = 'decoder runs once per inference'
    REGRESSION = 'actions come at once, from the rows of their slots'
    TOKENS = 'actions are words, one after the other'
    FUSED = 'weights can be put together'
    FIXED_SHAPES = 'stages can be captured in graphs, and compiled'


# Of a decoder that runs once per inference, with the hooks of `nn.hooks` in it.
HOOKED = frozenset({
    Capability.ONE_PASS, Capability.VISUAL_TOKENS, Capability.LAYERS, Capability.PREFIX_KV})
