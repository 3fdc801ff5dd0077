"""Checkpoints: ours beside Orbax's default, numpy.savez and (where installed) safetensors.

    python scripts/bench/checkpoint.py [--directory DIR] [--width 256] [--rounds 5]

One tree (a 12-layer ViT's float32 parameters and both Adam moments; 116 MB and 438 leaves at width 256) is saved and
read back by every way in turn, `rounds` times; the order changes from round to round. Medians over the rounds, with
[least, most], of wall seconds: `blocked`, until the caller may go on; `durable`, until every file is synced to the
disk; `restore`, from a warm page cache into device arrays; and of `cpu`, the CPU seconds of both. Ours
alone checks what it reads. The last column says in how many rounds ours was durable sooner.
"""

import argparse
import functools
import os
import pathlib
import shutil
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.core.trees import named_leaves
from vfm_jax.train.checkpoint import Checkpoints


def make_tree(width):
    """Parameters and moments, of random values: what hardly compresses, as trained weights."""
    random = np.random.default_rng(0)
    norm, bias = {"scale": (width,), "bias": (width,)}, (width,)
    block = {
        "norm_1": norm,
        "qkv": {"kernel": (width, 3, width), "bias": (3, width)},
        "out": {"kernel": (width, width), "bias": bias},
        "norm_2": norm,
        "up": {"kernel": (width, 4 * width), "bias": (4 * width,)},
        "down": {"kernel": (4 * width, width), "bias": bias},
    }
    shapes = {f"block_{i}": block for i in range(12)} | {"patch": {"kernel": (768, width), "bias": bias}}
    return {
        part: jax.tree.map(
            lambda shape: jnp.asarray(random.standard_normal(shape, np.float32)),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        for part in ("params", "mu", "nu")
    }


def sync(path):
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def ours(tree, path):
    with Checkpoints(path, keep_last=1) as checkpoints:
        checkpoints.save(1, tree, {})
        yield
        checkpoints.wait()
        yield  # files are synced already
        yield checkpoints.restore(abstract(tree))[0]


def orbax(tree, path, **saving):
    from orbax.checkpoint import v1

    context = v1.Context()
    for name, value in saving.items():
        setattr(context.array.saving, name, value)
    with context:
        response = v1.save_async(path, tree)
        yield
        response.result()
        sync(path)
        yield
        yield v1.load(path, abstract(tree))


def numpy_savez(tree, path):
    file = path.with_suffix(".npz")
    np.savez(file, **{name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()})
    yield
    sync(file)
    yield
    with np.load(file) as archive:
        yield [jnp.asarray(archive[name]) for name in archive]


def safetensors(tree, path):
    from safetensors.numpy import load_file, save_file

    save_file({name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}, path)
    yield
    sync(path)
    yield
    yield [jnp.asarray(leaf) for leaf in load_file(path).values()]


WAYS = {
    "ours": ours,
    "Orbax default": orbax,
    "Orbax no compression": functools.partial(orbax, use_compression=False),
    "Orbax no compression, no OCDBT": functools.partial(orbax, use_compression=False, use_ocdbt=False),
    "numpy.savez": numpy_savez,
    "safetensors": safetensors,
}


def measure(way, tree, path):
    """Seconds blocked, durable, to restore, and of CPU."""
    steps = way(tree, path)
    start, cpu = time.perf_counter(), time.process_time()
    next(steps)
    blocked = time.perf_counter() - start
    next(steps)
    durable = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(next(steps))
    restore = time.perf_counter() - start
    cpu = time.process_time() - cpu
    steps.close()
    return blocked, durable, restore, cpu


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", help="where to write; default: the system's temporary directory")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    tree = jax.block_until_ready(make_tree(flags.width))
    leaves = jax.tree.leaves(tree)
    print(f"{sum(leaf.nbytes for leaf in leaves) / 1e6:.0f} MB, {len(leaves)} leaves, {flags.rounds} rounds")
    found = {name: [] for name in WAYS}
    for i in range(flags.rounds + 1):  # the first one imports, and is not counted
        order = list(WAYS)[i % len(WAYS) :] + list(WAYS)[: i % len(WAYS)]
        for name in order:
            with tempfile.TemporaryDirectory(dir=flags.directory) as folder:
                try:
                    seconds = measure(WAYS[name], tree, pathlib.Path(folder) / "checkpoint")
                except ImportError:
                    continue
                shutil.rmtree(folder, ignore_errors=True)
                pathlib.Path(folder).mkdir()
            if i:
                found[name].append(seconds)
    for name, rounds in found.items():
        if rounds:  # safetensors may not be installed
            columns = [
                f"{word} {statistics.median(column):.3f} [{min(column):.3f}, {max(column):.3f}]"
                for word, column in zip(
                    ("blocked", "durable", "restore", "cpu"), zip(*rounds, strict=True), strict=True
                )
            ]
            sooner = sum(own[1] < other[1] for own, other in zip(found["ours"], rounds, strict=True))
            print(f"{name:32s}", "  ".join(columns), f" ours sooner {sooner}/{len(rounds)}")


if __name__ == "__main__":
    main()
