"""The facts of function matching: Beyer et al., 2021."""

STAGES = {("bit", "r50x1_distilled", "distill_function_matching"): "configs/supervised/bit_r50x1_distilled.py"}
COMPARED = 8
READERS = {
    "teacher": lambda r: f"BiT-M-{r['networks']['teacher']['variant']}",
    "optim.name": lambda r: r["optimizer"]["name"].removesuffix("w"),  # its decay is beside the gradient too
    "optim.wd_bigvision": lambda r: r["optimizer"]["weight_decay"] * r["schedule"]["base"],
    "schedule.warmup_steps": lambda r: r["schedule"]["warmup_steps"],
    "mixup_p": lambda r: r["mix"]["mixup"] if not r["mix"]["cutmix"] else None,
    "distance": lambda r: f"KL, T={r['objective']['temperature']:g}" if not r["objective"]["hard"] else "hard",
}
