"""Which compiler the code is being traced for: the one place that numerical forms are chosen by.

The forms are equal in value and differ in speed: what the CPU compiler likes costs memory traffic on a TPU
(scripts/bench/README.md has the measurements).
"""

import contextlib
import contextvars
import glob
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target_backend", default=None)


def target_backend() -> str:
    """'cpu', 'gpu' or 'tpu': the default device's, or the one named by `compiling_for`."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(backend: str) -> Iterator[None]:
    """Traces inside as for `backend`, whatever machine this is (ahead-of-time compilation, tests)."""
    token = _target.set(backend)
    try:
        yield
    finally:
        _target.reset(token)


def only_cpu() -> bool:
    """Whether JAX can find nothing but the CPU; told without starting its threads."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        return platforms == "cpu"
    return not importlib.metadata.entry_points(group="jax_plugins") and not has_tpu()


def simulate_devices(count: int) -> None:
    """Has JAX take the processor for so many devices; changes nothing where it has started (a notebook, a test)."""
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def has_tpu() -> bool:
    """Whether this machine has a TPU and its library; without one that library may be there for plans."""
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
