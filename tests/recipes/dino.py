"""DINO's facts: Caron et al., 2021."""

from tests.recipe_facts import given, op

FOLDER = "configs/self_distillation"
S16, B16 = f"{FOLDER}/dino_vit_s16_in1k.py", f"{FOLDER}/dino_vit_b16_in1k.py"
STAGES = {
    ("dino", "vit_s16", "pretrain_100ep_vanilla"): S16,
    ("dino", "vit_s16", "pretrain_300ep_boosted"): f"{S16}:300",
    ("dino", "vit_s16", "pretrain_released_checkpoint"): f"{S16}:800",
    ("dino", "vit_b16", "pretrain_released_checkpoint"): B16,
    ("dino", "vit_b8", "pretrain_released_checkpoint"): f"{B16}:vit_b8",
    ("dino", "resnet50", "pretrain_100ep"): f"{FOLDER}/dino_r50_in1k.py",
}
# What every DinoHead is, held to the authors' in tests/nn/test_heads.py; GPUs.
PROSE = {"head.act", "head.bn", "head.l2_norm_before_last", "head.last_layer", "init.head_linear", "batch_per_gpu"}
COMPARED = 11  # the fewest, of the ResNet


def num_views(field):
    """Reads how many views a field has, of all its lists together."""

    def read(recipe):
        views = recipe["views"].get(field, ())
        return sum(part.get("num_views") or 1 for part in ([views] if "ops" in views else views))

    return read


def at(*path, end="base"):
    """Reads one end of a schedule, or the number that stands in its place."""

    def read(recipe):
        value = given(*path)(recipe)
        return value[end] if isinstance(value, dict) else value

    return read


def warmup(*path):
    """Reads the epochs of a schedule's warm-up; a number has none."""

    def read(recipe):
        value = given(*path)(recipe)
        return value["warmup_epochs"] if isinstance(value, dict) else 0

    return read


def frozen(duration, match=r"^head/prototypes/"):
    """Reads for how long the group of a pattern stands still."""
    return lambda r: next(group[duration] for group in r["optimizer"]["groups"] if group["match"] == match)


def probability(name, field, view=0):
    """Reads the probability of an operation in one view."""
    return op(name, "probability", field=field, view=view)


CROPS = {
    **{f"crops.{field}_n": num_views(field) for field in ("global", "local")},
    **{
        f"crops.{field}_{key}": op("random_resized_crop", key, field=field)
        for field in ("global", "local")
        for key in ("size", "scale")
    },
}
READERS = {
    **CROPS,
    "arch.qkv_bias": given("networks", "encoder", "qkv_bias"),
    "head.layers": given("networks", "head", "num_layers"),
    "head.hidden": given("networks", "head", "hidden_dim"),
    "head.bottleneck": given("networks", "head", "bottleneck_dim"),
    "head.out_dim": given("networks", "head", "out_dim"),
    "norm_last_layer": lambda r: not r["networks"]["head"]["learned_scale"],
    "temps.student": given("objective", "student_temperature"),
    "temps.teacher": at("objective", "teacher_temperature"),
    "temps.teacher_warmup": at("objective", "teacher_temperature", end="start"),
    "temps.teacher_warmup_epochs": warmup("objective", "teacher_temperature"),
    "temps.center_momentum": given("objective", "center_momentum"),
    "optim.weight_decay": at("optimizer", "weight_decay"),
    "optim.weight_decay_end": at("optimizer", "weight_decay", end="end"),
    "optim.clip_kind": lambda r: {"leaf": "per-parameter norm"}[r["optimizer"]["clip_over"]],
    "optim.freeze_last_layer_epochs": frozen("freeze_epochs"),
    "ema.start": given("objective", "teacher_momentum", "base"),
    "ema.end": given("objective", "teacher_momentum", "end"),
    "ema.schedule": given("objective", "teacher_momentum", "name"),
    "aug.interpolation": op("random_resized_crop", "interpolation", field="global"),
    "aug.hflip_p": op("flip", "probability", field="global"),
    **{
        f"aug.color_jitter.{key}": op("color_jitter", key, field="global")
        for key in ("brightness", "contrast", "saturation", "hue")
    },
    "aug.color_jitter.p": op("color_jitter", "probability", field="global"),
    "aug.grayscale_p": op("grayscale", "probability", field="global"),
    "aug.gaussian_blur.p_global1": probability("gaussian_blur", "global", view=0),
    "aug.gaussian_blur.p_global2": probability("gaussian_blur", "global", view=1),
    "aug.gaussian_blur.p_local": probability("gaussian_blur", "local"),
    "aug.gaussian_blur.sigma": op("gaussian_blur", "sigma", field="global"),
    "aug.solarize.p_global2": probability("solarize", "global", view=1),
    "aug.normalize.mean": op("normalize", "mean", field="global"),
    "aug.normalize.std": op("normalize", "std", field="global"),
}
