"""What is published of MAE's fine-tuning at 448 pixels: the architecture."""

from tests.recipes.mae import MAE

STAGES = {("mae", "vit_h14_448", "finetune_1k_448"): f"{MAE}:vit_h14_finetune_448"}
COMPARED = 5
