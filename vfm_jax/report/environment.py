"""What a result was obtained with: versions and hardware, without names of machines, people or folders."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

_PACKAGES = {
    "jax": "jax",
    "jaxlib": "jaxlib",
    "libtpu": "libtpu",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "grain": "grain",
    "numpy": "numpy",
}


def versions() -> dict[str, str | None]:
    """Versions of Python, of what the numbers depend on, and of this code; `git` is None outside a checkout."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    package = sys.modules[__name__.partition(".")[0]]  # ours; loaded, since this module is a part of it
    found["vfm_jax"] = getattr(package, "__version__", None)
    found["git"] = _git_commit(pathlib.Path(__file__).resolve().parents[2])
    return found


def code_digest() -> str:
    """Twelve digits that every change of this package's code changes."""
    package, digest = pathlib.Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _git_commit(root: pathlib.Path) -> str | None:
    """The short commit of the checkout at `root`, with "+changes" where tracked files differ from it."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if not top or pathlib.Path(top).resolve() != root:
        return None  # installed inside somebody else's repository
    commit = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit


def hardware() -> dict[str, Any]:
    """Devices, processor and memory of this run.

    `cores` are those this process may use; `memory_gb` is the host's main memory in units of 1e9 bytes.
    """
    import jax

    return {
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            for line in f:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
