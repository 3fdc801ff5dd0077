"""What the loader costs beside the operations it runs: batches and `prefetch` against a bare loop of threads.

    python scripts/bench/loader.py [--images FOLDER] [--canvas 224] [--cores 0,1] [--rounds 5] [--torch-python PY]
        [--tf-python PY]

Run it with a Python that has vfm_jax. Without --images it writes small PNGs of 32 x 32 pixels, where the cost of each
record in Python is nearly all there is; --arrays reads the same pictures from an array in memory.

`bare` is `source[i]` in a ThreadPoolExecutor, a future for each 16 records: the limit. `ours` is the whole loader,
batches handed over included. `grain` is the pipeline that grain's documentation shows: a map over records, threads, a
batch. `torch` is PyTorch's DataLoader in one process, whose dataset opens, converts and copies the same files with
Pillow; it takes more with worker processes, which have to send what they made. `tf` is tf.data, which reads and
decodes the same files; not with --arrays. Peers without a Python are left out, and named. CPU seconds, all threads.
"""

import argparse
import pathlib
import sys
import tempfile
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import interleave

PART = 16


def write_images(folder: pathlib.Path, count: int = 2048) -> None:
    """PNGs of 32 x 32 pixels with as much detail as CIFAR's."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.png")


def make_source(args: argparse.Namespace) -> Any:
    import numpy as np

    from vfm_jax.data.sources.arrays import arrays
    from vfm_jax.data.sources.folder import folder

    source = folder(args.images, labels=None, canvas_size=args.canvas)
    if not args.arrays:
        return source
    return arrays(images=np.stack([source[i]["image"] for i in range(len(source))]))


def image_files(folder: str) -> list[pathlib.Path]:
    return sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix.lower() in (".png", ".jpg", ".jpeg"))


def order(length: int, items: int) -> Any:
    import numpy as np

    repeats = -(-items // length)
    return np.concatenate([np.random.default_rng(r).permutation(length) for r in range(repeats)])[:items]


class Chosen:
    """The records of a turn, in random order: a source read to its end leaves nothing made that was not measured."""

    def __init__(self, args: argparse.Namespace):
        self._source = make_source(args)
        self._order = order(len(self._source), args.items)
        self.class_names, self.image_shape = None, self._source.image_shape
        if hasattr(self._source, "__getitems__"):
            self.__getitems__ = lambda indices: self._source.__getitems__(self._order[indices])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[int(self._order[index])]

    def name(self, index: int) -> str:
        return self._source.name(int(self._order[index]))


def serve_bare(args: argparse.Namespace) -> None:
    from concurrent.futures import ThreadPoolExecutor

    source = Chosen(args)
    pool = ThreadPoolExecutor(args.threads)
    parts = [range(i, min(i + PART, args.items)) for i in range(0, args.items, PART)]
    interleave.serve({}, lambda: sum(pool.map(lambda part: len([source[i] for i in part]), parts)))


def serve_ours(args: argparse.Namespace) -> None:
    from vfm_jax.data.device import prefetch
    from vfm_jax.data.pipeline import eval_batches

    source = Chosen(args)

    def turn() -> None:
        with prefetch(eval_batches(source, batch_size=args.batch, threads=args.threads), lambda b: b) as batches:
            assert sum(batch["valid"].sum() for batch in batches) == args.items

    interleave.serve({}, turn)


def serve_grain(args: argparse.Namespace) -> None:
    import grain

    source = Chosen(args)
    options = grain.ReadOptions(num_threads=args.threads, prefetch_buffer_size=2 * args.batch)
    dataset = grain.MapDataset.range(args.items).map(lambda i: source[i])
    dataset = dataset.to_iter_dataset(options).batch(args.batch)

    def turn() -> None:
        assert sum(len(batch["index"]) for batch in dataset) == args.items

    interleave.serve({}, turn)


def serve_torch(args: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    torch.set_num_threads(1)
    files = image_files(args.images)

    def pixels(file: pathlib.Path) -> np.ndarray:
        image = Image.open(file).convert("RGB")
        image.thumbnail((args.canvas, args.canvas), Image.Resampling.BICUBIC)
        canvas = np.zeros((args.canvas, args.canvas, 3), np.uint8)
        canvas[: image.height, : image.width] = np.asarray(image)
        return canvas

    in_memory = np.stack([pixels(file) for file in files]) if args.arrays else None

    class Images(Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int, int]:
            return torch.from_numpy(pixels(files[i]) if in_memory is None else in_memory[i]), -1, i

    chosen = order(len(files), args.items).tolist()
    loader = DataLoader(Images(), batch_size=args.batch, sampler=chosen)

    def turn() -> None:
        assert sum(len(images) for images, _, _ in loader) == args.items

    interleave.serve({}, turn)


def serve_tf(args: argparse.Namespace) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    files = image_files(args.images)
    chosen = order(len(files), args.items)
    is_png = files[0].suffix.lower() == ".png"

    def example(file: Any, index: Any) -> tuple[Any, int, Any]:
        content = tf.io.read_file(file)
        image = tf.io.decode_png(content, 3) if is_png else tf.io.decode_jpeg(content, 3)
        canvas = [args.canvas, args.canvas]
        if tf.reduce_max(tf.shape(image)) > args.canvas:
            image = tf.image.resize(image, canvas, tf.image.ResizeMethod.AREA, preserve_aspect_ratio=True)
            image = tf.cast(image, tf.uint8)
        return tf.image.pad_to_bounding_box(image, 0, 0, *canvas), -1, index

    dataset = tf.data.Dataset.from_tensor_slices(([str(files[i]) for i in chosen], chosen))
    dataset = dataset.map(example, num_parallel_calls=args.threads).batch(args.batch).prefetch(2)
    options = tf.data.Options()
    options.threading.private_threadpool_size = args.threads
    dataset = dataset.with_options(options)

    def turn() -> None:
        assert sum(len(images) for images, _, _ in dataset) == args.items

    interleave.serve({"tensorflow": tf.__version__}, turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a folder of image files; small PNGs are written by default")
    parser.add_argument("--arrays", action="store_true", help="the same pictures from an array in memory")
    parser.add_argument("--canvas", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--items", type=int, default=4096, help="records a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", help="a Python with torch, numpy and Pillow")
    parser.add_argument("--tf-python", help="a Python with tensorflow")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        SERVERS[args.serve](args)
    with tempfile.TemporaryDirectory() as directory:
        if args.images is None:
            args.images = directory
            write_images(pathlib.Path(directory))
        pythons = dict.fromkeys(SERVERS, sys.executable)
        pythons |= {"torch": args.torch_python, "tf": None if args.arrays else args.tf_python}
        if absent := [name for name, python in pythons.items() if python is None]:
            print(f"# left out: {', '.join(absent)}", file=sys.stderr)
        words = [f"--{n}={getattr(args, n)}" for n in ("images", "canvas", "batch", "items", "threads")]
        words += ["--arrays"] if args.arrays else []
        specs = [
            interleave.Spec(
                name,
                ["taskset", "-c", args.cores, python, __file__, f"--serve={name}", *words],
                {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            )
            for name, python in pythons.items()
            if python
        ]
        logs = pathlib.Path(tempfile.gettempdir()) / "bench_loader"
        interleave.compare(specs, rounds=args.rounds, items=args.items, base="bare", logs=logs)


SERVERS = {"bare": serve_bare, "ours": serve_ours, "grain": serve_grain, "torch": serve_torch, "tf": serve_tf}

if __name__ == "__main__":
    main()
