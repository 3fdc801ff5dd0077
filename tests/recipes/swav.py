"""SwAV's facts: Caron et al., 2020."""

from tests.recipe_facts import given, op
from tests.recipes.dino import frozen

SWAV = "configs/self_distillation/swav_r50_in1k.py"
STAGES = {
    ("swav", "resnet50", "pretrain_800ep"): SWAV,
    ("swav", "resnet50", "pretrain_400ep"): f"{SWAV}:400",
    ("swav", "resnet50", "pretrain_400ep_2x224"): f"{SWAV}:2x224",
    ("swav", "resnet50", "pretrain_bs256"): f"{SWAV}:bs256",
    ("swav", "eval", "linear"): f"{SWAV}:linear_probe",
}
PROSE = {"optim.clip"}  # LARC without clipping is LARS
COMPARED = 2  # of the run with two crops the facts tell these alone


def _of_each_size(read):
    """Reads a number of the global crops, and one of the local ones where there are any."""
    return lambda r: [read(r, field) for field in ("global", "local") if field in r["views"]]


def _crop(key, place=None):
    def read(recipe, field):
        value = op("random_resized_crop", key, field=field)(recipe)
        return value if place is None else value[place]

    return _of_each_size(read)


def _optimizer(recipe):
    return {"lars": "sgd in LARC", "sgd": "sgd"}[recipe["optimizer"]["name"]]


READERS = {
    "optim.name": _optimizer,
    "optim.lr": given("schedule", "base"),
    "lr_abs": given("schedule", "base"),
    "optim.final_lr": given("schedule", "end"),
    "final_lr": given("schedule", "end"),
    "warmup_epochs": lambda r: r["schedule"].get("warmup_epochs") or 0,
    "schedule": lambda r: "{name} to {end:.0f}".format(**r["schedule"]),
    "schedule.epochs": given("total_epochs"),
    "schedule.start_warmup": given("schedule", "start"),
    "epsilon": given("objective", "epsilon"),
    "sinkhorn_iterations": given("objective", "sinkhorn_iterations"),
    "prototypes": given("networks", "prototypes", "num_prototypes"),
    "feat_dim": given("networks", "projector", "out_dim"),
    "hidden_mlp": given("networks", "projector", "hidden_dim"),
    "freeze_prototypes_iters": frozen("freeze_steps", r"^prototypes/"),
    "queue": given("objective", "queue_length"),
    "epoch_queue_starts": given("objective", "queue_start_epochs"),
    "crops.n": _of_each_size(lambda r, field: r["views"][field]["num_views"]),
    "crops.size": _crop("size"),
    "crops.min_scale": _crop("scale", 0),
    "crops.max_scale": _crop("scale", 1),
    **{
        f"aug.color_jitter.{key[0]}": op("color_jitter", key, field="global")
        for key in ("brightness", "contrast", "saturation", "hue")
    },
    "aug.color_jitter.p": op("color_jitter", "probability", field="global"),
    "aug.grayscale_p": op("grayscale", "probability", field="global"),
    "aug.blur.p": op("gaussian_blur", "probability", field="global"),
    "aug.blur.sigma": op("gaussian_blur", "sigma", field="global"),
    "aug.hflip_p": op("flip", "probability", field="global"),
}
