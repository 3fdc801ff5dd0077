"""MLP-Mixer files of timm and big_vision."""

from collections.abc import Mapping
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.models.mixer import SIZES, Mixer
from vfm_jax.weights.convolutions import (
    conv_rules,
    foreign_of,
    refuse,
    timm_arguments,
    timm_config,
    timm_image_size,
    timm_options,
)
from vfm_jax.weights.family import HALF, Config, Family
from vfm_jax.weights.rules import Bundle, Rule, Shapes
from vfm_jax.weights.vit import count_blocks, dense_rules, head_rules, linear_head, norm_rules, square_grid
from vfm_jax.weights.vit_hf import num_classes_of


def _mixer(bundle: Bundle) -> Mixer:
    return Mixer(**{key: value for key, value in bundle.networks["encoder"].items() if key != "name"})


def _encoder(width: int, depth: int, token_dim: int, channel_dim: int, patch_size: int) -> dict[str, Any]:
    sizes = (width, depth, token_dim, channel_dim)
    for variant, row in SIZES.items():
        if row == sizes:
            return {"name": "mixer", "variant": f"{variant}/{patch_size}"}
    fields = dict(zip(("width", "depth", "token_dim", "channel_dim"), sizes, strict=True))
    return {"name": "mixer", "variant": f"S/{patch_size}", **fields}


def _image_size(config: Config | None, given: Mapping[str, Any], tokens: int, patch_size: int) -> tuple[int, int]:
    """What is said where it fits the tokens, otherwise a square."""
    height, width = timm_image_size(config, given)
    if (height // patch_size) * (width // patch_size) == tokens:
        return height, width
    rows, columns = square_grid(tokens, "This MLP-Mixer")
    return rows * patch_size, columns * patch_size


# -------------------------------------------------------------------------------------------------------------- timm


def _matches_timm(config: Config | None, shapes: Shapes) -> bool:
    return foreign_of(config) and "blocks.0.mlp_tokens.fc1.weight" in shapes


def _read_timm(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    if (
        "blocks.0.mlp_tokens.norm.weight" in shapes
        or shapes["blocks.0.mlp_tokens.fc2.weight"][::-1] != (shapes["blocks.0.mlp_tokens.fc1.weight"])
    ):
        raise UserError("This relative of MLP-Mixer has gated MLPs, which are not known here.")
    token_dim, tokens = shapes["blocks.0.mlp_tokens.fc1.weight"]
    channel_dim, width = shapes["blocks.0.mlp_channels.fc1.weight"]
    _, channels, patch_size, _ = shapes["stem.proj.weight"]
    depth = count_blocks(shapes, "blocks.{i}.norm1.weight")
    encoder = _encoder(width, depth, token_dim, channel_dim, patch_size)
    encoder["activation"] = timm_arguments(config).get("act_layer", "gelu")
    networks: dict[str, Any] = {"encoder": encoder}
    classes = num_classes_of(shapes, "head")
    if classes is not None:
        networks["head"] = linear_head(classes)
    image_size = _image_size(config, given, tokens, patch_size)
    return Bundle(networks, image_size, channels, timm_options(config, r"mixer_[sbl](16|32)_224"))


def _timm_rules(bundle: Bundle) -> list[Rule]:
    rules = conv_rules("encoder/patch_embedding", "stem.proj", bias=True)
    for i in range(_mixer(bundle).sizes[1]):
        leaf, block = f"encoder/block_{i}", f"blocks.{i}"
        for norm, mixing, mlp in (
            ("norm1", "token_mixing", "mlp_tokens"),
            ("norm2", "channel_mixing", "mlp_channels"),
        ):
            rules += norm_rules(f"{leaf}/{norm}", f"{block}.{norm}")
            rules += dense_rules(f"{leaf}/{mixing}/up", f"{block}.{mlp}.fc1")
            rules += dense_rules(f"{leaf}/{mixing}/down", f"{block}.{mlp}.fc2")
    return rules + norm_rules("encoder/norm", "norm") + head_rules(bundle, {"head": "head"})


def _timm_config(bundle: Bundle) -> dict[str, Any]:
    model, program = _mixer(bundle), "timm's MLP-Mixer"
    width, depth, token_dim, channel_dim = model.sizes
    name = next((n for n, row in SIZES.items() if n != "H" and row[:2] == (width, depth)), None)
    refuse(name is None or model.patch_size not in (16, 32), program, f"{depth} blocks of width {width}")
    refuse(model.activation != "gelu", program, f"the activation {model.activation!r}")
    refuse(model.norm_epsilon != 1e-6, program, f"a norm_epsilon of {model.norm_epsilon}")
    arguments = {"img_size": list(bundle.image_size), "mlp_ratio": [token_dim / width, channel_dim / width]}
    return timm_config(bundle, f"mixer_{str(name).lower()}{model.patch_size}_224", width, arguments)


# -------------------------------------------------------------------------------------------------------- big_vision


def _prefix(shapes: Shapes) -> str | None:
    known = "MixerBlock_0/token_mixing/Dense_0/kernel"
    return next((name.removesuffix(known) for name in shapes if name.endswith(known)), None)


def _read_npz(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    prefix = _prefix(shapes) or ""
    tokens, token_dim = shapes[f"{prefix}MixerBlock_0/token_mixing/Dense_0/kernel"]
    width, channel_dim = shapes[f"{prefix}MixerBlock_0/channel_mixing/Dense_0/kernel"]
    patch_size, _, channels, _ = shapes[f"{prefix}stem/kernel"]
    depth = count_blocks(shapes, prefix + "MixerBlock_{i}/LayerNorm_0/scale")
    networks: dict[str, Any] = {"encoder": _encoder(width, depth, token_dim, channel_dim, patch_size)}
    if f"{prefix}head/kernel" in shapes:
        networks["head"] = linear_head(shapes[f"{prefix}head/kernel"][1])
    return Bundle(networks, _image_size(config, given, tokens, patch_size), channels, {"prefix": prefix})


def _npz_rules(bundle: Bundle) -> list[Rule]:
    prefix = bundle.options.get("prefix", "")

    def same(leaf: str, module: str, parts: tuple[str, str]) -> list[Rule]:
        return [Rule(f"{leaf}/{part}", (f"{prefix}{module}/{part}",)) for part in parts]

    dense, norm = ("kernel", "bias"), ("scale", "bias")
    rules = same("encoder/patch_embedding", "stem", dense)
    for i in range(_mixer(bundle).sizes[1]):
        leaf, block = f"encoder/block_{i}", f"MixerBlock_{i}"
        for k, mixing in enumerate(("token_mixing", "channel_mixing")):
            rules += same(f"{leaf}/norm{k + 1}", f"{block}/LayerNorm_{k}", norm)
            rules += same(f"{leaf}/{mixing}/up", f"{block}/{mixing}/Dense_0", dense)
            rules += same(f"{leaf}/{mixing}/down", f"{block}/{mixing}/Dense_1", dense)
    rules += same("encoder/norm", "pre_head_layer_norm", norm)
    return rules + (same("head/logits", "head", dense) if "head" in bundle.networks else [])


FAMILIES = (
    Family("timm/mixer", _matches_timm, _read_timm, _timm_rules, config=_timm_config, mean_std=HALF),
    Family(
        "big_vision/mixer",
        lambda config, shapes: _prefix(shapes) is not None,
        _read_npz,
        _npz_rules,
        mean_std=HALF,
    ),
)
