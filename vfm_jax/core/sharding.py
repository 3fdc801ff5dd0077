"""The device mesh in words, sharding rules by leaf name, sharded initialisation and global batches.

A rule is a regex over leaf names and one or more layouts, each of the part that those before it leave to a device. A
layout is "fsdp" (the largest dimension that divides is split over the fsdp axis), or one mesh axis or None per
dimension, counted from the last: `(r"up/kernel$", (None, "tensor"), "fsdp")`.
"""

import functools
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
# Over a tensor axis go the heads and hidden channels of transformers, and the prototypes of heads (Shoeybi et al.,
# Megatron-LM, 2019, arXiv:1909.08053, Sec. 3): what a block's first product gives stays split until its second one,
# whose results are summed. What that leaves of a leaf to a device, and all other leaves, are fsdp's to split.
RULES = (
    (r"transformer/block_\d+/attention/qkv/(kernel|bias)$", ("tensor", None), "fsdp"),  # d 3 heads head_dim
    (r"transformer/block_\d+/attention/out/kernel$", ("tensor", None, None), "fsdp"),  # heads head_dim d
    (r"transformer/block_\d+/mlp/(up|gate)/(kernel|bias)$", ("tensor",), "fsdp"),
    (r"transformer/block_\d+/mlp/down/kernel$", ("tensor", None), "fsdp"),
    (r"(^|/)prototypes/(kernel|scale)$", ("tensor",), "fsdp"),
    *FSDP_RULES,
)
HOST_MEMORY = "pinned_host"  # of each device's host, which the device itself reads and writes
FSDP_MIN_SIZE = 2**16  # smaller leaves cost less replicated than gathered

Layout = str | Sequence[str | None]
Rules = Sequence[tuple[Any, ...]]  # (regex, layout, layout, ...)


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


def _spec(name: str, shape: tuple[int, ...], layouts: Sequence[Layout], mesh: Mesh) -> P:
    axes: list[tuple[str, ...]] = [()] * len(shape)
    part = list(shape)  # of the leaf, on each device
    for layout in layouts:
        split = _largest(part, mesh) if layout == "fsdp" else _given(name, part, layout, mesh)
        for dim, axis in split.items():
            axes[dim], part[dim] = (*axes[dim], axis), part[dim] // mesh.shape[axis]
    spec = [one[0] if len(one) == 1 else one or None for one in axes]
    while spec and spec[-1] is None:
        spec.pop()
    return P(*spec)


def _largest(part: Sequence[int], mesh: Mesh) -> dict[int, str]:
    """Dimension -> "fsdp", for the largest that divides; none of what is small on each device already."""
    size = mesh.shape["fsdp"]
    dims = [i for i, n in enumerate(part) if n % size == 0 and n >= size]
    if size == 1 or math.prod(part) < FSDP_MIN_SIZE or not dims:
        return {}
    return {max(dims, key=lambda i: (part[i], i)): "fsdp"}


def _given(name: str, shape: Sequence[int], layout: Layout, mesh: Mesh) -> dict[int, str]:
    """Dimension -> axis, of those that there is something to split in and over."""
    if isinstance(layout, str) or any(axis is not None and axis not in AXES for axis in layout):
        raise UserError(f"config.sharding: layout {layout!r} is neither 'fsdp' nor a tuple of {AXES} or None.")
    if len(layout) > len(shape):
        raise UserError(f"config.sharding: layout {tuple(layout)} has more dimensions than {name} {tuple(shape)}.")
    split = {}
    for dim, axis in enumerate(layout, len(shape) - len(layout)):
        if axis is None or mesh.shape[axis] == 1 or shape[dim] == 1:  # 1: of Adafactor's factors
            continue
        if shape[dim] % mesh.shape[axis]:
            raise UserError(
                f"config.mesh.{axis} is {mesh.shape[axis]}, which does not divide dimension {dim} of {name} "
                f"{tuple(shape)}. Choose a divisor of {shape[dim]}, or another layout with config.sharding."
            )
        split[dim] = axis
    return split


def shardings(abstract: Any, mesh: Mesh, rules: Rules = RULES, on_host: Sequence[str] = ()) -> Any:
    """A tree of `NamedSharding` for the leaves of `abstract`, by the first rule that matches each leaf's name.

    The moments of an optimizer end in the names of their parameters, so one list of rules serves the whole state.
    Leaves whose names begin with one of `on_host` lie in the memory of the devices' hosts, numbers excepted.

    Raises:
        UserError: a leaf no rule matches, or a layout that does not fit its leaf.
    """
    labels = label_by_rules(abstract, [pattern for pattern, *_ in rules], "config.sharding")

    def one(name: str, leaf: Any, label: int) -> NamedSharding:
        spec = _spec(name, leaf.shape, rules[label][1:], mesh)
        away = leaf.shape and name.split("/", 1)[0] in on_host
        return NamedSharding(mesh, spec, memory_kind=HOST_MEMORY) if away else NamedSharding(mesh, spec)

    return map_named(one, abstract, labels)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis split over the data and fsdp axes."""
    return NamedSharding(mesh, P(BATCH_AXES))


def traced_over(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, for `jax.jit`: inside it `by_examples` knows the mesh."""

    @functools.wraps(function)
    def over(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return over


def by_examples(x: jax.Array) -> jax.Array:
    """x, each row of which is of an example, laid out as batches are; x itself where no mesh is known.

    Left to itself XLA may split the channels of activations as those of the weights, and send activations around in
    place of weights. In a scan over layers it does: a ViT-S of 4 layers over fsdp=8 sends 1,376 MB a step in place of
    101, and sets aside 2.3 GB in place of 0.75 (256 images, CPU compiler).
    """
    mesh = jax.sharding.get_abstract_mesh()
    ways = math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)
    return x if ways == 1 or x.shape[0] % ways else jax.lax.with_sharding_constraint(x, P(BATCH_AXES))


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


def has_host_memory(mesh: Mesh) -> bool:
    """Whether the devices can keep arrays in their hosts' memory."""
    return all(HOST_MEMORY in {m.kind for m in one.addressable_memories()} for one in mesh.local_devices)


def on_devices(tree: Any, after: Any = None) -> Any:
    """The arrays, those in host memory copied to their devices; in a jitted function not before `after` is there."""
    if after is not None:
        # Else all of them are fetched as soon as may be, and lie beside the activations.
        tree, _ = jax.lax.optimization_barrier((tree, after))
    return jax.device_put(tree, jax.memory.Space.Device)


def sharded_init(
    function: Callable[..., Any], rules: Rules, mesh: Mesh, *args: Any, on_host: Sequence[str] = ()
) -> Any:
    """Runs `function(*args)` so that each leaf is born in its own place; no host ever holds the whole."""
    out = shardings(jax.eval_shape(function, *args), mesh, rules, on_host)
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
