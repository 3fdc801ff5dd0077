"""SimSiam's facts: Chen and He, 2020."""

from tests.recipe_facts import given, op
from vfm_jax.core.tables import keywords
from vfm_jax.models import MODELS

SIMSIAM = "configs/self_distillation/simsiam_r50_in1k.py"
STAGES = {
    ("simsiam", "resnet50", "pretrain_100ep"): SIMSIAM,
    ("simsiam", "eval", "linear"): f"{SIMSIAM}:linear_probe",
}
COMPARED = 7  # the linear probe's


def _optimizer(recipe):
    """SGD, or LARS, which is SGD in what the code calls LARC without clipping."""
    return {"sgd": "sgd", "lars": "sgd wrapped in LARC"}[recipe["optimizer"]["name"]]


def _predictor_rate(recipe):
    """The predictor's own learning rate, which starts where the others' does."""
    groups = recipe["optimizer"]["groups"]
    own = next(group["schedule"] for group in groups if group["match"] == "^predictor/")
    assert own["base"] == recipe["schedule"]["base"]
    return own["name"]


def _projector(recipe):
    head = recipe["networks"]["projector"]
    norms = "BN on all" if head["hidden_norm"] and head["last_norm"] != "none" else "BN on hidden only"
    last = "last without affine" if head["last_norm"] == "plain" else "last affine"
    return f"{head['num_layers']}-layer, hidden {head['hidden_dim']}, out {head['out_dim']}, {norms} ({last})"


def _predictor(recipe):
    """Its width is the projector's, whose output it predicts."""
    head = recipe["networks"]["predictor"]
    assert head["out_dim"] == recipe["networks"]["projector"]["out_dim"]
    norms = "BN on hidden only" if head["hidden_norm"] and head["last_norm"] == "none" else "BN on all"
    return f"{head['num_layers']}-layer, hidden {head['hidden_dim']}, {norms}"


def _starts(recipe):
    spec = recipe["networks"]["encoder"]
    default = keywords(MODELS[spec["name"]])["zero_init"].default
    return "zero-init last BN of residual blocks" if spec.get("zero_init", default) else "all BN at one"


JITTER = {"b": "brightness", "c": "contrast", "s": "saturation", "h": "hue", "p": "probability"}
READERS = {
    "optim.name": _optimizer,
    "optim.predictor_lr": _predictor_rate,
    "schedule.epochs": given("total_epochs"),
    "schedule.warmup_epochs": lambda r: r["schedule"].get("warmup_epochs") or 0,
    "schedule.decay": lambda r: r["schedule"]["name"] + {1: " per epoch"}.get(r["schedule"]["hold_epochs"], ""),
    "heads.projector": _projector,
    "heads.predictor": _predictor,
    "aug.rrc_scale": op("random_resized_crop", "scale"),
    **{f"aug.color_jitter.{letter}": op("color_jitter", word) for letter, word in JITTER.items()},
    "aug.blur.p": op("gaussian_blur", "probability"),
    "aug.blur.sigma": op("gaussian_blur", "sigma"),
    "init": _starts,
}
