"""SimCLR's facts: the commands in the README of google-research/simclr, for ImageNet and CIFAR-10."""

from tests.recipe_facts import given, op, ops, scaled

IN1K, CIFAR10 = "configs/contrastive/simclr_r50_in1k.py", "configs/contrastive/simclr_r18_cifar10.py"
STAGES = {
    ("simclr", "resnet50", "pretrain_100ep_repo"): f"{IN1K}:100",
    ("simclr", "resnet18_cifar10", "pretrain_1000ep"): CIFAR10,
}
PROSE = {"note"}
COMPARED = 14


def _base_rate(recipe):
    """The rate by the rule of each command: √batch on ImageNet, batch / 256 on CIFAR-10."""
    if recipe["data"]["dataset"] == "cifar10":
        return scaled(256)(recipe)
    return recipe["schedule"]["base"] / recipe["data"]["batch_size"] ** 0.5


READERS = {
    "optim.base_lr": _base_rate,
    "image_size": op("random_resized_crop", "size"),
    "use_blur": lambda r: bool(ops(r, "gaussian_blur")),
    "color_jitter_strength": lambda r: ops(r, "color_jitter")[0]["brightness"] / 0.8,
    "linear_eval.optim": lambda r: {"sgd": "momentum"}[r["stages"][1]["optimizer"]["name"]],
    "linear_eval.lr": lambda r: r["stages"][1]["schedule"]["base"] * 256 / r["data"]["batch_size"],
    "linear_eval.weight_decay": lambda r: r["stages"][1]["optimizer"]["weight_decay"],
    "linear_eval.epochs": lambda r: r["stages"][1]["total_epochs"],
    "linear_eval.batch": given("data", "batch_size"),  # of both stages
    "linear_eval.warmup_epochs": lambda r: r["stages"][1]["schedule"]["warmup_epochs"],
}
