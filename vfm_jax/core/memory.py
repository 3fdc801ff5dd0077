"""How much memory the devices have, and what the C library does with memory that is freed between two steps."""

import ctypes
import os
import sys
from collections.abc import Sequence

import jax

from vfm_jax.core.chips import chip_of

# Options of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks for the next allocation; without glibc it does nothing.

    On the CPU, XLA allocates its temporaries anew in every step. Given back to the system each time, a block of 1 GB
    is 250,000 page faults: a tenth of a ViT-S/16 step and more (scripts/bench/README.md). The process then holds its
    peak memory until it ends. To be called before JAX starts its threads: an arena that a thread has stays its own.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)  # others are made of 64 MB pieces, and take larger blocks from the system
        mallopt(_MMAP_MAX, 0)  # blocks from the heap, not each from the system
        mallopt(_TRIM_THRESHOLD, -1)  # the heap never shrinks


def device_memory(devices: Sequence[jax.Device]) -> int:
    """Bytes that an array on every one of the devices may take on each: of CPUs, their part of the machine's.

    Devices that a plan is made for are not here to be asked, and have what their makers say.
    """
    try:
        least = min((device.memory_stats() or {}).get("bytes_limit", 0) for device in devices)
    except jax.errors.JaxRuntimeError:  # of a topology
        chip = chip_of(devices[0].device_kind)
        return int(chip.memory / chip.devices) if chip else 0
    return least or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)
