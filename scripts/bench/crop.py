"""Reading, decoding, a random crop of 224 and a flip, per photo: ours against Pillow's and tf.data's.

    python scripts/bench/crop.py --images ../shared/data/imagenet_samples/*.tar [--tf-python PY]

Run it with a Python that has vfm_jax. All ways read the same JPEG files and take turns on one core, each a process of
its own; CPU seconds, all threads. Ours includes drawing the box and all checks of the file. `pillow` cuts our boxes
as torchvision does with Pillow's images (always antialiased), without the drawing. `tf` is big_vision's
`decode_jpeg_and_inception_crop`: a box of the same distribution, of which alone the pixels are decoded, resized
without antialiasing; `tf_antialiased` is the same with it. Both are left out without --tf-python.
"""

import argparse
import pathlib
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import interleave

SIZE = 224


def unpack(tars: list[str], folder: pathlib.Path) -> int:
    """Writes the JPEG files in tar files to a folder, and says how many there are."""
    count = 0
    for path in tars:
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name.lower().endswith((".jpg", ".jpeg")):
                    (folder / f"{count:05d}.jpg").write_bytes(shard.extractfile(member).read())
                    count += 1
    return count


def serve_each(way: Callable[[str, int], Any], files: list[str]) -> None:
    def turn() -> None:
        for i, file in enumerate(files):
            way(file, i)

    interleave.serve({}, turn)


def serve_ours(files: list[str], antialias: bool) -> None:
    from vfm_jax.core.memory import keep_freed_memory
    from vfm_jax.data.crop import Crop, uniforms
    from vfm_jax.data.decode import reading

    keep_freed_memory()  # as `vfm train` does
    crop, how = Crop(size=SIZE, antialias=antialias), reading(256)
    serve_each(lambda file, i: crop.read(how, file, file, uniforms(0, 0, 0, i)), files)


def serve_decoding(files: list[str]) -> None:
    from vfm_jax.core.memory import keep_freed_memory
    from vfm_jax.data.decode import decode

    keep_freed_memory()
    serve_each(lambda file, i: decode(file), files)


def serve_pillow(files: list[str]) -> None:
    import numpy as np
    from PIL import Image

    from vfm_jax.core.memory import keep_freed_memory
    from vfm_jax.data.crop import Crop, uniforms

    keep_freed_memory()
    crop = Crop(size=SIZE)
    draws = [uniforms(0, 0, 0, i) for i in range(len(files))]
    boxes = [crop.box(*Image.open(file).size[::-1], u) for file, u in zip(files, draws, strict=True)]

    def way(file: str, i: int) -> np.ndarray:
        box = boxes[i]
        image = Image.open(file).convert("RGB")
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if crop.mirrors(draws[i]) else image)

    serve_each(way, files)


def serve_tf(files: list[str], antialias: bool) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def example(file: Any) -> Any:
        content = tf.io.read_file(file)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(content),
            tf.zeros([0, 0, 4], tf.float32),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.image.decode_and_crop_jpeg(content, window, channels=3)
        image = tf.image.resize(image, [SIZE, SIZE], antialias=antialias)
        return tf.cast(tf.clip_by_value(tf.image.random_flip_left_right(image), 0, 255), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.deterministic = False
    dataset = tf.data.Dataset.from_tensor_slices(files).map(example, num_parallel_calls=1).batch(32)
    dataset = dataset.with_options(options)

    def turn() -> None:
        assert sum(len(images) for images in dataset) == len(files)

    interleave.serve({"tensorflow": tf.__version__}, turn)


SERVERS: dict[str, Callable[[list[str]], None]] = {
    "pillow": serve_pillow,
    "ours_antialiased": lambda files: serve_ours(files, antialias=True),
    "ours_bilinear": lambda files: serve_ours(files, antialias=False),
    "decoding_alone": serve_decoding,
    "tf": lambda files: serve_tf(files, antialias=False),
    "tf_antialiased": lambda files: serve_tf(files, antialias=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", help="tar files of JPEGs")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tf-python", help="a Python with tensorflow")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        SERVERS[args.serve]([str(file) for file in sorted(pathlib.Path(args.folder).iterdir())])
    if not args.images:
        parser.error("--images is missing")
    with tempfile.TemporaryDirectory() as folder:
        count = unpack(args.images, pathlib.Path(folder))
        pythons = {name: args.tf_python if name.startswith("tf") else sys.executable for name in SERVERS}
        specs = [
            interleave.Spec(
                name,
                ["taskset", "-c", str(args.core), python, __file__, f"--serve={name}", f"--folder={folder}"],
                {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            for name, python in pythons.items()
            if python
        ]
        if not args.tf_python:
            print("# left out: tf and tf_antialiased, for want of --tf-python", file=sys.stderr)
        logs = pathlib.Path(tempfile.gettempdir()) / "bench_crop"
        results = interleave.compare(specs, rounds=args.rounds, items=count, base="pillow", logs=logs)
    for ours, peer in (("ours_bilinear", "tf"), ("ours_antialiased", "tf_antialiased")):
        if peer in results:
            ratios = [theirs / own for theirs, own in zip(results[peer]["s"], results[ours]["s"], strict=True)]
            print(f"{ours} / {peer}: {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]")


if __name__ == "__main__":
    main()
