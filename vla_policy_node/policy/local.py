"""LocalPolicy: a checkpoint with its acceleration methods, loaded into this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_policy_node import acceleration, families
from vla_policy_node.acceleration import Effect, Method, Step
from vla_policy_node.checkpoints.hub import find_checkpoint
from vla_policy_node.checkpoints.published import published_action_rows
from vla_policy_node.checkpoints.statistics import Statistics
from vla_policy_node.common.scoped import torch_threads
from vla_policy_node.encoding.encoder import InputEncoder, Inputs
from vla_policy_node.encoding.preprocess import Normaliser
from vla_policy_node.families import PolicyNetwork, count_flops
from vla_policy_node.nn.capabilities import Capability
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.nn.flops import LayerRows
from vla_policy_node.nn.forward_pass import ForwardPass
from vla_policy_node.policy.assumptions import Assumed, implied_transforms, worth_saying
from vla_policy_node.policy.describe import describe, describe_selections
from vla_policy_node.policy.interface import (
    EXECUTION_MODES,
    ActionChunk,
    InferenceRequest,
    NonFiniteActionError,
    PolicyDescription,
)
from vla_policy_node.policy.options import (
    check_optimisation,
    choose_action_rows,
    complete_settings,
    complete_transforms,
    resize_chunk,
)
from vla_policy_node.runtime import loading
from vla_policy_node.runtime.stage_clock import StageClock
from vla_policy_node.runtime.static_forward import StaticForward


class LocalPolicy:
    """A loaded checkpoint with its acceleration methods.

    Not thread-safe: `infer`, `warm_up` and `reset` belong to one worker thread. `description`
    never changes and may be read by any.

    read_s: what `ActionChunk.stage_ms` is measured with; set it before the first inference.
    """

    read_s: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(
        self,
        model: PolicyNetwork,
        inputs: InputEncoder,
        statistics: Statistics,
        methods: Sequence[Method],
        action_rows: str,
        description: PolicyDescription,
        normaliser: Normaliser,
        threads: int = 0,
        taken: Sequence[Assumed] = (),
    ):
        """Assemble loaded parts; `load` loads them.

        taken: for granted, what people should know of.
        threads: of torch while this policy computes, 0 to leave them alone.
        ValueError for methods that the chosen optimisation cannot run.
        """
        self.description = description
        self._model = model
        self._inputs = inputs
        self._statistics = statistics
        self._methods = tuple(methods)
        self._action_rows = action_rows
        self._pass = ForwardPass()
        self._seen: list[str] | None = None  # cameras with pictures in the last step
        self._normalise = normaliser
        self._threads = threads
        self.taken = tuple(taken)
        self._static = None
        if description.optimisation in ('graphs', 'compiled'):
            self._static = StaticForward(
                model, self._methods, description.optimisation == 'compiled', normaliser)

    @classmethod
    def load(
        cls,
        checkpoint: Path | str,
        methods: Sequence[str] = (),
        device: str = 'cpu',
        dtype: str = 'float32',
        statistics_key: str = '',
        camera_transforms: Mapping[str, str] | None = None,
        threads: int = 0,
        method_settings: Mapping[str, Mapping[str, object]] | None = None,
        action_rows: str = '',
        chunk_length: int = 0,
        preprocessing: str = 'exact',
        optimisation: str = 'none',
        load_model: Callable[..., PolicyNetwork] = loading.load_model,
    ) -> LocalPolicy:
        """Load a checkpoint: a directory, or an id of the Hugging Face hub, which is downloaded.

        `checkpoints.layout` says which kinds of checkpoints there are.
        methods: acceleration methods in the order they take their turns, () for none.
        dtype: 'float32' or 'bfloat16'; few CPUs compute in bfloat16, on the others it is slow.
            'int8' and 'int4' compute in bfloat16 and need half and a third of its memory;
            'float8' is for speed on GPUs of compute capability 8.9 and above.
        statistics_key: data set to un-normalise with, '' if the checkpoint has only one.
        camera_transforms: camera -> how to turn its upright image into what training saw; 'auto',
            or not to be there, is what the checkpoint says or its public name implies.
        threads: CPU threads torch may use while this policy loads and computes, 0 to leave that
            alone. Before and after a call torch has what it had (`scoped.torch_threads`).
        action_rows: 'oft' or 'last56', '' for what the checkpoint says or was evaluated with,
            else what the methods wish, else 'oft' (see `families.prismatic.ACTION_ROWS`).
        chunk_length: actions per inference, 0 for what the checkpoint says, else 8; where the
            weights fix it, they decide.
        preprocessing: 'exact', as the checkpoint was evaluated, or 'fast' (`encoding.preprocess`).
        optimisation: one of OPTIMISATIONS; all but 'none' change results by rounding.
        load_model: makes the network, with the arguments of `runtime.loading.load_model`.
        method_settings: method -> setting -> value, over what the checkpoint says.
        Raises ValueError with one sentence if anything does not fit.
        """
        directory = find_checkpoint(checkpoint)
        config = families.read_model_config(directory)
        family = families.of(config)
        if chunk_length:
            config = resize_chunk(config, chunk_length)
        if methods and not config.can(Capability.LAYERS):
            raise ValueError(
                f'{directory} has a {config.family.name} head, which runs without acceleration '
                'methods; choose none (dense).'
            )
        check_optimisation(optimisation, config, device, dtype)
        statistics = family.load_statistics(directory, config, statistics_key)
        settings = complete_settings(methods, method_settings or {}, config.method_settings)
        chosen = [acceleration.create(name, **settings[name]) for name in methods]
        acceleration.check_together(chosen)
        acceleration.prepare(chosen, directory, config)
        if optimisation in ('graphs', 'compiled'):
            acceleration.check_fixed_shapes(chosen)
        action_rows = choose_action_rows(
            action_rows, config.action_rows or published_action_rows(directory), chosen
        )
        implied, _ = implied_transforms(directory, config, statistics.key)
        chosen_transforms = camera_transforms or {}
        transforms = complete_transforms(chosen_transforms, config.spec.cameras, implied)
        inputs = family.load_encoder(directory, config, statistics, transforms, preprocessing)
        with torch_threads(threads):
            model = load_model(
                directory, config, device, dtype, fused=optimisation != 'none', methods=chosen)
        description = describe(
            directory, config, model, inputs, statistics, chosen, device=device, dtype=dtype,
            method_settings=settings, action_rows=action_rows, preprocessing=preprocessing,
            optimisation=optimisation)
        normaliser = inputs.preprocessor.normaliser.to(device)
        taken = worth_saying(
            directory, config, statistics.key, chosen_transforms, bool(chunk_length))
        return cls(
            model, inputs, statistics, chosen, action_rows, description, normaliser, threads,
            taken)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The acceleration methods, in the order of their turns. Worker thread only."""
        return self._methods

    @torch.inference_mode()
    def infer(self, request: InferenceRequest) -> ActionChunk:
        """Predict the next chunk; ValueError with one sentence for an unusable observation.

        Worker thread only. Nothing of one call reaches the next, except what a method keeps
        until `reset`.
        """
        weight = next(self._model.parameters())
        with torch_threads(self._threads), _device_of(weight):
            return self._infer(request, weight)

    def _infer(self, request: InferenceRequest, weight: Tensor) -> ActionChunk:
        observation = request.observation
        clock = StageClock(weight.device, self.read_s)
        encoded = self._inputs.encode(
            observation.images, observation.proprio, observation.instruction
        )
        pictures = encoded.pixels
        clock.mark('preprocess')
        self._forget_other_cameras(observation.images)
        if self._static is not None and pictures.shape[1] != self.config.cameras:
            raise ValueError(
                f'A camera is missing, and optimisation {self.description.optimisation!r} is for '
                f"all {self.config.cameras}; send its pictures, or choose 'none' or 'fused'.")
        inputs = encoded._replace(proprio=encoded.proprio.to(weight.dtype))
        if self._static is None:
            pixels = self._normalise(pictures.to(weight.device)).to(weight.dtype)
            inputs = Inputs(pixels, *(part.to(weight.device) for part in inputs[1:]))
        clock.mark('upload')
        self._begin_step(pictures, request, clock)
        self._pass = ForwardPass(self._methods, self._action_rows, clock.mark)
        predicted = (self._static or self._model)(inputs, self._pass)
        normalised = predicted[0].cpu().double().numpy()
        actions = self._statistics.unnormalise_actions(normalised, observation.proprio)
        clock.mark('head')
        if not np.isfinite(actions).all():
            raise NonFiniteActionError(
                'The policy computed actions that are not finite; check its weights.')
        selections = describe_selections(
            self._methods, self.description, self._inputs, observation.images)
        return ActionChunk(
            actions=actions,
            selections=selections,
            stage_ms=clock.stage_ms,
            method=self.description.method,
            tokens_kept=sum(int(selection.kept.sum()) for selection in selections),
            tokens_total=sum(selection.kept.size for selection in selections),
            flops=self._flops(),
            layers_run=len(self.layer_rows),
            layers_total=self._model.config.language_model.layers,
            normalised=normalised,
        )

    @torch.inference_mode()
    def warm_up(self, instruction: str) -> None:
        """Warm up, so no later call for as long an instruction pays capture or compile time.

        Runs every bucket of tokens once with optimisation 'graphs' on a GPU and 'compiled',
        where first times take seconds; nothing otherwise. ValueError for an unusable instruction.
        Before the worker thread starts, or in it.
        """
        self.check_instruction(instruction)
        if self._static is None:
            return
        grey = np.full((self.config.image_px, self.config.image_px, 3), 128, np.uint8)
        inputs = self._inputs.encode(
            dict.fromkeys(self.description.spec.cameras, grey), np.zeros(self.config.proprio_size),
            instruction)
        weight = next(self._model.parameters())
        inputs = inputs._replace(proprio=inputs.proprio.to(weight.dtype))
        with torch_threads(self._threads), _device_of(weight):
            for ids in self._inputs.prompts_of_all_lengths(instruction):
                self._static.prepare(
                    inputs._replace(prompt_ids=torch.tensor(ids)[None]), self._action_rows)

    def _forget_other_cameras(self, images: Mapping[str, np.ndarray]) -> None:
        """Let methods begin anew where other cameras have pictures than in the last step.

        What they remember is by the place of a token, which stands for something else then.
        """
        seen = self._inputs.seen(images)
        if self._seen not in (None, seen):
            self.reset()
        self._seen = seen

    def _begin_step(
        self, pictures: Tensor, request: InferenceRequest, clock: StageClock
    ) -> None:
        """Show the inputs to the methods that look at them before the network does."""
        methods = [m for m in self._methods if type(m).begin_step is not Method.begin_step]
        if not methods:
            return
        step = Step(
            pictures[0].movedim(-1, -3) / 255,
            np.asarray(request.observation.proprio, float),
            request.execution,
        )
        for method in methods:
            method.begin_step(step)
        clock.mark('reuse')

    @property
    def config(self) -> ModelConfig:
        """Sizes of the network. Any thread."""
        return self._model.config

    @property
    def inputs(self) -> InputEncoder:
        """What turns observations into tensors. Any thread."""
        return self._inputs

    @property
    def layer_rows(self) -> Sequence[int] | Sequence[LayerRows]:
        """Rows of the sequence in each layer in the last inference. Worker thread only."""
        return self._pass.layer_rows

    def reset(self) -> None:
        """Begin a new episode or instruction: methods forget past steps. Worker thread only."""
        for method in self._methods:
            method.reset()

    def check_instruction(self, instruction: str) -> None:
        """Raise the ValueError with which `infer` would refuse the instruction. Any thread."""
        self._inputs.encode_prompt(instruction)

    def plain(self) -> LocalPolicy:
        """Return the same network without acceleration methods; the weights are shared.

        Each of the two belongs to a worker thread, which need not be the same. ValueError if a
        method has changed the weights.
        """
        for method in self._methods:
            if Effect.CHANGES_WEIGHTS in method.does:
                raise ValueError(
                    f'{method.name} changes the weights, so there is no plain network beside it; '
                    'set shadow_every to 0.')
        description = replace(
            self.description, spec=self.config.spec, methods=(), method_settings={},
            execution_modes=EXECUTION_MODES)
        return LocalPolicy(self._model, self._inputs, self._statistics, (), self._action_rows,
                      description, self._normalise, self._threads)

    def close(self) -> None:
        """Free the model and its device memory; the policy cannot be used afterwards."""
        del self._model
        self._static = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _flops(self) -> int:
        reports = [r for r in (method.report() for method in self._methods) if r is not None]
        choosing = sum(report.flops for report in reports)
        reused = sum(report.denoising_reused for report in reports)
        config = self._model.config
        if self._seen is not None and len(self._seen) < config.cameras:
            config = replace(config, spec=replace(config.spec, cameras=tuple(self._seen)))
        return choosing + sum(count_flops(config, self.layer_rows, reused).values())


def _device_of(weight: Tensor) -> AbstractContextManager:
    """Make the weight's GPU the current one, which streams, graphs and our kernels need."""
    return torch.cuda.device(weight.device) if weight.is_cuda else nullcontext()
