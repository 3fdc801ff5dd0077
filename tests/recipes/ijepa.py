"""I-JEPA's facts: Assran et al., 2023."""

from tests.recipe_facts import given, network, op, ops

IJEPA = "configs/masked/ijepa_vit_h14_in1k.py"
STAGES = {
    ("ijepa", "vit_h14", "pretrain"): IJEPA,
    ("ijepa", "vit_h16_448", "pretrain"): f"{IJEPA}:h16_448",
    ("ijepa", "vit_h14_in22k", "pretrain"): f"{IJEPA}:h14_in22k",
    ("ijepa", "vit_g16_in22k", "pretrain"): f"{IJEPA}:g16_in22k",
    ("ijepa", "vit_b16", "pretrain_600ep"): f"{IJEPA}:b16",
    ("ijepa", "vit_l16", "pretrain_600ep"): f"{IJEPA}:l16",
}
PROSE = {
    "note",
    "schedule.ipe_scale",  # the schedules are as long as the run
    "mask.context_blocks", "mask.context_aspect",  # the method has one context, cut from a square
}  # fmt: skip
COMPARED = 8  # of B/16 and L/16


def _used(name):
    """Reads whether there is such an operation."""
    return lambda recipe: bool(ops(recipe, name))


READERS = {
    "arch.mlp_ratio": lambda r: network("encoder", "mlp_dim")(r) / network("encoder", "dim")(r),
    "predictor.dim": given("networks", "predictor", "width"),
    "predictor.depth": given("networks", "predictor", "depth"),
    "predictor.heads": given("networks", "predictor", "heads"),
    "image_size": op("random_resized_crop", "size"),
    "dataset": lambda r: {"imagenet2012": "ImageNet-1k", "imagenet21k": "ImageNet-22k"}[r["data"]["dataset"]],
    "schedule.epochs": given("total_epochs"),
    "schedule.final_lr": given("schedule", "end"),
    "mask.context_scale": given("objective", "context_scale"),
    "mask.target_blocks": given("objective", "num_targets"),
    "mask.target_scale": given("objective", "target_scale"),
    "mask.target_aspect": given("objective", "target_aspect_ratio"),
    "mask.allow_overlap": given("objective", "allow_overlap"),
    "mask.min_keep": given("objective", "min_context"),
    "optim.start_lr": given("schedule", "start"),
    "optim.weight_decay": given("optimizer", "weight_decay", "base"),
    "optim.weight_decay_end": given("optimizer", "weight_decay", "end"),
    "ema.start": given("objective", "momentum", "base"),
    "ema.end": given("objective", "momentum", "end"),
    "ema.schedule": given("objective", "momentum", "name"),
    "data.rrc_scale": op("random_resized_crop", "scale"),
    "data.hflip": _used("flip"),
    "data.color": _used("color_jitter"),
    "data.blur": _used("gaussian_blur"),
    "pos_embed": lambda r: {"sincos2d": "fixed 2D sin-cos"}[r["networks"]["encoder"]["positions"]],
    "cls_token": given("networks", "encoder", "class_token"),
    "init": lambda r: "trunc_normal std {init_std}".format(**r["networks"]["encoder"]),
}
