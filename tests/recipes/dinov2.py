"""DINOv2's facts: Oquab et al., 2023. Those of DINOv3 are read in the same way."""

import math

from configs.self_distillation import dinov2_vit_g14_lvd142m, dinov2_vit_l16_in1k, dinov3_vit_7b16_lvd1689m
from vfm_jax.models import MODELS
from vfm_jax.optim.groups import leaf_settings
from vfm_jax.train.stages import read_stages

SHORT = "configs/self_distillation/dinov2_vit_l16_in1k.py"
LONG = "configs/self_distillation/dinov2_vit_g14_lvd142m.py"
STAGES = {
    ("dinov2", "vit_l16", "pretrain_in1k_short"): SHORT,
    ("dinov2", "vit_l14", "pretrain_in22k"): f"{LONG}:vit_l14_in22k",
    ("dinov2", "vit_g14", "pretrain_lvd142m"): LONG,
}
PROSE = {
    *(f"aug.gaussian_blur_nominal.{crop}" for crop in ("global1", "global2", "local")),
    "dino.koleo_scope", "ibot.mask_sampling", "init.pos_embed", "lr_paper", "temps.shape",
}  # fmt: skip


def stage_of(recipe, name=None):
    """One stage's recipe; the first without a name."""
    stages = {stage.name: stage.recipe for stage in read_stages(recipe)}
    return stages[name] if name else next(iter(stages.values()))


def epoch(recipe):
    """Steps that the authors call an epoch."""
    seven = "7B" in recipe["networks"]["encoder"]["variant"]
    short = dinov2_vit_l16_in1k if "L/16" in recipe["networks"]["encoder"]["variant"] else dinov2_vit_g14_lvd142m
    return (dinov3_vit_7b16_lvd1689m if seven else short).EPOCH


def encoder(recipe):
    """The network itself."""
    fields = dict(recipe["networks"]["encoder"])
    return MODELS[fields.pop("name")](**fields)


def of_encoder(field):
    return lambda recipe: getattr(encoder(recipe), field)


def of_head(role, field):
    return lambda recipe: recipe["networks"][role][field]


def of_objective(field):
    return lambda recipe: recipe["objective"][field]


def op(field, name, part=0, what=None):
    """A field of an operation of some views; 0.0 where there is no such operation."""

    def read(recipe):
        views = recipe["views"][field]
        ops = (views if "ops" in views else views[part])["ops"]
        found = [one for one in ops if one["name"] == name]
        return found[0][what or "probability"] if found else 0.0

    return read


def count(field):
    def read(recipe):
        views = recipe["views"][field]
        return views["num_views"] if "ops" in views else len(views)

    return read


def value(field, at):
    """A setting that may be a schedule, at its "start", "base" or "end"."""

    def read(recipe):
        spec = recipe["objective"][field]
        if not hasattr(spec, "keys"):
            return spec
        return spec.get(at, spec["base"]) if at == "end" else spec.get(at, 0.0)

    return read


def kind(field):
    return lambda recipe: spec["name"] if hasattr(spec := recipe["objective"][field], "keys") else "constant"


def decay(at):
    def read(recipe):
        spec = recipe["optimizer"]["weight_decay"]
        return spec[at] if hasattr(spec, "keys") else spec

    return read


def group(part, field):
    """A field of the first group whose pattern speaks of that part of the networks."""
    return lambda recipe: next(g[field] for g in recipe["optimizer"]["groups"] if part in g["match"])


def mlp_dim(recipe):
    """SwiGLU's is two thirds of it, to the next multiple of 8."""
    built = encoder(recipe)
    if built.mlp == "mlp":
        return built.sizes[2]
    assert built.sizes[2] == 8 * math.ceil(4 * built.sizes[0] * 2 / 3 / 8)
    return 4 * built.sizes[0]


def centering(recipe):
    if recipe["objective"].get("assignment") == "center":
        return f"centering (momentum {recipe['objective']['center_momentum']})"
    iterations = recipe["objective"]["sinkhorn_iterations"]
    return f"sinkhorn_knopp, {iterations} iterations" if recipe["objective"]["name"] == "dinov2" else "sinkhorn_knopp"


def rate(recipe):
    return max(recipe["schedule"]["base"], recipe["schedule"].get("end") or 0.0)


def no_decay(recipe):
    """What the groups without decay are for, in the words of the facts."""
    words = {"bias": "biases", "norm1/scale": "norm params", "layer_scale1/gamma": "layerscale gamma"}
    shapes = {"encoder": {"transformer": {"block_0": {}}, "patch_embedding": {"kernel": 0, "bias": 0}}}
    block = shapes["encoder"]["transformer"]["block_0"]
    block |= {"norm1": {"scale": 0}, "layer_scale1": {"gamma": 0}, "mlp": {"kernel": 0, "bias": 0}}
    shapes["head"] = {"prototypes": {"kernel": 0}}
    settings = leaf_settings(shapes, recipe["optimizer"]["groups"], weight_decay=0.04, path="")
    still = [name for name, setting in settings.items() if not setting.weight_decay]
    assert not any(name.endswith("kernel") for name in still)
    return [word for end, word in words.items() if any(name.endswith(end) for name in still)]


def rounded(number, digits):
    return float(f"{number:.{digits}g}")


FIELDS = {
    "arch.mlp_dim": mlp_dim,
    "arch.mlp_ratio": lambda r: mlp_dim(r) / encoder(r).sizes[0],
    "arch.ffn": of_encoder("mlp"),
    "arch.qkv_bias": of_encoder("qkv_bias"),
    "arch.layerscale": of_encoder("layer_scale"),
    "arch.registers": of_encoder("registers"),
    "init.layerscale": of_encoder("layer_scale"),
    **{
        f"heads.{name}.{fact}": of_head(role, field)
        for name, role in (("dino", "head"), ("ibot", "patch_head"))
        for fact, field in (
            ("prototypes", "out_dim"), ("bottleneck", "bottleneck_dim"), ("hidden", "hidden_dim"),
            ("layers", "num_layers"),
        )
    },
    "heads.ibot": lambda r: "separate" if "patch_head" in r["networks"] else "shared",
    "heads.ibot.separate": lambda r: "patch_head" in r["networks"],
    "centering": centering,
    "optim.base_lr": lambda r: rate(r) / math.sqrt(r["data"]["batch_size"] / 1024),
    "optim.lr_abs": lambda r: rounded(rate(r), 4),
    "optim.weight_decay": decay("base"),
    "optim.weight_decay_end": decay("end"),
    "optim.patch_embed_lr_mult": group("patch_embedding", "lr_scale"),
    "optim.freeze_last_layer_epochs": lambda r: group("prototypes", "freeze_steps")(r) / epoch(r),
    "schedule.epoch_length": epoch,
    "schedule.epochs": lambda r: r["total_steps"] / epoch(r),
    "schedule.steps": lambda r: r["total_steps"],
    "schedule.warmup_steps": lambda r: r["schedule"]["warmup_steps"],
    "schedule.warmup_epochs": lambda r: r["schedule"]["warmup_steps"] / epoch(r),
    "batch_per_gpu": of_objective("koleo_group_size"),  # KoLeo looks for neighbours among these
    "ema.start": value("teacher_momentum", "base"),
    "ema.end": value("teacher_momentum", "end"),
    "ema.schedule": kind("teacher_momentum"),
    "drop_path_shape": lambda r: {"constant": "uniform"}[encoder(r).drop_path_shape],
    "ibot.loss_weight": of_objective("ibot_weight"),
    "ibot.mask_sample_probability": of_objective("masked_crops"),
    "ibot.mask_ratio": of_objective("mask_ratio"),
    "ibot.student_temp": of_objective("student_temperature"),
    "dino.loss_weight": of_objective("dino_weight"),
    "dino.student_temp": of_objective("student_temperature"),
    "dino.koleo_weight": of_objective("koleo_weight"),
    "temps.teacher_warmup": value("teacher_temperature", "start"),
    "temps.teacher": value("teacher_temperature", "base"),
    "temps.warmup_epochs": lambda r: r["objective"]["teacher_temperature"]["warmup_steps"] / epoch(r),
    **{
        f"{crops}.{fact}": read
        for crops in ("crops", "crops_common")
        for fact, read in (
            ("global_n", count("global")), ("local_n", count("local")), ("hflip_p", op("local", "flip")),
            ("global_size", op("global", "random_resized_crop", what="size")),
            ("local_size", op("local", "random_resized_crop", what="size")),
            ("global_scale", op("global", "random_resized_crop", what="scale")),
            ("local_scale", op("local", "random_resized_crop", what="scale")),
            ("interpolation", op("local", "random_resized_crop", what="interpolation")),
        )
    },
    "aug.hflip_p": op("local", "flip"),
    "aug.color_jitter.p": op("global", "color_jitter"),
    **{
        f"aug.color_jitter.{field}": op("local", "color_jitter", what=field)
        for field in ("brightness", "contrast", "saturation", "hue")
    },
    "aug.grayscale_p": op("global", "grayscale"),
    "aug.gaussian_blur_effective.global1": op("global", "gaussian_blur", 0),
    "aug.gaussian_blur_effective.global2": op("global", "gaussian_blur", 1),
    "aug.gaussian_blur_effective.local": op("local", "gaussian_blur"),
    "aug.blur.kernel": op("local", "gaussian_blur", what="kernel_size"),
    "aug.blur.sigma": op("local", "gaussian_blur", what="sigma"),
    "aug.solarize.p_global2": op("global", "solarize", 1),
    "aug.solarize.threshold": lambda r: op("global", "solarize", 1, "threshold")(r) * 256,
    "no_wd": no_decay,
}  # fmt: skip


def readers(stage=None):
    """Readers of one stage of a recipe."""
    return {path: lambda recipe, read=read: read(stage_of(recipe, stage)) for path, read in FIELDS.items()}


READERS = readers()
