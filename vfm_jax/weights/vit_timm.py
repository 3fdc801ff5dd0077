"""ViTs under timm's names, which most authors' own files share: blocks.0.attn.qkv.weight and so on."""

import math
import re
from collections.abc import Mapping
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.weights.family import Config, Family
from vfm_jax.weights.rules import Bundle, Rule, Shapes
from vfm_jax.weights.vit import HEADS_BY_WIDTH, count_blocks, head_rules, linear_head, variant_of, vit, vit_rules

NAMES = {
    "class_token": "cls_token",
    "distillation_token": "dist_token",
    "registers": "reg_token",
    "mask_token": "mask_token",
    "positions": "pos_embed",
    "patch_embedding": "patch_embed.proj",
    "norm1": "blocks.{i}.norm1",
    "qkv": "blocks.{i}.attn.qkv",
    "q_norm": "blocks.{i}.attn.q_norm",
    "k_norm": "blocks.{i}.attn.k_norm",
    "relative_positions": "blocks.{i}.attn.relative_position_bias_table",
    "out": "blocks.{i}.attn.proj",
    "scale1": "blocks.{i}.ls1.gamma",
    "norm2": "blocks.{i}.norm2",
    "up": "blocks.{i}.mlp.fc1",
    "down": "blocks.{i}.mlp.fc2",
    "scale2": "blocks.{i}.ls2.gamma",
    "norm": "norm",
    "pool_probe": "attn_pool.latent",
    "pool_query": "attn_pool.q",
    "pool_key_value": "attn_pool.kv",
    "pool_out": "attn_pool.proj",
    "pool_norm": "attn_pool.norm",
    "pool_up": "attn_pool.mlp.fc1",
    "pool_down": "attn_pool.mlp.fc2",
}

# What shapes cannot tell and a name can: models/vision_transformer.py of timm 1.0. SigLIP itself has the tanh form;
# timm gives most of its SigLIP models, which it calls ..._siglip_224 and so on, the exact one.
_SIGLIP = re.compile(r"_siglip_(gap_)?\d+")
_SIGLIP_TANH = re.compile(r"so400m_patch16|giantopt|base_patch32|large_patch16_siglip_(gap_)?512")
# What differs from `HEADS_BY_WIDTH`; and models of these names whose rotary positions or order of norms are not here.
_HEADS = {"_siglip": {1536: 16}, "dinov3": {1280: 20}, "aimv2": {1024: 8, 1536: 12, 2048: 16, 3072: 24}}
_HEADS |= {"vit_base_patch16_gap_224": {768: 16}}
_OTHERS = re.compile(r"rope|vit_pe_|_rpn|eva02")
_POOLING = {"token": "class", "avg": "mean", "map": "attention"}
_THEIR_POOLING = {ours: theirs for theirs, ours in _POOLING.items()}


def is_timm_vit(shapes: Shapes) -> bool:
    """Whether a ViT's blocks bear timm's names."""
    return (
        "patch_embed.proj.weight" in shapes
        and "blocks.0.norm1.weight" in shapes
        and ("blocks.0.attn.qkv.weight" in shapes)
    )


def _table(
    shapes: Shapes, num_prefix: int, image_size: tuple[int, int] | None, patch_size: int
) -> tuple[int, tuple[int, int]]:
    """How many rows of the position table belong to prefix tokens, and the image that the others are for."""
    total = shapes["pos_embed"][1]
    tokens = ("cls_token" in shapes) + ("dist_token" in shapes)  # registers mostly have no positions
    candidates = sorted({num_prefix, tokens, 0}, reverse=True)
    for prefix in candidates:
        if image_size and (image_size[0] // patch_size) * (image_size[1] // patch_size) == total - prefix:
            return prefix, image_size
    for prefix in candidates:
        side = math.isqrt(total - prefix)
        if side * side == total - prefix:
            return prefix, (side * patch_size, side * patch_size)
    raise UserError(
        f"pos_embed has {total} positions, no square grid, with or without {num_prefix} for the first tokens. "
        "Say for which image it is: image_size=(height, width)."
    )


def heads_of(shapes: Shapes, width: int, given: Mapping[str, Any]) -> int:
    """Attention heads, which no tensor of a fused attention shows.

    Raises:
        UserError: the width is none of the usual ones, and nobody said.
    """
    if "blocks.0.attn.q_norm.weight" in shapes:
        return width // shapes["blocks.0.attn.q_norm.weight"][0]
    for table in ("blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"):
        if table in shapes:
            return shapes[table][1]
    heads = given.get("heads") or HEADS_BY_WIDTH.get(width)
    if not heads:
        raise UserError(
            f"The file does not say how many attention heads its {width} channels have. Say heads=N; "
            f"{max(1, width // 64)} would give heads of 64 channels."
        )
    return heads


def read_encoder(
    shapes: Shapes, given: Mapping[str, Any], image_size: tuple[int, int] | None
) -> tuple[dict[str, Any], tuple[int, int]]:
    """Every field of a `ViT` that the tensors under these names show, and the image size of its position table."""
    width, _, patch_size, _ = shapes["patch_embed.proj.weight"]
    depth = count_blocks(shapes, "blocks.{i}.norm1.weight")
    block = "blocks.0."
    gated = f"{block}mlp.fc1_g.weight" in shapes
    down = shapes[f"{block}mlp.fc2.weight"][1]
    up = shapes.get(f"{block}mlp.fc1.weight", (down,))[0]
    swiglu = gated or up == 2 * down
    tokens = {"class_token": "cls_token", "distillation_token": "dist_token", "mask_token": "mask_token"}
    spec: dict[str, Any] = {
        "name": "vit",
        **variant_of(width, depth, down, heads_of(shapes, width, given), patch_size),
        **{field: name in shapes for field, name in tokens.items()},
        "registers": shapes["reg_token"][1] if "reg_token" in shapes else 0,
        "patch_bias": "patch_embed.proj.bias" in shapes,
        "norm": "layer_norm" if f"{block}norm1.bias" in shapes else "rms_norm",
        "norm_epsilon": 1e-6,
        "qkv_bias": f"{block}attn.qkv.bias" in shapes or f"{block}attn.q_bias" in shapes,
        "key_bias": f"{block}attn.q_bias" not in shapes,
        "out_bias": f"{block}attn.proj.bias" in shapes,
        "qk_norm": f"{block}attn.q_norm.weight" in shapes,
        "mlp": "swiglu" if swiglu else "mlp",
        "mlp_bias": f"{block}mlp.fc2.bias" in shapes,
        "activation": "silu" if swiglu else "gelu",
        "position_resampling": "bicubic_antialias",
    }
    if "patch_embed.norm.weight" in shapes:
        spec |= {"norm_input": "patches", "norm_epsilon": 1e-5}
    if "norm_pre.weight" in shapes:
        spec |= {"norm_input": "tokens", "norm_epsilon": 1e-5}
    for scale in ("ls1.gamma", "gamma_1"):
        if block + scale in shapes:
            spec["layer_scale"] = given.get("layer_scale") or 1e-5
    if f"{block}attn.relative_position_bias_table" in shapes:
        spec["relative_positions"] = "block"
    elif "rel_pos_bias.relative_position_bias_table" in shapes:
        spec["relative_positions"] = "shared"
    if "pos_embed" in shapes:
        num_prefix = spec["class_token"] + spec["distillation_token"] + spec["registers"]
        spec["prefix_positions"], image_size = _table(shapes, num_prefix, image_size, patch_size)
        spec["positions"] = "learned"
    else:
        spec["positions"] = "none"
    return spec, image_size or (14 * patch_size, 14 * patch_size)


def _read(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    config = config or {}
    args, cfg = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    architecture = config.get("architecture", "")
    size = given.get("image_size") or args.get("img_size") or cfg.get("input_size", (0, 0, 0))[1:]
    size = (size, size) if isinstance(size, int) else tuple(size)
    if "dinov3" not in architecture and (other := _OTHERS.search(architecture)):
        raise UserError(f"{architecture} is a ViT of another kind ({other[0].strip('_')}), which is not known here.")
    width = shapes["patch_embed.proj.weight"][0]
    named = (heads[width] for part, heads in _HEADS.items() if part in architecture and width in heads)
    known = {"heads": args.get("num_heads") or next(named, None), "layer_scale": args.get("init_values")}
    known |= {name: value for name, value in given.items() if value is not None}
    spec, image_size = read_encoder(shapes, known, size if all(size) and size else None)
    eva = "blocks.0.gamma_1" in shapes and "blocks.0.attn.relative_position_bias_table" not in shapes
    if eva and "pos_embed" not in shapes and "rel_pos_bias.relative_position_bias_table" not in shapes:
        spec |= {"positions": "rope", "rope_base": float(args.get("rope_temperature", 100.0)), "norm_epsilon": 1e-5}
    spec |= _read_pooling(config, shapes, args)
    if spec["mlp"] == "mlp":
        spec["activation"] = given.get("activation") or _activation(architecture, args, spec["pooling"])
    networks: dict[str, Any] = {"encoder": spec}
    if "head.weight" in shapes:
        networks["head"] = linear_head(shapes["head.weight"][0])
    if "head_dist.weight" in shapes:
        networks["distillation_head"] = linear_head(shapes["head_dist.weight"][0])
    # Eva's names, though the model is the same
    assumed = () if known["heads"] else (f"{vit(spec).sizes[3]} attention heads (the usual for width {width})",)
    options = {"architecture": architecture, "eva": eva, "pretrained_cfg": cfg, "assumed": assumed}
    channels = shapes["patch_embed.proj.weight"][1]
    return Bundle(networks, image_size, channels, options)


def _activation(architecture: str, args: Mapping[str, Any], pooling: str) -> str:
    if args.get("act_layer") in ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu"):
        return args["act_layer"]
    if "quickgelu" in architecture:
        return "quick_gelu"
    if _SIGLIP.search(architecture):
        return "gelu_tanh" if _SIGLIP_TANH.search(architecture) else "gelu"
    of_timm = re.search(r"_\d{3}(_|$)", architecture)  # its names end in an image size
    return "gelu_tanh" if pooling == "attention" and not of_timm else "gelu"


def _read_pooling(config: Config, shapes: Shapes, args: Mapping[str, Any]) -> dict[str, Any]:
    named = args.get("global_pool") or config.get("global_pool")
    if named is None:
        named = "map" if "attn_pool.latent" in shapes else "token" if "cls_token" in shapes else "avg"
        named = "avg" if "fc_norm.weight" in shapes else named
    if named not in _POOLING:
        raise UserError(f"config.json: global_pool {named!r}; known here are {', '.join(_POOLING)}.")
    final = "norm.weight" in shapes
    pooled = "fc_norm.weight" in shapes
    if final and pooled:
        raise UserError("The file has both norm and fc_norm: two norms before the head, which is not known here.")
    return {"pooling": _POOLING[named], "norm_pooled": pooled, "final_norm": final or pooled}


def names_for(spec: Mapping[str, Any], *, eva: bool = False) -> dict[str, str]:
    """timm's names for a ViT of this kind."""
    model = vit(spec)
    names = dict(NAMES)
    if model.norm_pooled:
        names["norm"] = "fc_norm"
    names["norm_input"] = "patch_embed.norm" if model.norm_input == "patches" else "norm_pre"
    if eva or model.relative_positions != "none":
        names |= {"scale1": "blocks.{i}.gamma_1", "scale2": "blocks.{i}.gamma_2"}
    if model.relative_positions == "shared":
        names["relative_positions"] = "rel_pos_bias.relative_position_bias_table"
    if not model.key_bias:
        names |= {"query_bias": "blocks.{i}.attn.q_bias", "value_bias": "blocks.{i}.attn.v_bias", "key_bias": ""}
    if model.mlp == "swiglu":
        if eva or model.norm == "rms_norm":
            names |= {"gate": "blocks.{i}.mlp.fc1_g", "up": "blocks.{i}.mlp.fc1_x"}
        else:
            names["gate_up"] = "blocks.{i}.mlp.fc1"
    return names


def _rules(bundle: Bundle) -> list[Rule]:
    encoder = bundle.networks["encoder"]
    eva = bundle.options.get("eva", encoder.get("positions") == "rope")
    rules = vit_rules(encoder, names_for(encoder, eva=eva), bundle.image_size)
    return rules + head_rules(bundle, {"head": "head", "distillation_head": "head_dist"})


def _config(bundle: Bundle) -> dict[str, Any]:
    model = vit(bundle.networks["encoder"])
    prefix = model.class_token + model.distillation_token + model.registers
    if model.prefix_positions not in (0, prefix):
        raise UserError(
            f"timm has positions for all {prefix} first tokens or for none, not for {model.prefix_positions}."
        )
    if model.mask_token:
        raise UserError("timm's ViT has no mask token.")
    if model.distillation_token and not model.prefix_positions:
        raise UserError("timm's distilled DeiT has positions for its first tokens.")
    width, depth, mlp_dim, heads = model.sizes
    head = bundle.networks.get("head")
    classes = head["num_classes"] if head else 0
    hidden = mlp_dim * (2 if model.mlp == "swiglu" and model.positions != "rope" else 1)
    args: dict[str, Any] = {
        "img_size": list(bundle.image_size),
        "patch_size": model.patch_size,
        "in_chans": bundle.channels,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": hidden / width,
        "num_classes": classes,
        "global_pool": _THEIR_POOLING.get(model.pooling, model.pooling),
    }
    if model.positions == "rope":
        base = "vit_small_patch16_dinov3_qkvb" if model.qkv_bias else "vit_small_patch16_dinov3"
        args |= {
            "num_reg_tokens": model.registers,
            "init_values": model.layer_scale,
            "use_fc_norm": model.norm_pooled,
        }
        args |= {"swiglu_mlp": True, "rope_temperature": model.rope_base} if model.mlp == "swiglu" else {}
    elif model.relative_positions != "none":
        base = "beit_base_patch16_224"
        args |= {
            "init_values": model.layer_scale,
            "use_abs_pos_emb": model.positions == "learned",
            "use_rel_pos_bias": model.relative_positions == "block",
            "use_shared_rel_pos_bias": model.relative_positions == "shared",
        }
    elif model.distillation_token:
        base = "deit_base_distilled_patch16_224"
    else:
        quick = "clip_quickgelu_" if model.activation == "quick_gelu" else "clip_"
        base = f"vit_base_patch16_{quick if model.norm_input == 'tokens' else ''}224"
        args |= {
            "class_token": model.class_token,
            "reg_tokens": model.registers,
            "no_embed_class": model.prefix_positions == 0,
            "pos_embed": "learn" if model.positions == "learned" else "none",
            "pre_norm": model.norm_input == "tokens",
            "qkv_bias": model.qkv_bias,
            "proj_bias": model.out_bias,
            "qk_norm": model.qk_norm,
            "init_values": model.layer_scale,
            "fc_norm": model.norm_pooled,
            "final_norm": model.final_norm,
            "act_layer": model.activation,
        }
        if model.mlp == "swiglu":
            base = "vit_giant_patch14_reg4_dinov2"
    return {
        "architecture": base,
        "num_classes": classes,
        "num_features": width,
        "global_pool": args["global_pool"],
        "model_args": args,
        "pretrained_cfg": bundle.options.get("pretrained_cfg", {})
        | {"input_size": [bundle.channels, *bundle.image_size]},
    }


def _matches(config: Config | None, shapes: Shapes) -> bool:
    return config is not None and "architecture" in config and is_timm_vit(shapes)


FAMILIES = (Family("timm/vit", _matches, _read, _rules, config=_config),)
