"""JPEG photos to a canvas on one CPU core: vfm_jax beside Pillow, which torchvision's loaders use.

    python scripts/bench/decode.py --tars ../shared/data/imagenet_samples/*.tar

A turn takes every photo of the tars, their bytes in memory, decodes it in full and fits it into 256 x 256 pixels,
antialiased; "decode" stops before fitting. Ours checks header and damage, Pillow neither. Crops: crop.py.
"""

import argparse
import io
import os
import pathlib
import sys
import tarfile

CORE = os.environ.get("BENCH_CORE")
if CORE:  # a worker: before any library counts the cores
    os.sched_setaffinity(0, {int(CORE)})

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
import interleave  # noqa: E402
import numpy as np  # noqa: E402

SIDE = 256


def photos(tars: list[pathlib.Path]) -> list[bytes]:
    found = []
    for tar in tars:
        with tarfile.open(tar) as archive:
            found += [archive.extractfile(member).read() for member in archive if member.name.endswith(".jpg")]
    return found


def by_pillow(data: bytes, method: int | None) -> np.ndarray:
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    if method is None:
        return np.asarray(image)
    scale = min(1, SIDE / max(image.size))
    image = np.asarray(image.resize([max(1, round(side * scale)) for side in image.size], method))
    canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def work(name: str, tars: list[pathlib.Path]) -> None:
    if name.startswith("Pillow"):
        from PIL import Image

        method = getattr(Image.Resampling, name.removeprefix("Pillow, ").upper(), None)
        one = lambda data: by_pillow(data, method)  # noqa: E731
    else:
        from vfm_jax.data.decode import decode, reading

        one = decode if name.endswith("decode") else reading(SIDE).read
    files = photos(tars)
    interleave.serve({"photos": len(files)}, lambda: [one(data) for data in files])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tars", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("bench_logs"))
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.tars)
    environment = {"BENCH_CORE": str(args.core), "OMP_NUM_THREADS": "1"}
    names = ["Pillow, bilinear", "Pillow, bicubic", "Pillow, decode", "vfm_jax", "vfm_jax, decode"]
    specs = [
        interleave.Spec(
            name, [sys.executable, __file__, "--worker", name, "--tars", *map(str, args.tars)], environment
        )
        for name in names
    ]
    items = len(photos(args.tars))
    interleave.compare(specs, rounds=args.rounds, items=items, base="Pillow, bilinear", logs=args.logs)


if __name__ == "__main__":
    main()
