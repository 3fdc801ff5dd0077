"""Facts of data2vec 2.0: Baevski et al., 2022."""

from tests.recipe_facts import given

DATA2VEC2 = "configs/masked/data2vec2_vit_b16_in1k.py"
STAGES = {
    ("data2vec2", "vit_b16", "pretrain"): DATA2VEC2,
    ("data2vec2", "vit_l16", "pretrain"): f"{DATA2VEC2}:vit_l16",
    ("data2vec2", "vit_h14", "pretrain"): f"{DATA2VEC2}:vit_h14",
    ("data2vec2", "vit_b16", "finetune_1k"): f"{DATA2VEC2}:finetune",
    ("data2vec2", "vit_l16", "finetune_1k"): f"{DATA2VEC2}:vit_l16_finetune",
}
PROSE = {"mask.inverse"}
COMPARED = 7  # the fine-tuning of ViT-L

READERS = {
    "average_top_k": given("objective", "average_top_k"),
    "schedule.steps": given("total_steps"),
    "schedule.warmup_steps": given("schedule", "warmup_steps"),
    "steps": given("total_steps"),
    "warmup_steps": given("schedule", "warmup_steps"),
    "min_lr": given("schedule", "end"),
    "ema.start": given("objective", "momentum", "start"),
    "ema.end": given("objective", "momentum", "base"),
    "ema.anneal_steps": given("objective", "momentum", "warmup_steps"),
    "decoder.groups": given("networks", "decoder", "groups"),
    "decoder.kernel": given("networks", "decoder", "kernel_size"),
    "decoder.layers": given("networks", "decoder", "depth"),
    "optim.name": lambda r: r["optimizer"]["name"].removesuffix("w"),  # fairseq's Adam decouples the decay too
    "mask.block": given("objective", "block_size"),
    "mask.noise_std": given("objective", "mask_noise"),
    "mask.prob": given("objective", "mask_ratio"),
    "mask.adjust": given("objective", "block_adjust"),
    "clones": given("objective", "num_masks"),
    "cls_loss": given("objective", "class_weight"),
    "mixup": given("mix", "mixup"),
    "mixup_prob": given("mix", "probability"),
    "cutmix": given("mix", "cutmix"),
    "label_smoothing": given("mix", "label_smoothing"),
}
