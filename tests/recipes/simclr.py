"""SimCLR's facts: Chen et al., 2020, the paper's recipe and version 2."""

SIMCLR = "configs/contrastive/simclr_r50_in1k.py"
STAGES = {
    ("simclr", "resnet50", "pretrain_1000ep_v1"): SIMCLR,
    ("simclr", "resnet_v2_family", "pretrain_v2"): f"{SIMCLR}:v2",
}
COMPARED = 1  # of version 2
