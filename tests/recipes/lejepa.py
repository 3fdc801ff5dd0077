"""LeJEPA's facts: Balestriero and LeCun, 2025."""

from tests.recipe_facts import given, op, ops
from vfm_jax.cli import load_recipe

LARGE, SMALL = (f"configs/redundancy/lejepa_{name}.py" for name in ("vit_l14_in1k", "vit_s8_imagenette"))
STAGES = {("lejepa", "recommended", "pretrain"): LARGE, ("lejepa", "vit_s8_imagenette", "minimal_example"): SMALL}
PROSE = {"linear_probe", "probe", "note"}


def _jitter(field):
    return op("color_jitter", field, field="global")


def _end(recipe):
    return f"lr/{recipe['schedule']['base'] / recipe['schedule']['end']:g}"


READERS = {
    "optim.lr": given("schedule", "base"),
    "optim.weight_decay.vit": given("optimizer", "weight_decay"),
    "optim.weight_decay.resnet": lambda r: load_recipe(f"{LARGE}:resnet50")["optimizer"]["weight_decay"],
    "schedule": lambda r: f"linear warm-up + {r['schedule']['name']} to {_end(r)}",
    **{
        f"crops.{part}_{fact}": read
        for part in ("global", "local")
        for fact, read in {
            "n": given("views", part, "num_views"),
            "size": op("random_resized_crop", "size", field=part),
            "scale": op("random_resized_crop", "scale", field=part),
        }.items()
    },
    "aug.hflip_p": op("flip", "probability", field="global"),
    "aug.color_jitter.b": _jitter("brightness"),
    "aug.color_jitter.c": _jitter("contrast"),
    "aug.color_jitter.s": _jitter("saturation"),
    "aug.color_jitter.h": _jitter("hue"),
    "aug.color_jitter.p": _jitter("probability"),
    "aug.grayscale_p": op("grayscale", "probability", field="global"),
    "aug.blur_p": op("gaussian_blur", "probability", field="global"),
    "aug.solarize.threshold": lambda r: 255 * ops(r, "solarize", "global")[0]["threshold"],
    "sigreg.slices": given("objective", "num_slices"),
    "sigreg.knots": given("objective", "num_knots"),
    "sigreg.t_max": given("objective", "t_max"),
    "arch.image": op("random_resized_crop", "size", field="global"),
    "arch.drop_path": given("networks", "encoder", "drop_path"),
    "arch.out": given("networks", "encoder", "projection"),
    "projector": lambda r: [r["networks"]["projector"]["hidden_dim"]] * 2 + [r["networks"]["projector"]["out_dim"]],
    "lambd": given("objective", "regularizer_weight"),
    "views": given("views", "global", "num_views"),
    "schedule.warmup": lambda r: "{} epoch from {:g}x".format(
        r["schedule"]["warmup_epochs"], r["schedule"]["start"] / r["schedule"]["base"]
    ),
    "schedule.eta_min": given("schedule", "end"),
    "aug.rrc_scale": op("random_resized_crop", "scale", field="global"),
    "aug.size": op("random_resized_crop", "size", field="global"),
    "aug.blur.p": op("gaussian_blur", "probability", field="global"),
    "aug.blur.kernel": op("gaussian_blur", "kernel_size", field="global"),
    "aug.blur.sigma": op("gaussian_blur", "sigma", field="global"),
}


def _solarize(recipe):
    """The wrapper's probability; torchvision's operation within it is made every second time."""
    share = ops(recipe, "solarize", "global")[0]["probability"]
    wrapped = "num_views" in recipe["views"]["global"] and "local" not in recipe["views"]
    return f"{share / 0.5:g} applied inside an op with its own p 0.5" if wrapped else share


READERS["aug.solarize.p"] = _solarize
