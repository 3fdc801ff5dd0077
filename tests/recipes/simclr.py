"""SimCLR's facts: Chen et al., 2020."""

STAGES = {("simclr", "resnet50", "pretrain_1000ep_v1"): "configs/contrastive/simclr_r50_in1k.py"}
