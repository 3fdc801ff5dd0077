"""Where the random crop of a one-view recipe is made: on the host, or on the device from a canvas. CPU seconds.

    python scripts/bench/split.py --images "../shared/data/imagenet_samples/*.tar" [--core 0] [--rounds 5]

Run it with a Python that has vfm_jax; it measures on JAX's CPU backend, where host and device are the same cores.
Both ways read the same JPEG files as the pipeline does, and end in the batch that the encoder takes: a crop, flipped
and normalized. They take turns, batch by batch, and are compared by the CPU seconds of the whole process (XLA's
threads included), which a busy machine changes little. The training step beside them, forward and backward, says what
share of a run the difference is.
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

BATCH = 32
# Name of the row -> pixels of the crop, sides of the canvas, variant of the ViT, its width and depth.
RECIPES = {
    "ViT-S/16 at 224, canvas of 256": (224, 256, dict(variant="S/16")),
    "ViT of width 96 and depth 4 at 64, canvas of 72": (64, 72, dict(variant="mu/8", width=96, depth=4, heads=3)),
}
NORMALIZE = dict(name="normalize", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=8, help="of 32 photos, in a round")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})

    from vfm_jax.core.memory import keep_freed_memory

    keep_freed_memory()  # as `vfm train` does

    print("| | host | device | device / host: median [range] | step |")
    print("|---|---|---|---|---|")
    for name, (size, canvas, vit) in RECIPES.items():
        host, device, step = measure(args.images, size, canvas, vit, args.rounds, args.batches)
        ratios = [there / here for here, there in zip(host, device, strict=True)]
        here, there = (1e3 * statistics.median(seconds) for seconds in (host, device))
        ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        print(f"| {name} | {here:.2f} | {there:.2f} | {ratio} | {1e3 * step:.0f} |", flush=True)
    print("\nCPU milliseconds an image; the step without the views.")


def measure(
    tars: str, size: int, canvas: int, vit: dict, rounds: int, num_batches: int
) -> tuple[list[float], list[float], float]:
    """CPU seconds an image of both ways, by round, and of a training step."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vfm_jax.augment.views import build_views
    from vfm_jax.data.crop import Crop, CroppedSource
    from vfm_jax.data.sources import SOURCES
    from vfm_jax.models.vit import ViT

    whole = SOURCES["tars"](path=tars, canvas_size=canvas)
    crop = dict(name="random_resized_crop", size=size)
    flip = dict(name="flip", probability=0.5)
    ways = {
        "host": (CroppedSource(whole, Crop(size=size), seed=0), (NORMALIZE,)),
        "device": (whole, (crop, flip, NORMALIZE)),
    }
    key = jax.random.key(0)
    views = {name: jax.jit(build_views(dict(image=dict(ops=ops)))) for name, (_, ops) in ways.items()}

    def batch(name: str, first: int) -> jax.Array:
        source = ways[name][0]
        rows = [source[i % len(source)] for i in range(first, first + BATCH)]
        fields = ("image", "size", "index") if name == "device" else ("image", "index")  # a crop fills its canvas
        return views[name](key, {field: np.stack([row[field] for row in rows]) for field in fields})["image"]

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first compiles
        spent = dict.fromkeys(ways, 0.0)
        for number in range(num_batches):
            for name in ways if (turn + number) % 2 else reversed(ways):
                start = time.process_time()
                batch(name, number * BATCH).block_until_ready()
                spent[name] += time.process_time() - start
        for name in ways:
            seconds[name].append(spent[name] / (num_batches * BATCH))

    encoder = ViT(**vit)
    images = batch("host", 0)[:8]
    params = jax.jit(encoder.init)(key, images)
    step = jax.jit(jax.grad(lambda params, images: jnp.mean(jnp.square(encoder.apply(params, images).pooled))))
    jax.block_until_ready(step(params, images))
    start = time.process_time()
    jax.block_until_ready(step(params, images))
    return seconds["host"][1:], seconds["device"][1:], (time.process_time() - start) / len(images)


if __name__ == "__main__":
    main()
