"""BYOL's facts: Grill et al., 2020."""

from tests.recipe_facts import given, op, ops

BYOL = "configs/self_distillation/byol_r50_in1k.py"
STAGES = {
    ("byol", "resnet50", "pretrain_40ep"): f"{BYOL}:40",
    ("byol", "resnet50", "pretrain_100ep"): f"{BYOL}:100",
    ("byol", "resnet50", "pretrain_300ep"): f"{BYOL}:300",
    ("byol", "resnet50", "pretrain_1000ep"): BYOL,
    ("byol", "eval", "linear"): f"{BYOL}:linear_probe",
}
PROSE = {"optim.no_adaptation", "bn.cross_replica"}
COMPARED = 7  # the linear probe's


def described(role):
    """Reads an MLP layer by layer, in the words of the facts."""

    def read(recipe):
        head = recipe["networks"][role]
        norm = ["BN"] if head["hidden_norm"] else []
        hidden = [f"linear {head['hidden_dim']}", *norm, "ReLU"] * (head["num_layers"] - 1)
        last = [f"linear {head['out_dim']}"] + ([] if head["last_norm"] == "none" else ["BN"])
        return " + ".join([*hidden, *last])

    return read


def of_both_views(name, key, default):
    """Reads a keyword of an operation in each view; `default` where a view has no such operation."""
    return lambda r: [found[0][key] if (found := ops(r, name, view=v)) else default for v in (0, 1)]


def _kernel(recipe):
    ratios = {op["kernel_ratio"] for v in (0, 1) for op in ops(recipe, "gaussian_blur", view=v)}
    return " and ".join(f"image_size/{1 / ratio:.0f}" for ratio in ratios)


READERS = {
    "optim.eta": given("optimizer", "trust_coefficient"),
    "schedule.epochs": given("total_epochs"),
    "schedule": given("schedule", "name"),
    "warmup": lambda r: r["schedule"].get("warmup_epochs") or 0,
    "ema.start": given("objective", "target_momentum", "base"),
    "ema.end": given("objective", "target_momentum", "end"),
    "ema.schedule": given("objective", "target_momentum", "name"),
    "heads.projector": described("projector"),
    "heads.predictor": described("predictor"),
    **{f"aug.color.{key}": op("color_jitter", key) for key in ("brightness", "contrast", "saturation", "hue")},
    "aug.color.p": op("color_jitter", "probability"),
    "aug.color.shuffle": op("color_jitter", "random_order"),
    "aug.blur_p": of_both_views("gaussian_blur", "probability", 0.0),
    "aug.blur_kernel": _kernel,
    "aug.sigma": op("gaussian_blur", "sigma"),
    "aug.solarize_p": of_both_views("solarize", "probability", 0.0),
    "aug.solarize_threshold": op("solarize", "threshold", view=1),
}
