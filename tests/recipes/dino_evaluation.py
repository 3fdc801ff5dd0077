"""Facts of DINO's evaluations: Caron et al., 2021."""

from tests.recipe_facts import given
from tests.recipes.moco_v3 import augmented
from vfm_jax.cli import load_recipe

EVALUATION = "configs/self_distillation/dino_evaluation_in1k.py"
STAGES = {
    ("dino", "eval", "linear"): EVALUATION,
    ("dino", "eval", "knn"): EVALUATION,
}
PROSE = {"weighting"}  # of the evaluator, held to a formula in tests/evaluators
COMPARED = 4  # of the k-NN


def _probed(size):
    """What the probe of a size looks at, in the words of the facts."""

    def read(recipe):
        encoder = load_recipe(f"{EVALUATION}:{size}")["networks"]["encoder"]
        if encoder["pooling"] == "class_mean":
            return "cls of last block + average-pooled patches"
        return f"cls tokens of last {encoder['pooled_blocks']} blocks concatenated"

    return read


def _pooled(recipe):
    return {"class": "l2-normalised cls token"}[recipe["evals"]["knn"]["pool"]]


def _evaluated(recipe):
    crop = recipe["eval_views"]["image"]["ops"][0]
    return "resize {resize_shorter} ({interpolation}) centre crop {size}".format(**crop)


READERS = {
    "optim.name": given("optimizer", "name"),
    "schedule.decay": lambda r: f"{r['schedule']['name']} to {r['schedule']['end']:g}",
    "features.vit_s": _probed("s16"),
    "features.vit_b": _probed("b16"),
    "data.train": augmented,
    "data.eval": _evaluated,
    "init": lambda r: "normal std {init_std:g}, bias {init_bias:g}".format(**r["networks"]["head"]),
    "k": given("evals", "knn", "num_neighbors"),
    "temperature": given("evals", "knn", "temperature"),
    "features": _pooled,
    "data.resize": lambda r: r["eval_views"]["image"]["ops"][0]["resize_shorter"],
    "data.crop": lambda r: r["eval_views"]["image"]["ops"][0]["size"],
}
