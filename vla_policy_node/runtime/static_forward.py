"""A forward pass of fixed shapes, which CUDA graphs can hold and compilers like.

How many tokens LightVLA keeps depends on the picture, and prompts differ in length. Rows of both
are rounded up to buckets; those that fill up a bucket are hidden from attention, so the result is
that of dropping them, up to rounding. On a GPU each stage of each bucket is captured once, in
`prepare` or the first pass that needs it, and replayed with a single launch; the one moment at
which the host waits for the device is to learn how many tokens were kept. On the CPU the same
stages just run.

    vision    pictures -> visual tokens
    select    those, state and words -> all rows in the order of their right to stay
    prefill   the rows of a bucket -> what decoding reads      } as the family says it, with all
    decode    that -> actions, or the words that they are      } denoising steps
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vla_policy_node.acceleration.declarations import check_fixed_shapes
from vla_policy_node.encoding.encoder import Inputs
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.flops import LayerRows
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.nn.hooks import NO_HOOKS, LayerHooks
from vla_policy_node.nn.sequence import TokenSequence
from vla_policy_node.runtime import compiling

if TYPE_CHECKING:
    from vla_policy_node.acceleration.base import Method
    from vla_policy_node.families.base import PolicyNetwork
    from vla_policy_node.nn.hooks import Choice

# Rows. Together they are a multiple of 8, which matrix units and attention want.
VISUAL_BUCKET = 16
OTHERS_BUCKET = 8
_WARM_UPS = 3  # libraries choose their kernels in the first calls, which must not be captured


class StaticForward:
    """Runs a `PolicyNetwork` stage by stage, batch 1, in buckets. One thread.

    compiled: hand blocks, head, selection and normalisation to `torch.compile` first.
    normalise: makes pixels of pictures, as part of the first stage; None: they are pixels already.
    """

    def __init__(
        self,
        model: PolicyNetwork,
        methods: Sequence[Method] = (),
        compiled: bool = False,
        normalise: Callable[[Tensor], Tensor] | None = None,
    ):
        """ValueError with one sentence for a head or methods that shapes cannot be fixed for."""
        if not model.config.can(Capability.FIXED_SHAPES):
            raise ValueError(
                f'Fixed shapes are not for the {model.config.family.name} head; '
                "choose optimisation 'none' or 'fused'."
            )
        check_fixed_shapes(methods)
        choosing = [method for method in methods if method.acts_in_pass]
        self._model = compiling.compile_parts(model) if compiled else model
        self._method = choosing[0] if choosing else None
        self._normalise = normalise
        if compiled:
            self._normalise = normalise and torch.compile(normalise, **compiling.OPTIONS)
            self._select = torch.compile(self._select, **compiling.OPTIONS)
        self._weight = next(model.parameters())
        self._stages: dict[tuple, Stage] = {}
        self._ended: dict[tuple, set[str]] = {}  # parts of a pass that end with `prefill`
        self._pool = torch.cuda.graph_pool_handle() if self._weight.is_cuda else None
        self._compiled = compiled

    def __call__(self, inputs: Inputs, forward_pass: ForwardPass | None = None) -> Tensor:
        """As `PolicyNetwork.forward`; the result is overwritten by the next pass.

        The inputs may be on the CPU still: they are copied to where they are needed. Rows that
        only fill up a bucket are noted in the pass as well.
        """
        forward_pass = forward_pass or ForwardPass()
        pictures, proprio, prompt_ids = inputs
        if self._method is not None:
            self._method.begin_pass()
        prompt_ids = self._fill_up(prompt_ids)
        visual = self._see(pictures, prompt_ids)
        forward_pass.mark('vision')
        sequence, order, choice, kept = self._sort(proprio, prompt_ids, visual)
        room = self._room(choice, kept, len(order))
        forward_pass.mark('select')
        return self._act(sequence, order, room, forward_pass)

    def prepare(self, inputs: Inputs, action_rows: str = 'oft') -> None:
        """Run every bucket of a prompt's length once, where the first time takes long.

        Else a robot would wait for it in the middle of its task. The pictures do not matter.
        """
        if self._pool is None and not self._compiled:
            return
        pictures, proprio, prompt_ids = inputs
        prompt_ids = self._fill_up(prompt_ids)
        sequence, order, choice, _ = self._sort(
            proprio, prompt_ids, self._see(pictures, prompt_ids))
        rooms = range(VISUAL_BUCKET, len(order), VISUAL_BUCKET) if choice is not None else ()
        for room in (*rooms, len(order)):
            self._act(sequence, order, room, ForwardPass(action_rows=action_rows))

    def _see(self, pictures: Tensor, prompt_ids: Tensor) -> Tensor:
        prompts = (prompt_ids,) if self._model.config.vision_reads_prompt else ()
        key = ('vision', *(ids.shape for ids in prompts))
        return self._run(key, self._vision, (pictures, *prompts))

    def _sort(
        self, proprio: Tensor, prompt_ids: Tensor, visual: Tensor
    ) -> tuple[TokenSequence, Tensor, Choice | None, Tensor | None]:
        key = ('select', prompt_ids.shape)
        return self._run(key, self._select, (proprio, prompt_ids), (visual,))

    def _act(
        self, sequence: TokenSequence, order: Tensor, room: int, forward_pass: ForwardPass
    ) -> Tensor:
        rows = sequence.states.shape[1] - sequence.visual_rows + room
        key = (rows, room, forward_pass.action_rows)
        before, inside = self._ended.setdefault(key, set()), partial(_Unseen, key[-1])
        context = self._run(
            ('prefill', *key), partial(self._prefill, room, inside(before.add)), (),
            (sequence, order))
        if 'language_model' in before:
            forward_pass.mark('language_model')
        decode = partial(self._model.decode, forward_pass=inside())
        decoded = self._run(('decode', *key), decode, (), (context,))
        if 'language_model' not in before:
            forward_pass.mark('language_model')
        self._note(rows, forward_pass)
        return self._model.to_actions(decoded)

    def _note(self, rows: int, forward_pass: ForwardPass) -> None:
        """What the layers worked on, which nobody saw."""
        config = self._model.config
        layers = [LayerRows(rows, rows, rows)] * (len(self._model.language_model.layers) - 1)
        layers.append(LayerRows(config.rows_read, rows, rows))
        forward_pass.layer_rows += layers * config.decoder_runs

    def _run(self, key: tuple, function: Callable, fed: tuple, made: tuple = ()) -> Any:
        known = key in self._stages
        # What a graph holds is compiled; without graphs another thread may compile it once more.
        compiles = self._compiled and not (known and self._pool)
        with compiling.lifted_limits() if compiles else nullcontext():
            if not known:
                fed = tuple(value.to(self._weight.device) for value in fed)
                self._stages[key] = Stage(function, fed, made, self._pool)
            return self._stages[key](fed, made)

    def _fill_up(self, prompt_ids: Tensor) -> Tensor:
        """Pad behind the first id, where `assemble` expects it, unless vision would see it."""
        config = self._model.config
        if config.vision_reads_prompt:
            return prompt_ids
        assert config.pad_id is not None  # else the policy does not offer fixed shapes
        others = prompt_ids.shape[1] + config.other_rows
        padding = prompt_ids.new_full((1, -others % OTHERS_BUCKET), config.pad_id)
        return torch.cat([prompt_ids[:, :1], padding, prompt_ids[:, 1:]], dim=1)

    def _room(self, choice: Choice | None, kept: Tensor | None, visual: int) -> int:
        """Visual rows of the bucket; waits for the device if something was chosen."""
        if choice is None:
            return visual
        self._method.record_selection(choice)
        return min(-(-int(kept) // VISUAL_BUCKET) * VISUAL_BUCKET, visual)

    # --- the stages: tensors in, tensors out, the same work whatever the values ---

    def _vision(self, pictures: Tensor, prompt_ids: Tensor | None = None) -> Tensor:
        pixels = self._normalise(pictures) if self._normalise else pictures
        return self._model.visual(pixels.to(self._weight.dtype), prompt_ids, ForwardPass())

    def _select(
        self, proprio: Tensor, prompt_ids: Tensor, visual: Tensor
    ) -> tuple[TokenSequence, Tensor, Choice | None, Tensor | None]:
        """The whole sequence, its visual rows in the order of their right to stay, the choice.

        A row that must go has -inf as its key bias already. Last, how many stay.
        """
        sequence = self._model.assemble(visual, proprio, prompt_ids, padded=True)
        if self._method is None:
            return sequence, torch.arange(visual.shape[1], device=visual.device), None, None
        choice = self._method.select_static(sequence)
        assert choice is not None, f'{self._method.name} declares FIXED_SHAPES'
        bias = torch.zeros_like(choice.scores, dtype=torch.float32)
        bias = (bias if choice.bias is None else choice.bias).masked_fill(
            ~choice.kept, -torch.inf)
        key_bias = sequence.key_bias.clone()
        key_bias[:, sequence.span('visual')] += bias
        order = (~choice.kept).to(torch.uint8).argsort(stable=True)
        return replace(sequence, key_bias=key_bias), order, choice, choice.kept.sum()

    def _prefill(
        self, room: int, inside: ForwardPass, sequence: TokenSequence, order: Tensor
    ) -> Any:
        if room < sequence.visual_rows:
            sequence = sequence.keep_visual(order[:room])
        return self._model.prefill(sequence, inside)


class _Unseen(ForwardPass):
    """Nobody takes part in it and it notes nothing: what graphs hold and compilers see."""

    def __init__(self, action_rows: str, mark: Callable[[str], None] = lambda stage: None):
        super().__init__((), action_rows, mark)

    def layers(self, head: Callable[[Tensor], Tensor], head_flops: int = 0) -> LayerHooks:
        """None."""
        return NO_HOOKS


class Stage:
    """One function on tensors; on a GPU captured with its first inputs, then replayed.

    fed: inputs from outside, copied to where the graph expects them. made: results of other
    stages, always the same tensors, read where they are.
    """

    def __init__(self, function: Callable, fed: tuple, made: tuple, pool: Any):
        self._function = function
        self._graph = None
        if pool is None:
            return
        self._fed = tuple(value.clone() for value in fed)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function(*self._fed, *made)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread, the shadow's, may use the device meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode='thread_local'):
            self._result = function(*self._fed, *made)

    def __call__(self, fed: tuple, made: tuple) -> Any:
        """Run on these inputs; on a GPU the result is overwritten by the next call."""
        if self._graph is None:
            return self._function(*fed, *made)
        for own, given in zip(self._fed, fed, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._result
