"""Where everything of a run lies on the devices, and what they send each other: told before it is started."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from vfm_jax.core.backend import compiling_for, target_backend
from vfm_jax.core.collectives import Collective, collectives
from vfm_jax.core.hlo import parse
from vfm_jax.core.sharding import HOST_MEMORY, shardings
from vfm_jax.core.trees import named_leaves
from vfm_jax.core.types import Batch
from vfm_jax.experiment import Experiment, from_recipe
from vfm_jax.train.loop import blank_state, jitted_step
from vfm_jax.train.stages import read_stages
from vfm_jax.train.state import TrainState


class StageLayout(NamedTuple):
    """One stage, laid out over a mesh.

    Attributes:
        stage: its name.
        mesh: size of each axis.
        leaves: of the state: `leaf` ("params/encoder/...", moments and averages likewise), `shape`, `dtype`,
            `sharding` (an axis of the mesh, or -, for each dimension) and `bytes per device`.
        kinds: the same added up for params, extra, opt_state, ema and profiles, and the batch: `leaves`, how many of
            them are `split`, `bytes` of all, and `bytes per device`.
        messages: what the devices send each other in each step.
        temporary_bytes: what the compiler sets aside on each device while a step runs.
    """

    stage: str
    mesh: Mapping[str, int]
    leaves: list[dict[str, Any]]
    kinds: list[dict[str, Any]]
    messages: list[Collective]
    temporary_bytes: int


class TracedStep(NamedTuple):
    """The step of a stage as JAX has it, for devices that need not be there; nothing is allocated or run.

    Attributes:
        state: shape, dtype and sharding of every leaf.
        batch: likewise.
        traced: the program.
    """

    state: TrainState
    batch: Batch
    traced: jax.stages.Traced

    def compile(self, options: Mapping[str, Any] | None = None) -> tuple[jax.stages.Compiled, float]:
        """What the compiler makes of it by these options of its own, and the seconds that it takes."""
        lowered = self.traced.lower()
        began = time.perf_counter()
        executable = lowered.compile(compiler_options=dict(options) if options else None)
        return executable, time.perf_counter() - began


def trace_step(experiment: Experiment) -> TracedStep:
    """The step of a stage on the devices of its mesh."""
    _, _, state = blank_state(experiment)
    batch = experiment.abstract_batch()
    return TracedStep(state, batch, jitted_step(experiment, state).trace(state, batch))


def inspect(recipe: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """For each stage a row for every parameter leaf: name, shape, count, dtype, sharding. Nothing is allocated."""
    tables = {}
    for stage in read_stages(recipe):
        experiment = from_recipe(stage.recipe)
        params = experiment.abstract_params
        specs = named_leaves(shardings(params, experiment.mesh, experiment.rules))
        tables[stage.name] = [
            {
                "leaf": name,
                "shape": " x ".join(map(str, leaf.shape)),
                "count": leaf.size,
                "dtype": leaf.dtype.name,
                "sharding": _in_words(specs[name]),
            }
            for name, leaf in named_leaves(params).items()
        ]
    return tables


def layouts(recipe: Mapping[str, Any]) -> Iterator[StageLayout]:
    """Every stage of a recipe on the devices there are; compiles its step, and allocates and runs nothing.

    The messages and the temporary memory are those of the compiler at hand. The CPU's is given the step in the form
    that accelerators run (the CPU's own folds the heads into the batch, and cannot split them over devices): among
    simulated devices it gathers and reduces the same arrays as theirs, which may fuse, split or overlap them.
    """
    for number, stage in enumerate(read_stages(recipe)):
        experiment = from_recipe(stage.recipe, number)
        with compiling_for("tpu" if target_backend() == "cpu" else target_backend()):
            step = trace_step(experiment)
        executable, _ = step.compile()
        memory = executable.memory_analysis()
        leaves = {name: leaf for name, leaf in named_leaves(step.state).items() if leaf.shape}
        yield StageLayout(
            stage.name,
            dict(experiment.mesh.shape),
            [
                {
                    "leaf": name,
                    "shape": " x ".join(map(str, leaf.shape)),
                    "dtype": str(leaf.dtype),
                    "sharding": _in_words(leaf.sharding),
                    "bytes per device": _bytes_per_device(leaf),
                }
                for name, leaf in leaves.items()
            ],
            kinds(step.state, step.batch),
            collectives(parse(executable.as_text() or "")),
            memory.temp_size_in_bytes if memory else 0,
        )


def kinds(state: TrainState, batch: Batch) -> list[dict[str, Any]]:
    """Leaves and bytes of a state by what they are, and of a batch: a row for params, extra, opt_state, ..."""
    leaves = {name: leaf for name, leaf in named_leaves(state).items() if leaf.shape}
    leaves |= {f"batch/{name}": leaf for name, leaf in named_leaves(batch).items()}
    kinds: dict[str, list[Any]] = {}
    for name, leaf in leaves.items():
        kinds.setdefault(name.split("/", 1)[0], []).append(leaf)
    return [
        {
            "kind": kind,
            "leaves": len(of_kind),
            "split": sum(not leaf.sharding.is_fully_replicated for leaf in of_kind),
            "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in of_kind),
            "bytes per device": sum(map(_bytes_per_device, of_kind)),
        }
        for kind, of_kind in kinds.items()
    ]


def _in_words(sharding: jax.sharding.NamedSharding) -> str:
    axes = ["+".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in sharding.spec]
    words = ", ".join(axes) if set(axes) - {"-"} else "replicated"
    return f"{words} (host)" if sharding.memory_kind == HOST_MEMORY else words


def _bytes_per_device(leaf: Any) -> int:
    """In its own memory: none of what lies on its host."""
    if leaf.sharding.memory_kind == HOST_MEMORY:
        return 0
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
