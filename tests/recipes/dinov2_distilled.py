"""The facts of DINOv2's models distilled from the ViT-g/14."""

from tests.recipes.dinov2 import FIELDS

DISTILLED = "configs/self_distillation/dinov2_distilled_lvd142m.py"
STAGES = {("dinov2", f"vit_{size}", "distill_from_g14"): f"{DISTILLED}:{size}" for size in ("s14", "b14", "l14")}
PROSE = {"keep"}  # the student's average: tests/objectives/test_dinov2.py
COMPARED = 12


def teacher(recipe):
    """In the words of the facts, where it is filled from a file."""
    spec = recipe["networks"]["teacher"]
    return f"frozen ViT-{spec['variant'].replace('g-dinov2', 'g')}" if spec["weights"] else "a random one"


READERS = FIELDS | {"teacher": teacher}
