"""Import of a ViT-L of 1.2 GB beside a plain read of the file and the safetensors package, in turns.

    python scripts/bench/weights.py [--rounds 7] [--folder DIR]

Cold: the kernel is asked to forget the file before every turn (a disk that keeps a cache of its own still has it).
Warm: the file is in memory, so that a plain read is a copy within it. Wall seconds; ratios are taken round by round.
"""

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from vfm_jax.weights.files import Spec, open_weights, save_safetensors
from vfm_jax.weights.load import read_weights

WIDTH, DEPTH, HEADS, MLP = 1024, 24, 16, 4096  # ViT-L/16, 224 px
FLOAT = np.dtype(np.float32)


def write_model(folder: pathlib.Path) -> None:
    """model.safetensors and config.json as timm's hub repositories have them."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 197, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        for layer, (out, given) in {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}.items():
            shapes |= {f"blocks.{i}.{layer}.weight": (out, given), f"blocks.{i}.{layer}.bias": (out,)}
        for layer, (out, given) in {"mlp.fc1": (MLP, WIDTH), "mlp.fc2": (WIDTH, MLP)}.items():
            shapes |= {f"blocks.{i}.{layer}.weight": (out, given), f"blocks.{i}.{layer}.bias": (out,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{norm}.weight": (WIDTH,), f"blocks.{i}.{norm}.bias": (WIDTH,)}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,), "head.weight": (1000, WIDTH), "head.bias": (1000,)}
    rng = np.random.default_rng(0)
    tensors = ((name, rng.standard_normal(shape, dtype=FLOAT)) for name, shape in shapes.items())
    save_safetensors(folder / "model.safetensors", {name: Spec(s, FLOAT) for name, s in shapes.items()}, tensors)
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_large_patch16_224", "num_classes": 1000}))


def implementations(folder: pathlib.Path) -> dict[str, Callable[[], None]]:
    path = folder / "model.safetensors"

    def plain() -> None:
        buffer = bytearray(8 << 20)
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    def told_ahead() -> None:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        plain()

    def package() -> None:
        from safetensors.numpy import load_file

        load_file(path)

    def same_layout() -> None:
        with open_weights(folder) as weights:
            for name in weights.shapes:
                np.array(weights.read(name))

    def leaves() -> None:
        weights = read_weights(folder)
        jax.block_until_ready([jax.device_put(weights.read(leaf)) for leaf in weights.rules])
        weights.file.close()

    found = {
        "plain read": plain,
        "plain read, kernel told ahead": told_ahead,
        "host arrays, their layout": same_layout,
        "every leaf, our layout": leaves,
    }
    try:
        import safetensors.numpy  # noqa: F401
    except ImportError:
        print("# the safetensors package is not installed and is left out")
    else:
        found["safetensors package, their layout"] = package
    return found


def measure(folder: pathlib.Path, rounds: int, *, cold: bool) -> None:
    size = (folder / "model.safetensors").stat().st_size
    turns: dict[str, list[float]] = {}
    work: dict[str, list[float]] = {}
    listed = list(implementations(folder).items())
    for i in range(rounds + 1):  # the first one warms up
        for name, turn in listed[i % len(listed) :] + listed[: i % len(listed)]:  # nobody is always the first
            if cold:
                with open(folder / "model.safetensors", "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            start, start_cpu = time.perf_counter(), time.process_time()
            turn()
            turns.setdefault(name, []).append(time.perf_counter() - start)
            work.setdefault(name, []).append(time.process_time() - start_cpu)
    print(
        f"\n| {'cold' if cold else 'warm'} | MB/s, median [range] | ratio to the plain read, median [range] | CPU s |"
    )
    print("|---|---|---|---|")
    for name, _ in listed:
        seconds, base = turns[name][1:], turns["plain read"][1:]
        rates = [size / s / 1e6 for s in seconds]
        ratios = [b / s for b, s in zip(base, seconds, strict=True)]
        print(
            f"| {name} | {statistics.median(rates):,.0f} [{min(rates):,.0f}-{max(rates):,.0f}] "
            f"| {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}] "
            f"| {statistics.median(work[name][1:]):.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=pathlib.Path, help="on the disk to measure; 1.2 GB are written")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_model(pathlib.Path(folder))
        for cold in (True, False):
            measure(pathlib.Path(folder), arguments.rounds, cold=cold)


if __name__ == "__main__":
    main()
