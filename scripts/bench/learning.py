"""Does every method learn? Each pretrains a small encoder on the same images for the same number of steps.

    python scripts/bench/learning.py                                    every method once: about an hour on two cores
    python scripts/bench/learning.py --methods mae dino --seeds 0 1 2   some, at three seeds
    python scripts/bench/learning.py --shared ../shared                 where the pack cifar10/cifar10.tar.gz lies

Images: 10,000 of CIFAR-10 (2,500 held out) where that pack is, else the 4,000 embedded digits (1,000 held out), then
without the changes of colour. A method is its recipe's `tiny` variant: its own networks, views, masks, losses and
schedules at toy size. All have the same batch, steps and AdamW (the authors' LARS rates are made for batches of
thousands). What is printed is k-NN and linear probe accuracy on the held-out images, beside those of the same encoder
with random weights, and of raw pixels.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

COLOUR = ("color_jitter", "grayscale", "solarize", "three_augment")
CIFAR10 = dict(name="normalize", mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
DIGITS = dict(name="normalize", mean=0.13, std=0.31)


def recipes() -> dict[str, str]:
    """Method -> the first recipe of it that has a `tiny` variant; those that need captions are measured by recall."""
    from vfm_jax.cli import load_recipe

    found: dict[str, str] = {}
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        if path.parent.name not in ("adapt", "image_text"):
            found.setdefault(load_recipe(str(path))["objective"]["name"], str(path.relative_to(ROOT)))
    return found


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


def run(location: str, data: dict[str, Any], steps: int, batch: int, seed: int) -> dict[str, Any]:
    """Evaluations of one run, by subject."""
    from vfm_jax.cli import load_recipe
    from vfm_jax.experiment import complete
    from vfm_jax.train.loop import train

    recipe = load_recipe(f"{ROOT / location}:tiny")
    colour = data["name"] != "mnist5k"
    normalize = CIFAR10 if colour else DIGITS
    recipe |= dict(
        seed=seed, total_steps=steps, log_every_steps=50, data=data | dict(batch_size=batch),
        views=_same_images(recipe["views"], normalize, colour),
        eval_data=dict(test=dict(split="test")), eval_views=dict(image=dict(ops=(normalize,))),
        evals=dict(knn=dict(num_neighbors=20), linear_probe=dict()), baselines=("random_init", "raw_pixels"),
    )  # fmt: skip
    groups = recipe["optimizer"].get("groups")
    recipe["optimizer"] = dict(name="adamw", weight_decay=0.05) | ({"groups": groups} if groups else {})
    recipe["schedule"] = dict(name="cosine", base=1e-3, warmup_percent=10)
    recipe.pop("stages", None)
    with tempfile.TemporaryDirectory() as workdir:
        return train(complete(recipe), workdir)["evaluations"]


def _percent(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} [{100 * min(values):.1f}-{100 * max(values):.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", help="default: all that have a recipe")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--shared", type=pathlib.Path, default=ROOT.parent / "shared")
    parser.add_argument("--one", nargs=3, metavar=("RECIPE", "SEED", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:  # in a process of its own: memory is given back, and a failure is one row
        location, seed, data = options.one
        print("@" + json.dumps(run(location, json.loads(data), options.steps, options.batch, int(seed))))
        return
    known = recipes()
    with tempfile.TemporaryDirectory() as scratch:
        data = images(options.shared, pathlib.Path(scratch))
        print(f"| {options.steps} steps of {options.batch} | k-NN | random | linear probe | random |")
        print("|---|---|---|---|---|", flush=True)
        pixels = None
        for method in options.methods or known:
            found = []
            for seed in options.seeds:
                size = ["--steps", str(options.steps), "--batch", str(options.batch)]
                command = [sys.executable, __file__, *size, "--one", known[method], str(seed), json.dumps(data)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
                if not lines:
                    print(
                        f"| {method} | failed: {(done.stderr.strip() or 'no reason given').splitlines()[-1]} | | | |"
                    )
                    break
                found.append(json.loads(lines[-1][1:]))
            if len(found) < len(options.seeds):
                continue
            cells = [
                _percent([one[subject][f"{probe}/accuracy"] for one in found])
                for probe in ("knn", "linear_probe")
                for subject in ("pretrained", "random_init")
            ]
            print(f"| {method} | {' | '.join(cells)} |", flush=True)
            pixels = found[0]["raw_pixels"]
    if pixels:
        print(
            f"| raw pixels | {100 * pixels['knn/accuracy']:.1f} | | {100 * pixels['linear_probe/accuracy']:.1f} | |"
        )


if __name__ == "__main__":
    main()
