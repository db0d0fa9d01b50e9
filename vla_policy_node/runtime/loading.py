"""From files to a network that is ready to run: the order in which weights are changed.

Sizes without memory, structure, values, fused, quantised, changed by methods: `make_network` says
it. Graphs are captured last, by whoever runs the network (`runtime.static_forward`).

Loading runs no code from a file and needs hardly more memory than the model: tensors go one by one
from the mapped files to the device. On the CPU, without a change of dtype, they stay views of the
files. `checkpoints.layout` says which files there are, `checkpoints.weights` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_policy_node import families
from vla_policy_node.acceleration.hooks import WeightHooks
from vla_policy_node.checkpoints.weights import (
    Locate,
    Stored,
    check_file_sizes,
    check_stored,
    stored_tensors,
)
from vla_policy_node.common.machine import memory_bytes
from vla_policy_node.compression.float8 import check_device, to_float8
from vla_policy_node.compression.quantise import BITS, make_quantiser
from vla_policy_node.families import PolicyNetwork
from vla_policy_node.nn.config import ModelConfig
from vla_policy_node.runtime.fusing import fuse

# What a policy computes in; int8 and int4 are how it keeps its weights.
DTYPES = {
    'float32': torch.float32,
    'bfloat16': torch.bfloat16,
    'int8': torch.bfloat16,
    'int4': torch.bfloat16,
    'float8': torch.bfloat16,  # around products of 8-bit floats, see `compression.float8`
}
# Wanted tensors by their names in the checkpoint, with no memory behind them -> the same with
# values, in the dtype of the arithmetic and on the device, in any order.
Reader = Callable[[Mapping[str, Tensor]], Iterable[tuple[str, Tensor]]]


def load_model(
    directory: Path,
    config: ModelConfig,
    device: str,
    dtype: str,
    progress: Callable[[float], None] = lambda share: None,
    fused: bool = False,
    methods: Sequence[WeightHooks] = (),
) -> PolicyNetwork:
    """Build the model and fill it with the weights of `directory`.

    dtype: one of DTYPES. progress: called with the share of parameters that is loaded, up to 1.
    fused: put weights together (`runtime.fusing`), unless they are of 8 or 4 bit integers.
    methods: may change the weights.
    Tensors the forward pass never uses (vocabulary head, attention pool, blocks after the
    feature block, layers that a method removes) are not read. ValueError names what is missing or
    has the wrong shape.
    """
    where = find_device(device)
    check_dtype(dtype)
    if dtype == 'float8':
        check_device(where)
    check_file_sizes(directory, config)
    read = partial(_read, directory, families.locator(config), where, dtype)
    return make_network(config, read, where, dtype, progress, fused, methods)


def make_network(
    config: ModelConfig,
    read: Reader,
    device: torch.device,
    dtype: str,
    progress: Callable[[float], None] = lambda share: None,
    fused: bool = False,
    methods: Sequence[WeightHooks] = (),
) -> PolicyNetwork:
    """Make a network ready to run; arguments as in `load_model`.

    Structure comes before values, so that what is removed needs neither time nor memory. Weights
    of 8 or 4 bit integers are never fused: nothing happens to them between reading and
    quantising, so each is quantised as it is read, and never are all of them there in 16 bits.
    """
    network, kept = _plan(config, methods)
    _fill(network, kept, read, make_quantiser(network, dtype, device) if dtype in BITS else None,
          progress)
    if fused and dtype not in BITS:
        fuse(network)
    if dtype == 'float8':
        to_float8(network)
    for method in methods:
        method.change_weights(network)
    return network


def _plan(
    config: ModelConfig, methods: Sequence[WeightHooks]
) -> tuple[PolicyNetwork, dict[str, list[str]]]:
    """Build the network without memory, as methods change its structure.

    Also returns the tensors that are left: name in the checkpoint -> names in the network, other
    ones where layers before it are gone, and several for tied weights, which files hold once,
    under the name that comes first.
    """
    with torch.device('meta'):
        network = families.create_network(config)
    whole = _tensors(network)  # kept, so that nothing else takes the identity of what goes
    names: dict[int, str] = {}
    for name, tensor in whole.items():
        names.setdefault(id(tensor), name)
    for method in methods:
        method.change_structure(network)
    left = _tensors(network)
    strange = [name for name, tensor in left.items() if id(tensor) not in names]
    if strange:
        raise ValueError(
            f'No file has values for {strange[0]}: before weights are read, methods only take '
            'parts out.')
    kept: dict[str, list[str]] = {}
    for name, tensor in left.items():
        kept.setdefault(names[id(tensor)], []).append(name)
    return network, kept


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Weights by name, as the objects that they are."""
    return network.state_dict(keep_vars=True)


def _fill(
    network: PolicyNetwork,
    kept: Mapping[str, Sequence[str]],
    read: Reader,
    quantise: Callable[[str, Tensor], Tensor] | None,
    progress: Callable[[float], None],
) -> None:
    """Give the network its values. kept: name in the checkpoint -> names in the network."""
    tensors = network.state_dict()
    wanted = {name: tensors[own[0]] for name, own in kept.items()}
    total, loaded = sum(tensor.numel() for tensor in wanted.values()), 0
    state: dict[str, Tensor] = {}
    for name, tensor in read(wanted):
        own = kept[name]
        value = quantise(own[0], tensor) if quantise else tensor
        if len(own) > 1:  # one parameter, or each name would be given its own
            value = nn.Parameter(value, requires_grad=False)
        state |= dict.fromkeys(own, value)
        loaded += tensor.numel()
        progress(loaded / total)
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)


def _read(
    directory: Path, locate: Locate, device: torch.device, dtype: str,
    wanted: Mapping[str, Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Read wanted tensors from a checkpoint, once all of them are known to be there and to fit."""
    precision = DTYPES[dtype]
    copied = check_stored(directory, wanted, locate, precision) * BITS.get(dtype, 16) // 16
    if device.type == 'cpu' and copied > memory_bytes():
        raise ValueError(
            f'{directory} takes {copied / 1e9:.0f} GB of memory as {dtype}, and this machine has '
            f'{memory_bytes() / 1e9:.0f} GB; choose a smaller dtype.'
        )
    for stored in stored_tensors(directory, wanted, locate):
        yield stored.name, _place(stored, device, precision)


def _place(stored: Stored, device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = stored.read()
    try:
        return tensor.to(device, dtype)
    except RuntimeError as error:  # all else was checked
        raise ValueError(
            f'{stored.name} of {stored.path} finds no room in the memory of {str(device)!r}; '
            'choose a smaller dtype, or end what else runs there.'
        ) from error


def check_dtype(name: str) -> None:
    """Raise ValueError for what is none of DTYPES."""
    if name not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, not {name!r}.')


def find_device(name: str) -> torch.device:
    """Return the device; ValueError with one sentence for one that this machine does not have."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"There is no kind of device {name!r}; use 'cpu' or 'cuda'.") from error
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f"Device {name!r} cannot run a policy; use 'cpu' or 'cuda'.")
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"Device {name!r} is not available here; use another one, or 'cpu'.")
    return device
