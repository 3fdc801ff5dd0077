"""LiT's facts: Zhai et al., 2021, and big_vision's example."""

from tests.recipe_facts import given, network

LIT = "configs/image_text/siglit_vit.py"
STAGES = {
    ("lit", "l16l", "public_cc12m_yfcc"): f"{LIT}:lit_l16l",
    ("lit", "b16b_2", "public_cc12m_yfcc"): f"{LIT}:lit_b16b2",
    ("lit", "b16b", "coco_sigmoid_example"): f"{LIT}:coco",
}
PROSE = {"text", "note"}
COMPARED = 2  # of the public runs


def _embed(recipe):
    """The words of B16B_2's fact, or the width in common."""
    width = recipe["networks"]["text_encoder"]["projection"]
    alone = network("encoder", "dim")(recipe) == 768 and recipe["networks"]["encoder"]["projection"] is None
    return f"text {width}, no image head" if alone else width


def _image(recipe):
    return "AugReg ViT-{variant}".format(**recipe["networks"]["encoder"])


def _warmup(recipe):
    floor = max(round(0.03 * recipe["total_steps"]), 100)
    return "max(3%,100 steps)" if recipe["schedule"]["warmup_steps"] == floor else None


def _frozen(recipe):
    still = [group["match"] for group in recipe["optimizer"]["groups"] if group.get("lr_scale") == 0]
    return "image tower" if recipe["objective"]["freeze_encoder"] and still == ["^encoder/"] else None


READERS = {
    "image": _image,
    "tokens": given("networks", "text_encoder", "length"),
    "image_size": lambda r: r["views"]["image"]["ops"][0]["size"],
    "embed": _embed,
    "steps": given("total_steps"),
    "optim.name": lambda r: {"adamw": "adam"}[r["optimizer"]["name"]],
    "optim.weight_decay": lambda r: r["optimizer"]["weight_decay"] * r["schedule"]["base"],  # big_vision's form
    "schedule.steps": given("total_steps"),
    "schedule.warmup": _warmup,
    "frozen": _frozen,
    "temperature_init": given("objective", "initial_scale"),
    "bias_init": given("objective", "initial_bias"),
}
