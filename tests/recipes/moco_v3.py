"""MoCo v3's facts: Chen et al., 2021."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.recipe_facts import given, op, ops
from vfm_jax.models import MODELS
from vfm_jax.nn.positions import SINCOS

VIT, R50 = "configs/contrastive/moco_v3_vit_in1k.py", "configs/contrastive/moco_v3_r50_in1k.py"
STAGES = {
    **{("moco_v3", size, "pretrain_300ep"): f"{VIT}:{size}" for size in ("vit_s16", "vit_b16")},
    ("moco_v3", "vit_s16", "linear_probe"): f"{VIT}:linear_probe",
    **{("moco_v3", "resnet50", f"pretrain_{n}ep"): f"{R50}:{n}" for n in (100, 300, 1000)},
}
PROSE = {"heads.sync_bn", "alt", "aug.view1.rrc_scale_min"}  # the first is so everywhere; the last is in crops.scale
COMPARED = 7  # the linear probe's


def _frozen(recipe):
    groups = recipe["optimizer"]["groups"]
    return any(group["match"] == "^encoder/patch_embedding/" and group["lr_scale"] == 0 for group in groups)


def _mlp(role):
    """Reads an MLP in the words of the facts, which differ between the two backbones."""

    def read(recipe):
        head, vit = recipe["networks"][role], recipe["networks"]["encoder"]["name"] == "vit"
        layers, hidden, out = head["num_layers"], head["hidden_dim"], head["out_dim"]
        plain = head["last_norm"] == "plain"
        if not vit:
            last = "last BN no affine" if plain else "no output BN"
            return f"{layers}-layer {hidden} -> {out}, {last}"
        if role == "projector":
            last = "BN after every layer, last BN without affine" if plain else "no output BN"
            offset = "with bias" if head["use_bias"] else "no bias"
            return f"{layers}-layer MLP {hidden} hidden -> {out}, {last}, {offset}"
        last = "BN incl. output BN without affine" if plain else "no output BN"
        return f"{layers}-layer MLP {hidden} -> {out}, {last}"

    return read


def _positions(recipe):
    return "fixed 2D sin-cos" if recipe["networks"]["encoder"]["positions"] in SINCOS else "learned"


def _query_key_value(recipe):
    """How far the first block's fresh kernel reaches, in units of the bound of one square matrix."""
    spec = dict(recipe["networks"]["encoder"], depth=1)
    encoder = MODELS[spec.pop("name")](**spec)
    params = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.float32))["params"]
    kernel = params["transformer"]["block_0"]["attention"]["qkv"]["kernel"]
    bound = np.sqrt(6 / (2 * kernel.shape[0]))
    separate = np.isclose(np.abs(kernel).max() / bound, 1, atol=0.01)
    return "xavier uniform treating q,k,v separately" if separate else "xavier uniform"


def augmented(recipe):
    """The augmentation of a linear probe, in the words of the facts."""
    crop, *others = recipe["views"]["image"]["ops"]
    names = {"random_resized_crop": "RandomResizedCrop", "flip": "hflip"}
    words = [f"{names[crop['name']]} {crop['size']}", *(names[o["name"]] for o in others if o["name"] in names)]
    return " + ".join(words)


JITTER = {"b": "brightness", "c": "contrast", "s": "saturation", "h": "hue", "p": "probability"}
READERS = {
    "schedule": given("schedule", "name"),
    "schedule.epochs": given("total_epochs"),
    "data": augmented,
    "ema.start": given("objective", "target_momentum", "base"),
    "ema.end": given("objective", "target_momentum", "end"),
    "ema.schedule": given("objective", "target_momentum", "name"),
    "heads.projector": _mlp("projector"),
    "heads.predictor": _mlp("predictor"),
    "stop_grad_conv1": _frozen,
    "pos_embed": _positions,
    "init.qkv": _query_key_value,
    "crops.n": lambda r: len(r["views"]["image"]),
    "crops.size": op("random_resized_crop", "size"),
    "crops.scale": op("random_resized_crop", "scale"),
    "crops.interpolation": op("random_resized_crop", "interpolation"),
    **{f"aug.view1.color_jitter.{letter}": op("color_jitter", word) for letter, word in JITTER.items()},
    "aug.view1.grayscale_p": op("grayscale", "probability"),
    "aug.view1.hflip_p": op("flip", "probability"),
    "aug.view1.blur_p": op("gaussian_blur", "probability"),
    "aug.view1.solarize_p": lambda r: sum(o["probability"] for o in ops(r, "solarize")),
    "aug.view2.blur_p": op("gaussian_blur", "probability", view=1),
    "aug.view2.solarize_p": op("solarize", "probability", view=1),
    "aug.blur_sigma": op("gaussian_blur", "sigma"),
    "aug.normalize.mean": op("normalize", "mean"),
    "aug.normalize.std": op("normalize", "std"),
}
