"""The rows of `vla bench policy`: one policy each, sharing models where they can."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from vla_policy_node.bench.public_structure import PublicStructure
from vla_policy_node.compression.quantise import BITS, imitate_int4
from vla_policy_node.families import PolicyNetwork
from vla_policy_node.families.prismatic import PrismaticVla
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.policy.local import LocalPolicy

# Ways to run one network: name -> dtype, optimisation, of PublicStructure.
_CPU = (
    ('public structure', 'float32', 'none', True),
    ('plain', 'float32', 'none', False),
    ('fused', 'float32', 'fused', False),
    ('fixed shapes', 'float32', 'graphs', False),
    ('compiled', 'float32', 'compiled', False),
    ('plain', 'bfloat16', 'none', False),
    ('fused', 'bfloat16', 'fused', False),
    ('plain', 'int8', 'none', False),
    ('plain', 'int4', 'none', False),
    ('plain', 'float8', 'none', False),
)
_IMITATED = ('int4', 'float8')  # on the CPU
_CUDA = (
    ('public structure', 'bfloat16', 'none', True),
    ('plain', 'bfloat16', 'none', False),
    ('fused', 'bfloat16', 'fused', False),
    ('graphs', 'bfloat16', 'graphs', False),
    ('compiled', 'bfloat16', 'compiled', False),
    ('graphs', 'float8', 'graphs', False),
    ('compiled', 'float8', 'compiled', False),
    ('graphs', 'int8', 'graphs', False),
    ('compiled', 'int8', 'compiled', False),
    ('graphs', 'int4', 'graphs', False),
)
METHODS = {'dense': (), 'lightvla': ('lightvla',)}


@dataclass(frozen=True)
class PolicyVariant:
    """One row. timed: False if the arithmetic is only imitated, to measure its error."""

    method: str
    way: str
    dtype: str
    optimisation: str
    public: bool
    timed: bool = True

    @property
    def imitates_int4(self) -> bool:
        """Whether weights are only rounded to 4 bits, and kept in 16."""
        return self.dtype == 'int4' and not self.timed

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f'{self.method}, {self.way}'


def list_variants(device: str, compiled: bool) -> list[PolicyVariant]:
    """Return every method in every way that this device can run it."""
    cuda = device.startswith('cuda')
    return [
        PolicyVariant(method, *way, timed=cuda or way[1] not in _IMITATED)
        for method in METHODS
        for way in (_CUDA if cuda else _CPU)
        if compiled or way[2] != 'compiled'
    ]


@dataclass
class PolicyCache:
    """Loads policies of one checkpoint; networks of the same dtype and form are loaded once.

    load_model: with the arguments of `runtime.loading.load_model`. settings: of the methods, of
    which none changes or keeps weights.
    read_s: what policies measure their stages with.
    """

    directory: Path
    device: str
    threads: int
    load_model: Callable[..., PolicyNetwork]
    settings: Mapping[str, Mapping[str, object]]
    read_s: Callable[[], float] = time.perf_counter
    _models: dict[tuple, PolicyNetwork] = field(default_factory=dict)

    def policy(self, variant: PolicyVariant, preprocessing: str = 'exact') -> LocalPolicy:
        """Load one row. ValueError with one sentence for what cannot run here."""
        methods = METHODS[variant.method]
        policy = LocalPolicy.load(
            self.directory,
            methods=methods,
            device=self.device,
            dtype=variant.dtype,
            threads=self.threads,
            method_settings={name: self.settings.get(name, {}) for name in methods},
            preprocessing=preprocessing,
            optimisation=variant.optimisation,
            load_model=lambda *arguments, fused, methods: self._model(
                variant, *arguments, fused=fused),
        )
        policy.read_s = self.read_s
        return policy

    def network(self, variant: PolicyVariant) -> PolicyNetwork:
        """Return the network of a row that was loaded, without what the baseline adds."""
        return self._models[variant.dtype, _is_fused(variant)]

    def _model(
        self, variant: PolicyVariant, directory: Path, config: ModelConfig, device: str,
        dtype: str, fused: bool,
    ) -> nn.Module:
        key = dtype, _is_fused(variant)
        if key not in self._models:
            kept_as = 'int8' if variant.imitates_int4 else dtype
            model = self.load_model(directory, config, device, kept_as, fused=fused)
            if variant.imitates_int4:
                imitate_int4(
                    model, self.load_model(directory, config, device, 'bfloat16', fused=False))
            self._models[key] = model
        model = self._models[key]
        if not variant.public:
            return model
        if not isinstance(model, PrismaticVla):
            raise ValueError(f'there is no copy here of how {config.family.family} is published')
        return PublicStructure(model)


def _is_fused(variant: PolicyVariant) -> bool:
    return variant.optimisation != 'none' and variant.dtype not in BITS
