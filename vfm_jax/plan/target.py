"""Devices that a plan is made for, by a name such as `v5e:4x4` or `h100:8`; none of them need be there."""

import contextlib
import importlib.util
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from vfm_jax.core.backend import simulate_devices
from vfm_jax.core.chips import CHIPS, Chip
from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.plan.gpus import description

_TPU = re.compile(r"(v\w+|tpu\w+):(\d+(?:x\d+){1,2})")
_GPU = re.compile(r"([abh]\d+):(\d+)")
ACCELERATORS_FORM = "tpu"  # what XLA's compilers make of a step on any accelerator, without libraries of its maker
EXAMPLES = "v5e:4x4, v5p:8x8x8, v6e:16x16, h100:8, h200:1 or cpu"


class Target(NamedTuple):
    """What a plan is made for.

    Attributes:
        name: as it was asked for.
        chip: None for this machine's processor.
        num_chips: how many of them.
        num_hosts: machines they are in.
        devices: as JAX has them, all of them; those of a topology can be compiled for and not be used.
        backend: whose numerical forms the program takes: `core.backend.compiling_for`.
        estimated: why the figures are estimates; "" where the target's own compiler makes the program.
        compiler_options: that this compiler needs where the devices are not there.
        memory_share: part of a chip's memory that JAX takes.
    """

    name: str
    chip: Chip | None
    num_chips: int
    num_hosts: int
    devices: Sequence[jax.Device]
    backend: str
    estimated: str
    compiler_options: Mapping[str, Any] = MappingProxyType({})
    memory_share: float = 1.0

    @property
    def device_memory(self) -> float | None:
        """Bytes of one device that JAX can fill; None where it is not known."""
        if self.chip is None:
            return None
        return self.memory_share * self.chip.memory * self.num_chips / len(self.devices)


def find_target(on: str) -> Target:
    """The target of that name. To be called before JAX looks for devices, of which it will see this machine's cores.

    Raises:
        UserError: no such chip, or no such slice of it.
    """
    if on == "cpu":
        jax.config.update("jax_platforms", "cpu")
        devices = jax.devices()
        return Target(on, None, len(devices), 1, devices, "cpu", "")
    match = _TPU.fullmatch(on) or _GPU.fullmatch(on)
    if match is None or match[1] not in CHIPS or CHIPS[match[1]].kinds[0].startswith("TPU") != ("x" in match[2]):
        word = on.partition(":")[0]
        raise UserError(
            f"--on={on!r} names no devices that a plan can be made for.{nearest(word, CHIPS)} A TPU slice is named "
            f"by its chips in each direction, GPUs by their number: {EXAMPLES}. Chips: {', '.join(CHIPS)}."
        )
    chip = CHIPS[match[1]]
    sides = [int(side) for side in match[2].split("x")]
    num_chips = math.prod(sides)
    if num_chips < 1:
        raise UserError(f"--on={on!r} is no chip at all. Write for example {EXAMPLES}.")
    jax.config.update("jax_platforms", "cpu")  # not the machine's own TPU or GPU, if it has one
    if chip.kinds[0].startswith("TPU"):
        return _tpu(on, chip, sides)
    return _gpus(on, match[1], num_chips)


def _gpus(on: str, name: str, num_chips: int) -> Target:
    chip = CHIPS[name]
    hosts = math.ceil(num_chips / chip.chips_per_host)
    if num_chips % hosts:
        raise UserError(
            f"--on={on!r}: {num_chips} do not go evenly into {hosts} hosts of at most {chip.chips_per_host}. Plan "
            f"for a multiple of {chip.chips_per_host}."
        )
    from jax.experimental import topologies

    share = _memory_share()
    try:
        with quiet():
            topology = topologies.get_topology_desc(
                platform="cuda", topology=f"1x{hosts}x{num_chips // hosts}", target_config=description(name, chip)
            )
    except NotImplementedError:  # JAX knows no such platform
        why = (
            "the GPUs' compiler is not installed (pip install 'vfm-jax[cuda]'); this machine's own stands in for it, "
            "without cuDNN's attention, which keeps no matrix of tokens by tokens"
        )
        return Target(on, chip, num_chips, hosts, _simulated(num_chips), ACCELERATORS_FORM, why, memory_share=share)
    # The fastest of several kernels cannot be found out where none can run.
    options = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
    return Target(on, chip, num_chips, hosts, topology.devices, "gpu", "", options, share)


def _memory_share() -> float:
    """Of a GPU's memory, what JAX takes: as the user has set it, or JAX's default."""
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        if written := os.environ.get(name):
            try:
                return float(written)
            except ValueError:
                raise UserError(
                    f"{name}={written!r} is no number. It is the part of a GPU's memory that JAX takes: 0.92."
                ) from None
    return 0.75


def _tpu(on: str, chip: Chip, sides: Sequence[int]) -> Target:
    num_chips = math.prod(sides)
    if importlib.util.find_spec("libtpu") is None:
        hosts = math.ceil(num_chips / chip.chips_per_host)
        why = "the TPU's compiler is not installed (pip install 'vfm-jax[plan]'); this machine's own stands in for it"
        return Target(on, chip, num_chips, hosts, _simulated(num_chips), ACCELERATORS_FORM, why)
    # Ask no server which TPU this machine has, and let several plans be made at a time: no device is touched.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    shape = [*sides, 1][:3]
    # Of a slice smaller than a host's part, the host has no more than the slice.
    bounds = {"chips_per_host_bounds": shape} if min(shape[:2]) < 2 else {}
    try:
        with quiet():
            topology = topologies.get_topology_desc(platform="tpu", topology_name=on, **bounds)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--on={on!r}: there is no such slice. {reason}") from None
    devices = topology.devices
    return Target(on, chip, num_chips, len({d.process_index for d in devices}), devices, "tpu", "")


def _simulated(count: int) -> Sequence[jax.Device]:
    """The processor taken for so many devices."""
    simulate_devices(count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"JAX has started with {len(devices)} devices, and the plan needs {count} simulated ones. Make it in a "
            "process of its own: vfm plan."
        )
    return devices[:count]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what native code writes to stderr, unless an exception comes of it."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            yield
        except UserError:
            raise
        except BaseException as error:
            noise.seek(0)
            error.add_note(noise.read().decode(errors="replace")[-2000:])
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
