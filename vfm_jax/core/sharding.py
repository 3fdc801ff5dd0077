"""The device mesh in words, sharding rules by leaf name, sharded initialisation and global batches.

A rule is (regex over leaf names, layout). A layout is "fsdp" (the largest dimension that divides is split over the
fsdp axis), or one mesh axis or None per dimension, counted from the last: `(None, "tensor")`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vfm_jax.core.backend import target_backend
from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import label_by_rules, map_named

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
FSDP_RULES = ((r".*", "fsdp"),)
FSDP_MIN_SIZE = 2**16  # smaller leaves cost less replicated than gathered

Layout = str | Sequence[str | None]
Rules = Sequence[tuple[str, Layout]]


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor); one of the sizes may be -1: what is left of the devices.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dict(data=data, fsdp=fsdp, tensor=tensor)
    free = [axis for axis, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    words = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"config.mesh is {words}: sizes are positive, and at most one is -1 (what is left).")
    if free and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise UserError(f"config.mesh is {words}, which does not fit {len(devices)} devices. Try data=-1, fsdp=1.")
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def _spec(name: str, shape: tuple[int, ...], layout: Layout, mesh: Mesh) -> P:
    if layout == "fsdp":
        size = mesh.shape["fsdp"]
        dims = [i for i, n in enumerate(shape) if n % size == 0 and n >= size]
        if size == 1 or math.prod(shape) < FSDP_MIN_SIZE or not dims:
            return P()
        largest = max(dims, key=lambda i: (shape[i], i))
        return P(*("fsdp" if i == largest else None for i in range(largest + 1)))
    if isinstance(layout, str) or any(axis is not None and axis not in AXES for axis in layout):
        raise UserError(f"config.sharding: layout {layout!r} is neither 'fsdp' nor a tuple of {AXES} or None.")
    if len(layout) > len(shape):
        raise UserError(f"config.sharding: layout {tuple(layout)} has more dimensions than {name} {shape}.")
    spec: list[str | None] = [None] * (len(shape) - len(layout)) + list(layout)
    spec = [axis if length > 1 else None for axis, length in zip(spec, shape, strict=True)]  # Adafactor's factors
    for dim, axis in enumerate(spec):
        if axis is not None and shape[dim] % mesh.shape[axis]:
            raise UserError(
                f"config.sharding: dimension {dim} of {name} {shape} does not divide over {axis}={mesh.shape[axis]}."
            )
    return P(*spec)


def shardings(abstract: Any, mesh: Mesh, rules: Rules = FSDP_RULES) -> Any:
    """A tree of `NamedSharding` for the leaves of `abstract`, by the first rule that matches each leaf's name.

    The moments of an optimizer end in the names of their parameters, so one list of rules serves the whole state.

    Raises:
        UserError: a leaf no rule matches, or a layout that does not fit its leaf.
    """
    labels = label_by_rules(abstract, [pattern for pattern, _ in rules], "config.sharding")

    def one(name: str, leaf: Any, label: int) -> NamedSharding:
        return NamedSharding(mesh, _spec(name, leaf.shape, rules[label][1], mesh))

    return map_named(one, abstract, labels)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over the data and fsdp axes."""
    return NamedSharding(mesh, P(BATCH_AXES))


def check_batch_size(batch_size: int, mesh: Mesh, num_micro_batches: int = 1) -> None:
    """Refuses a batch that does not split evenly over devices and micro-batches.

    Raises:
        UserError: naming the sizes, and the nearest batch sizes that do.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"] * num_micro_batches
    if batch_size % ways or batch_size < ways:
        below = batch_size // ways * ways
        near = f"{below} or {below + ways}" if below else f"{ways}"
        parts = f"{mesh.shape['data'] * mesh.shape['fsdp']} devices"
        parts += f" x {num_micro_batches} micro-batches" if num_micro_batches > 1 else ""
        raise UserError(f"config.data.batch_size is {batch_size}, which does not divide over {parts}. Try {near}.")


def sharded_init(function: Callable[..., Any], rules: Rules, mesh: Mesh, *args: Any) -> Any:
    """Runs `function(*args)` so that each leaf is born on its own devices; no host ever holds the whole."""
    out = shardings(jax.eval_shape(function, *args), mesh, rules)
    # Run once: the same numbers at half the compile time, which on a CPU is longer than the step's.
    quick = {"xla_backend_optimization_level": 1} if target_backend() == "cpu" else None
    return jax.jit(function, out_shardings=out, compiler_options=quick)(*args)


def batch_share(mesh: Mesh) -> tuple[int, int]:
    """Which part of a batch this process reads, and how many parts there are: (1, 4) is the second of four.

    Every process has its own, unless the tensor axis spans several: those read the same rows.

    Raises:
        UserError: two processes would share some of their rows, and not all.
    """
    held: dict[int, set[int]] = {}  # process -> the shards of the batch on its devices
    for place, device in np.ndenumerate(mesh.devices):
        shard = int(np.ravel_multi_index(place[:2], mesh.devices.shape[:2]))
        held.setdefault(device.process_index, set()).add(shard)
    parts = sorted({tuple(sorted(shards)) for shards in held.values()})
    if len(set(map(len, parts))) > 1 or sum(map(len, parts)) != mesh.devices.shape[0] * mesh.devices.shape[1]:
        words = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        raise UserError(
            f"config.mesh is {words} over {len(held)} processes, some of which would share a part of their rows of a "
            "batch. Take a tensor axis that divides the devices of a process, or is divided by them."
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def to_host(tree: Any) -> Any:
    """A tree of arrays as numpy, each whole, in every process; all of them must ask for it."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def global_batch(local: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global arrays of a batch of which each process holds its own rows."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, np.asarray(a)) for name, a in local.items()}
