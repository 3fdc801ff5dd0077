"""Decoding, a random crop of 224 and a flip, per photo: ours against Pillow with torchvision's operations.

    python scripts/bench/crop.py --images ../shared/data/imagenet_samples/*.tar [--core 0] [--rounds 9]

Run it with a Python that has vfm_jax. All ways take the same JPEG files from memory and cut the same boxes; they take
turns, photo batch by photo batch, on one core, and are compared by the CPU seconds of the thread. Ours includes
drawing the box and all checks of the file; Pillow's is what torchvision does with Pillow's images (which are always
antialiased), without the drawing.
"""

import argparse
import io
import os
import pathlib
import statistics
import sys
import tarfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

SIZE = 224


def photos(tars: list[str]) -> list[bytes]:
    """The JPEG files in tar files."""
    found = []
    for path in tars:
        with tarfile.open(path) as shard:
            found += [shard.extractfile(m).read() for m in shard if m.name.lower().endswith((".jpg", ".jpeg"))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})

    from vfm_jax.core.memory import keep_freed_memory

    keep_freed_memory()  # as `vfm train` does

    import numpy as np
    from PIL import Image

    from vfm_jax.data.crop import Crop, uniforms
    from vfm_jax.data.decode import Reading, decode

    files = photos(args.images)
    reading = Reading((256, 256))
    antialiased, plain = Crop(size=SIZE), Crop(size=SIZE, antialias=False)
    draws = [uniforms(0, 0, 0, i) for i in range(len(files))]
    boxes = [antialiased.box(*decode(file).shape[:2], u) for file, u in zip(files, draws, strict=True)]
    mirrored = [antialiased.mirrors(u) for u in draws]

    def pillow(i: int) -> np.ndarray:
        box = boxes[i]
        image = Image.open(io.BytesIO(files[i])).convert("RGB")
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored[i] else image)

    def ours(crop: Crop, i: int) -> np.ndarray:
        return crop.read(reading, files[i], "", uniforms(0, 0, 0, i))["image"]

    ways = {
        "Pillow": pillow,
        "ours, antialiased": lambda i: ours(antialiased, i),
        "ours, bilinear": lambda i: ours(plain, i),
        "decoding alone": lambda i: decode(files[i]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds + 1):  # the first warms up
        for name, way in ways.items():
            start = time.thread_time()
            for i in range(len(files)):
                way(i)
            seconds[name].append(time.thread_time() - start)
    print(f"{len(files)} photos, {args.rounds} rounds, one core\n")
    print("| | photos per CPU-s | ratio to Pillow: median [range] |")
    print("|---|---|---|")
    for name, own in seconds.items():
        ratios = [base / one for base, one in zip(seconds["Pillow"][1:], own[1:], strict=True)]
        median = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        print(f"| {name} | {len(files) / statistics.median(own[1:]):.0f} | {median} |")


if __name__ == "__main__":
    main()
