"""Facts of I-JEPA's evaluations: Assran et al., 2023."""

from configs.masked import ijepa_evaluation_in1k
from tests.recipe_facts import given, op, ops, scaled
from tests.recipes.mae import MAE
from vfm_jax.cli import load_recipe

EVALUATION = "configs/masked/ijepa_evaluation_in1k.py"
STAGES = {
    ("ijepa", "eval", "linear"): EVALUATION,
    ("ijepa", "eval", "low_shot_1pct"): f"{EVALUATION}:low_shot_h14",
    ("ijepa", "eval", "finetune_448"): f"{EVALUATION}:finetune_h16_448",
}
COMPARED = 7
SIZES = {"L": "low_shot_l16", "H": "low_shot_h14"}


def _of(size, *path):
    """Reads the low-shot recipe of another size: both stand in one table."""
    return lambda recipe: given(*path)(load_recipe(f"{EVALUATION}:{SIZES[size]}"))


def _swept(values, read):
    """All values of a sweep, of which the recipe has the first."""

    def of(recipe):
        assert abs(read(recipe) / values[0] - 1) < 1e-9
        return values

    return of


def _decay(recipe):
    schedule = recipe["schedule"]
    every = schedule["drop_epochs"][0]
    assert list(schedule["drop_epochs"]) == list(range(every, recipe["total_epochs"], every))
    return f"divide by {1 / schedule['factor']:g} every {every} epochs"


def _features(recipe):
    """Which encoder it is, a run of another method decides: it starts from what that is evaluated by, the teacher."""
    assert recipe["start_from"] and recipe["networks"]["encoder"].get("pooled_blocks", 1) == 1
    return {"mean": "average-pooled target-encoder output"}[recipe["networks"]["encoder"]["pooling"]]


def _augmented(recipe):
    same = ops(recipe, "rand_augment") == ops(load_recipe(f"{MAE}:finetune"), "rand_augment")
    used = {
        "mixup": recipe["mix"] and recipe["mix"]["mixup"],
        "cutmix": recipe["mix"] and recipe["mix"]["cutmix"],
        "erasing": ops(recipe, "random_erasing"),
        "drop path": recipe["networks"]["encoder"].get("drop_path"),
    }
    *others, last = [name for name, use in used.items() if not use]
    return f"RandAugment as {'MAE' if same else 'no other'}; no {', '.join(others)} or {last}"


def _model(recipe):
    variant = recipe["networks"]["encoder"]["variant"].lower().replace("/", "")
    return f"vit_{variant}_{op('random_resized_crop', 'size')(recipe)}"


READERS = {
    "optim.lr_grid": _swept(ijepa_evaluation_in1k.PROBE_RATES, scaled(256)),
    "optim.wd_grid": _swept(ijepa_evaluation_in1k.PROBE_DECAYS, given("optimizer", "weight_decay")),
    "optim.lr": given("schedule", "base"),
    **{f"optim.lr.{size}": _of(size, "schedule", "base") for size in SIZES},
    **{f"optim.weight_decay.{size}": _of(size, "optimizer", "weight_decay") for size in SIZES},
    "schedule": _decay,
    "features": _features,
    "label_smoothing": given("objective", "label_smoothing"),
    "aug": _augmented,
    "model": _model,
    "mixup": given("mix", "mixup"),
    "cutmix": given("mix", "cutmix"),
}
