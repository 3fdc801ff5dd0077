"""Does every method learn? Each pretrains a small encoder on the same images for the same number of steps.

    python scripts/bench/learning.py                          every method, six at three seeds: more than an hour
    python scripts/bench/learning.py --methods mae dino --seeds 0 1 2      some
    python scripts/bench/learning.py --shared ../shared       where the pack cifar10/cifar10.tar.gz lies

Images: 10,000 of CIFAR-10 (2,500 held out) where that pack is, else the 4,000 embedded digits (1,000 held out), then
without the changes of colour. A method is its recipe's `tiny` variant: its own networks, views, masks, losses and
schedules at toy size. All have the same batch, steps, AdamW (the authors' LARS rates are made for batches of
thousands) and a ViT of width 64, with patches of 8 pixels where the method is written for ResNets or VGG (of 4 where
crops are of several sizes), but for the methods that are made for another encoder. Distillation has the supervised
run as its teacher, trained and exported before.

An average network, a teacher or an EMA, remembers at most a tenth of the run, or a quarter where its features are
regressed (one that moves as fast as its student soon gives features that are easy to predict): with the authors'
momentum it would still be random weights at the end. What is printed is k-NN and linear probe accuracy on the
held-out images, beside those of the same encoder with random weights, and of raw pixels.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

COLOUR = ("color_jitter", "grayscale", "solarize", "three_augment")
CIFAR10 = dict(name="normalize", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
SMALL = dict(width=64, depth=3, heads=2, mlp_dim=128)
VIT = dict(name="vit", positions="sincos2d", pooling="class")
REGRESSING = ("ijepa", "data2vec2")  # the average network's features
MAIN = ("mae", "simclr", "byol", "dino", "barlow_twins", "vicreg")  # at three seeds
_LOCK = threading.Lock()
DIGITS = dict(name="normalize", mean=0.13, std=0.31)


def recipes() -> dict[str, str]:
    """Method -> the first recipe that pretrains by it; those that need captions are measured by recall."""
    from vfm_jax.cli import load_recipe

    found: dict[str, str] = {}
    begun: dict[str, str] = {}  # from what another run has left
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        if path.parent.name not in ("adapt", "image_text"):
            recipe, location = load_recipe(str(path)), str(path.relative_to(ROOT))
            continues = recipe.get("start_from") or any(n and "weights" in n for n in recipe["networks"].values())
            (begun if continues else found).setdefault(recipe["objective"]["name"], location)
    return begun | found


def images(shared: pathlib.Path, scratch: pathlib.Path) -> dict[str, Any]:
    """The fields of `config.data` for the images at hand."""
    pack = shared / "data" / "cifar10" / "cifar10.tar.gz"
    if not pack.is_file():
        return dict(name="mnist5k", split="train")
    if not (scratch / "cifar10").is_dir():
        with tarfile.open(pack) as archive:
            archive.extractall(scratch, filter="data")
    return dict(name="folder", path=str(scratch / "cifar10"), split="train", canvas_size=32)


def _same_images(views: Any, normalize: dict[str, Any], colour: bool) -> Any:
    """A spec of views for these images: their normalisation, and no changes of colour where they have none."""
    if isinstance(views, dict):
        return {field: _same_images(value, normalize, colour) for field, value in views.items()}
    if isinstance(views, tuple | list):
        kept = [op for op in views if not isinstance(op, dict) or colour or op.get("name") not in COLOUR]
        return tuple(
            normalize
            if isinstance(op, dict) and op.get("name") == "normalize"
            else _same_images(op, normalize, colour)
            for op in kept
        )
    return views


def recipe_of(location: str, data: dict[str, Any], steps: int, batch: int, seed: int) -> dict[str, Any]:
    """The method's tiny recipe on these images, with the budget and the encoder that all have."""
    from vfm_jax.cli import load_recipe

    recipe = load_recipe(f"{ROOT / location}:tiny")
    colour = data["name"] != "mnist5k"
    normalize = CIFAR10 if colour else DIGITS
    if recipe["networks"]["encoder"]["name"] == "vgg":  # one that halves its map five times gets larger crops
        recipe["views"]["image"]["ops"][0]["size"] = 32
    size = _sizes(recipe["views"])[0]  # an encoder is asked about images as large as those that it was trained on
    whole = dict(name="center_crop", size=size, resize_shorter=size, interpolation="bicubic")
    recipe |= dict(
        seed=seed, total_steps=steps, log_every_steps=50, data=data | dict(batch_size=batch),
        views=_same_images(recipe["views"], normalize, colour),
        eval_data=dict(test=dict(split="test")), eval_views=dict(image=dict(ops=(whole, normalize))),
        evals=dict(knn=dict(num_neighbors=20), linear_probe=dict()), baselines=("random_init",),
    )  # fmt: skip
    if recipe["networks"]["encoder"]["name"] in ("resnet", "bit", "vgg"):
        patch = 4 if any(size % 8 for size in _sizes(recipe["views"])) else 8  # local crops are of other sizes
        recipe["networks"]["encoder"] = VIT | dict(variant=f"mu/{patch}")
    if recipe["networks"]["encoder"]["name"] == "vit":
        recipe["networks"]["encoder"] |= SMALL
    memory = steps / (4 if recipe["objective"]["name"] in REGRESSING else 10)
    for averaging in (recipe["objective"], recipe.get("ema") or {}):
        averaging.update((f, _remembering(m, memory)) for f, m in averaging.items() if f.endswith("momentum"))
    recipe["optimizer"] = dict(name="adamw", weight_decay=0.05)
    recipe["schedule"] = dict(name="cosine", base=1e-3, warmup_percent=10)
    recipe.pop("stages", None)
    return recipe


def _sizes(views: dict[str, Any]) -> list[int]:
    from vfm_jax.experiment import listed

    return [op["size"] for part in listed(views) for op in part["ops"] if "size" in op]


def _remembering(momentum: Any, steps: float) -> Any:
    """A momentum, or a schedule of one, that begins by averaging over at most so many steps."""
    if isinstance(momentum, dict):
        return momentum | {end: _remembering(momentum[end], steps) for end in ("start", "base") if end in momentum}
    return min(momentum, 1 - 1 / steps)


def train_apart(recipe: dict[str, Any], teacher: dict[str, Any] | None) -> dict[str, Any]:
    """Evaluations of a run in a process of its own, which gives its memory back, and whose failure is one row."""
    command = [sys.executable, __file__, "--run", json.dumps([recipe, teacher])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
    if not lines:
        raise RuntimeError((done.stderr.strip() or "no reason given").splitlines()[-1])
    return json.loads(lines[-1][1:])


def _train(recipe: dict[str, Any], teacher: dict[str, Any] | None) -> None:
    from vfm_jax.core.memory import keep_freed_memory
    from vfm_jax.experiment import complete
    from vfm_jax.export.weights import export_weights

    keep_freed_memory()
    from vfm_jax.train.loop import train

    with tempfile.TemporaryDirectory() as scratch:
        if teacher:
            train(complete(teacher), f"{scratch}/teacher")
            export_weights(f"{scratch}/teacher", "vfm", f"{scratch}/weights")
            frozen = dict(name="pretrained", weights=f"{scratch}/weights")
            recipe["networks"] |= dict(teacher=frozen, teacher_head=frozen | dict(part="head"))
        print("@" + json.dumps(train(complete(recipe), f"{scratch}/run")["evaluations"]))


def _percent(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} [{100 * min(values):.1f}-{100 * max(values):.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", help="default: all that have a recipe")
    parser.add_argument("--seeds", nargs="*", type=int, help="default: 0, 1, 2 for the main six, 0 for the others")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--shared", type=pathlib.Path, default=ROOT.parent / "shared")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        _train(*_tuples(json.loads(options.run)))
        return
    known = recipes()
    cores = sorted(os.sched_getaffinity(0))
    with (
        tempfile.TemporaryDirectory() as scratch,
        concurrent.futures.ThreadPoolExecutor(len(cores), initializer=lambda: _keep_to(cores)) as pool,
    ):
        data = images(options.shared, pathlib.Path(scratch))

        def recipe(method: str, seed: int) -> dict[str, Any]:
            return recipe_of(known[method], data, options.steps, options.batch, seed)

        def start(method: str, seed: int) -> concurrent.futures.Future[dict[str, Any]]:
            teacher = recipe("supervised", seed) if method == "distillation" else None
            return pool.submit(train_apart, recipe(method, seed), teacher)

        raw = pool.submit(train_apart, recipe("supervised", 0) | dict(total_steps=1, baselines=("raw_pixels",)), None)
        runs = {
            method: [start(method, seed) for seed in options.seeds or (range(3) if method in MAIN else range(1))]
            for method in options.methods or known
        }
        print(f"| {options.steps} steps of {options.batch} | k-NN | random | linear probe | random |")
        print("|---|---|---|---|---|", flush=True)
        for method, seeds in runs.items():
            try:
                found = [run.result() for run in seeds]
            except RuntimeError as error:
                print(f"| {method} | failed: {error} | | | |", flush=True)
                continue
            cells = [
                _percent([one[subject][f"{probe}/accuracy"] for one in found])
                for probe in ("knn", "linear_probe")
                for subject in ("pretrained", "random_init")
            ]
            print(f"| {method} | {' | '.join(cells)} |", flush=True)
        pixels = raw.result()["raw_pixels"]
        cells = [f"{100 * pixels[f'{probe}/accuracy']:.1f}" for probe in ("knn", "linear_probe")]
        print(f"| raw pixels | {' | | '.join(cells)} | |")


def _keep_to(cores: list[int]) -> None:
    """Gives a thread, and the runs that it starts, one core: two runs on a core each are done before one on two."""
    with _LOCK:
        os.sched_setaffinity(0, {cores.pop()})


def _tuples(value: Any) -> Any:
    """What JSON made of a recipe, with its lists as the tuples that they were."""
    if isinstance(value, dict):
        return {field: _tuples(inner) for field, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
