"""One stage of a recipe on devices that need not be there: what its step takes, and how long it should."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from vfm_jax.core.backend import compiling_for
from vfm_jax.core.chips import Chip
from vfm_jax.core.collectives import Collective, collectives
from vfm_jax.core.flops import jaxpr_flops
from vfm_jax.core.hlo import memory_traffic, parse
from vfm_jax.core.trees import count_parameters, named_leaves
from vfm_jax.experiment import Experiment, Source, from_recipe
from vfm_jax.plan.target import Target, quiet
from vfm_jax.train.layout import TracedStep, kinds, trace_step
from vfm_jax.train.stages import Stage
from vfm_jax.train.step import step_flops

# A matrix product of bfloat16 reached 790 of the 989 TFLOP/s of an H200's data sheet: what the slow end reckons with.
REACHED = 0.8
# What a TPU's compiler says where the memory does not suffice: of all, or of what lives within a step.
_ALL = re.compile(r"Used ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm")
_TEMPORARY = re.compile(r"temporaries \(([\d.]+)([KMGT]?)i?B?\) exceeds available HBM \(([\d.]+)([KMGT]?)i?B?\)")
_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


class StepTime(NamedTuple):
    """Seconds of one step, from what the chip's makers promise.

    Attributes:
        arithmetic: its products, at the peak.
        memory: reading and writing main memory, at its bandwidth.
        messages: what a device sends, over all of its links.
        best: the longest of the three: the other two are hidden behind it.
        worst: one after another: products at `REACHED` of the peak, and messages over one direction of the torus.
    """

    arithmetic: float
    memory: float
    messages: float
    best: float
    worst: float

    @property
    def limit(self) -> str:
        """Which of the three is the longest."""
        return max(("arithmetic", "memory", "messages"), key=lambda name: getattr(self, name))


class StagePlan(NamedTuple):
    """A stage as it would run. Bytes and operations of a device are of one, of which a chip may be two.

    Attributes:
        stage: its name.
        mesh: size of each axis.
        batch_size: examples of a step.
        total_steps: of the stage.
        num_parameters: that are trained.
        model_flops: operations of forward and backward passes for one image, nothing computed twice.
        device_flops: of the step as it is, on each device.
        kinds: bytes per device of params, extra, opt_state, ema, profiles and batch; see `train.layout.kinds`.
        temporary_bytes: of activations and all else that lives within a step; None where the program was not made.
        peak_bytes: the most that is needed at a time.
        memory_bytes: what a device has; None where it is not known.
        compile_seconds: that this machine took for it.
        traffic_bytes: that a device reads from and writes to its main memory in a step; None likewise.
        messages: what the devices send each other in a step.
        time: of a step; None where the chip, or the program, is not known.
        mfu: share of the devices' peak that the model's operations use, at best and at worst.
        checkpoint_bytes: of the whole state.
        num_chips: in all.
        num_hosts: machines that they are in.
    """

    stage: str
    mesh: Mapping[str, int]
    batch_size: int
    total_steps: int
    num_parameters: int
    model_flops: float
    device_flops: float
    kinds: Sequence[Mapping[str, Any]]
    temporary_bytes: float | None
    peak_bytes: float
    memory_bytes: float | None
    compile_seconds: float
    traffic_bytes: float | None
    messages: Sequence[Collective]
    time: StepTime | None
    mfu: tuple[float, float] | None
    checkpoint_bytes: float
    num_chips: int
    num_hosts: int

    @property
    def fits(self) -> bool | None:
        """Whether it does; None where it is not known how much there is."""
        return None if self.memory_bytes is None else self.peak_bytes <= self.memory_bytes

    @property
    def state_bytes(self) -> float:
        """Of one device, whatever the batch."""
        return sum(row["bytes per device"] for row in self.kinds if row["kind"] != "batch")


def plan_stage(stage: Stage, number: int, target: Target, source: Source | None) -> StagePlan:
    """Builds a stage for the target and compiles its step; allocates and runs nothing.

    Raises:
        UserError: the recipe cannot be built for these devices.
    """
    with compiling_for(target.backend):
        experiment = from_recipe(stage.recipe, number, devices=target.devices, source=source)
        return _measured(stage.name, experiment, target)


class CompiledStep(NamedTuple):
    """A step as the target's compiler made it.

    Attributes:
        executable: what it made; it runs where the devices are there.
        seconds: that it took on this machine.
        device_flops, temporary_bytes, peak_bytes, traffic_bytes, messages, time: as of `StagePlan`.
    """

    executable: jax.stages.Compiled
    seconds: float
    device_flops: float
    temporary_bytes: int
    peak_bytes: int
    traffic_bytes: float
    messages: Sequence[Collective]
    time: StepTime | None


def compile_step(step: TracedStep, target: Target) -> CompiledStep:
    """Compiles a step for the target, and reads what it takes from what came of it.

    Raises:
        jax.errors.JaxRuntimeError: the compiler refuses it: it is too large (`memory_exceeded`), or wrong.
    """
    with quiet():
        executable, seconds = step.compile(target.compiler_options)
    found, text = executable.memory_analysis(), executable.as_text()
    assert found is not None
    assert text is not None
    temporary = found.temp_size_in_bytes
    program = parse(text)
    flops, traffic, messages, time = _device_flops(step, target), memory_traffic(program), collectives(program), None
    if target.chip is not None:
        share = len(target.devices) / target.num_chips
        time = step_time(target.chip, share, flops, traffic, messages, target.num_hosts)
    peak = found.peak_memory_in_bytes or found.argument_size_in_bytes + temporary
    return CompiledStep(executable, seconds, flops, temporary, peak, traffic, messages, time)


def _device_flops(step: TracedStep, target: Target) -> float:
    # Operations are spread over the devices of all axes, and so is what no rule splits.
    return jaxpr_flops(step.traced.jaxpr) / len(target.devices)


def _measured(name: str, experiment: Experiment, target: Target) -> StagePlan:
    step = trace_step(experiment)
    state, batch = step.state, step.batch
    model_flops = step_flops(experiment.objective, experiment.views, state, batch).total / experiment.batch_size
    memory = target.device_memory
    temporary = traffic = time = mfu = None
    messages: Sequence[Collective] = ()
    rows = kinds(state, batch)
    try:
        _, seconds, flops, temporary, peak, traffic, messages, time = compile_step(step, target)
        if target.chip is not None and time is not None:
            ideal = model_flops * experiment.batch_size / (target.num_chips * target.chip.matmul)
            mfu = (ideal / time.best, ideal / time.worst)
    except jax.errors.JaxRuntimeError as error:
        if (exceeded := memory_exceeded(str(error))) is None:
            raise
        temporary, peak, memory = exceeded
        if peak is None:
            peak = temporary + sum(row["bytes per device"] for row in rows)
        seconds, flops = 0.0, _device_flops(step, target)
    return StagePlan(
        stage=name,
        mesh=dict(experiment.mesh.shape),
        batch_size=experiment.batch_size,
        total_steps=experiment.total_steps,
        num_parameters=count_parameters(state.params),
        model_flops=model_flops,
        device_flops=flops,
        kinds=rows,
        temporary_bytes=temporary,
        peak_bytes=peak,
        memory_bytes=memory,
        compile_seconds=seconds,
        traffic_bytes=traffic,
        messages=messages,
        time=time,
        mfu=mfu,
        checkpoint_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in named_leaves(state).values()),
        num_chips=target.num_chips,
        num_hosts=target.num_hosts,
    )


def memory_exceeded(message: str) -> tuple[float | None, float | None, float] | None:
    """Bytes of what lives within a step, or of all (one is told), and what there is; None: it is another error."""
    for pattern in (_ALL, _TEMPORARY):
        if found := pattern.search(message):
            needed, available = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
            return (None, needed, available) if pattern is _ALL else (needed, None, available)
    return None


def step_time(
    chip: Chip, devices_per_chip: float, flops: float, traffic: float, messages: Sequence[Collective], num_hosts: int
) -> StepTime:
    """The seconds of a step of so many operations, bytes and messages on each device: a roofline.

    Where hosts are joined by a network, whatever is sent goes through it once for each host, by all of its cards.

    Reference: Williams et al., Roofline, 2009 (doi:10.1145/1498765.1498785), with the links between chips as a third
    roof.
    """
    arithmetic = flops * devices_per_chip / chip.matmul
    memory = traffic * devices_per_chip / chip.memory_bandwidth
    sent = sum(map(_sent, messages)) * devices_per_chip
    over_network = num_hosts > 1 and chip.network_bandwidth is not None
    links = sent / (min(chip.link_bandwidth, chip.network_bandwidth) if over_network else chip.link_bandwidth)
    one_direction = links * max(1, chip.links / 2)
    return StepTime(
        arithmetic, memory, links, max(arithmetic, memory, links), arithmetic / REACHED + memory + one_direction
    )


def _sent(message: Collective) -> float:
    """Bytes that a device sends for it, around a ring."""
    if message.group_size < 2:
        return 0.0
    times = {"all-reduce": 2, "collective-permute": message.group_size / (message.group_size - 1)}
    return times.get(message.kind, 1) * message.num_bytes * (message.group_size - 1) / message.group_size
