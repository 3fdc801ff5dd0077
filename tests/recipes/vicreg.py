"""VICReg's facts: Bardes et al., 2021."""

import importlib.util
import pathlib

from tests.recipe_facts import given, scaled

_spec = importlib.util.spec_from_file_location("barlow_twins", pathlib.Path(__file__).with_name("barlow_twins.py"))
_barlow_twins = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_barlow_twins)

RECIPE = "configs/redundancy/vicreg_r50_in1k.py"
STAGES = {
    ("vicreg", "resnet50", "pretrain_1000ep"): RECIPE,
    ("vicreg", "resnet50", "pretrain_100ep"): f"{RECIPE}:100",
    ("vicreg", "eval", "linear"): f"{RECIPE}:linear",
}
COMPARED = 3  # of the 100 epochs only what differs is told
READERS = {
    **_barlow_twins.TWO_VIEWS,
    "coeffs.sim": given("objective", "invariance_weight"),
    "coeffs.std": given("objective", "variance_weight"),
    "coeffs.cov": given("objective", "covariance_weight"),
    "base_lr": scaled(256),
    "lr_head": given("schedule", "base"),
    "weight_decay": given("optimizer", "weight_decay"),
}
