"""ViTs in their authors' own files: a state dict, mostly inside a training checkpoint, with no config beside it.

What such a file leaves open (attention heads, epsilon, how positions are resampled) is the authors' code's, and is
listed among the assumptions of the account.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.weights.family import Config, Family
from vfm_jax.weights.rules import Buffer, Bundle, Rule, Shapes
from vfm_jax.weights.vit import count_blocks, head_rules, linear_head, mae_decoder_rules, vit, vit_rules
from vfm_jax.weights.vit_timm import NAMES, is_timm_vit, names_for, read_encoder

# Where checkpoints keep the network that their authors evaluate, the best first. "/" enters a dict, "." is a module.
WRAPPERS = (
    "target_encoder/module.",
    "target_encoder/",
    "teacher/module.backbone.",
    "teacher/backbone.",
    "model_ema/",
    "state_dict/module.momentum_encoder.",
    "state_dict/module.base_encoder.",
    "state_dict/module.",
    "state_dict/",
    "model/",
    "encoder/module.",
    "encoder/",
    "module.",
    "backbone.",
    "",
)


class Origin(NamedTuple):
    """What the authors' code fixes and their files do not hold.

    Attributes:
        heads: by width.
        fields: of the ViT.
        names: where they differ from timm's.
    """

    heads: Mapping[int, int]
    fields: Mapping[str, Any]
    names: Mapping[str, str] = {}


_VIT_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_TIMM_PLUS = {"mask_token:axes": "1 d -> d"}
DINO = Origin(_VIT_HEADS, {"position_resampling": "bicubic_offset"})
IBOT = Origin(_VIT_HEADS, {"position_resampling": "bicubic_offset"}, {"mask_token": "masked_embed", **_TIMM_PLUS})
MAE = Origin(_VIT_HEADS, {"position_resampling": "bicubic"})
MOCO_V3 = Origin({384: 12, 768: 12, 1024: 16, 1280: 16}, {"position_resampling": "bicubic"})
IJEPA = Origin(_VIT_HEADS | {1408: 16, 1664: 16}, {"position_resampling": "bicubic", "pooling": "mean"})
DINOV2 = Origin(
    {384: 6, 768: 12, 1024: 16, 1536: 24},
    {"position_resampling": "bicubic_offset"},
    {
        "registers": "register_tokens",
        "gate_up": "blocks.{i}.mlp.w12",
        "down:swiglu": "blocks.{i}.mlp.w3",
        **_TIMM_PLUS,
    },
)
DINOV3 = Origin(
    {384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32},
    {"positions": "rope", "rope_rescale": 2.0, "norm_epsilon": 1e-5},
    {
        "registers": "storage_tokens",
        "gate": "blocks.{i}.mlp.w1",
        "up:swiglu": "blocks.{i}.mlp.w2",
        "down:swiglu": "blocks.{i}.mlp.w3",
        "class_norm": "cls_norm",
        "local_class_norm": "local_cls_norm",
        **_TIMM_PLUS,
    },
)


def wrapper_of(shapes: Shapes) -> str:
    """What stands before the names of the network that the authors evaluate."""
    return next((prefix for prefix in WRAPPERS if is_timm_vit(_below(shapes, prefix))), "")


def _below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


# timm's reader asks for timm's names; the authors' differ in a few.
_AS_TIMM = {"register_tokens": "reg_token", "storage_tokens": "reg_token", "masked_embed": "mask_token"}
_MLP_AS_TIMM = {"mlp.w12.": "mlp.fc1.", "mlp.w3.": "mlp.fc2.", "mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x."}


def _as_timm(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    renamed = {}
    for name, shape in shapes.items():
        for theirs, timm in _MLP_AS_TIMM.items():
            name = name.replace(theirs, timm)
        renamed[_AS_TIMM.get(name, name)] = shape
    return renamed


def _read(origin: Origin, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    wrapper = wrapper_of(shapes)
    own = _below(shapes, wrapper)
    width = own["patch_embed.proj.weight"][0]
    known = {"heads": origin.heads.get(width), **given}
    spec, image_size = read_encoder(_as_timm(own), known, given.get("image_size"))
    spec |= {
        "pooling": "class" if spec["class_token"] else "mean",
        "class_norm": "cls_norm.weight" in own,
        "local_class_norm": "local_cls_norm.weight" in own,
        **origin.fields,
        **{field: given[field] for field in ("activation", "norm_epsilon") if field in given},
    }
    if "fc_norm.weight" in own:
        spec |= {"pooling": "mean", "norm_pooled": True}
    networks: dict[str, Any] = {"encoder": spec}
    if own.get("head.weight", (0,))[0] and len(own.get("head.weight", ())) == 2:
        networks["head"] = linear_head(own["head.weight"][0])
    if "head_dist.weight" in own:
        networks["distillation_head"] = linear_head(own["head_dist.weight"][0])
    heads = vit(spec).sizes[3]
    assumed = [f"{heads} attention heads" + ("" if "heads" in given else f" (the authors' for width {width})")]
    assumed += [f"{field} {spec[field]!r}" for field in ("activation", "norm_epsilon", "position_resampling")]
    return Bundle(
        networks, image_size, own["patch_embed.proj.weight"][1], {"wrapper": wrapper, "assumed": tuple(assumed)}
    )


def _rules(origin: Origin, bundle: Bundle) -> list[Rule]:
    encoder = bundle.networks["encoder"]
    names = names_for(encoder) | {k: v for k, v in origin.names.items() if ":" not in k or k.endswith("axes")}
    if encoder.get("mlp") == "swiglu":
        names |= {k.split(":")[0]: v for k, v in origin.names.items() if k.endswith(":swiglu")}
        if "gate" in origin.names:
            names.pop("gate_up", None)
    for part in ("query_bias", "key_bias", "value_bias"):  # one vector, and a mask beside it where keys have none
        names.pop(part, None)
    wrapper = bundle.options.get("wrapper", "")
    names = {part: name if ":" in part else wrapper + name for part, name in names.items()}
    rules = vit_rules(encoder, names, bundle.image_size)
    return rules + head_rules(bundle, {"head": f"{wrapper}head", "distillation_head": f"{wrapper}head_dist"})


# ---------------------------------------------------------------------------------------- which authors' file it is


def _has(shapes: Shapes, *names: str) -> bool:
    own = _below(shapes, wrapper_of(shapes))
    return is_timm_vit(own) and all(name in own for name in names)


def _is_dinov3(config: Config | None, shapes: Shapes) -> bool:
    return config is None and _has(shapes, "rope_embed.periods")


def _is_dinov2(config: Config | None, shapes: Shapes) -> bool:
    return config is None and _has(shapes, "mask_token", "pos_embed", "blocks.0.ls1.gamma")


def _is_ijepa(config: Config | None, shapes: Shapes) -> bool:
    inside = wrapper_of(shapes).startswith(("target_encoder/", "encoder/"))
    return config is None and inside and _has(shapes, "pos_embed") and not _has(shapes, "cls_token")


def _is_moco_v3(config: Config | None, shapes: Shapes) -> bool:
    return config is None and wrapper_of(shapes).endswith(("base_encoder.", "momentum_encoder."))


def _is_mae(config: Config | None, shapes: Shapes) -> bool:
    if config is not None or not _has(shapes, "cls_token", "pos_embed"):
        return False
    return _has(shapes, "decoder_pos_embed") or (wrapper_of(shapes) == "model/" and not _has(shapes, "head.weight"))


def _is_ibot(config: Config | None, shapes: Shapes) -> bool:
    if config is not None or not _has(shapes, "cls_token", "pos_embed") or _is_dinov2(config, shapes):
        return False
    released = wrapper_of(shapes) == "state_dict/" and not _has(shapes, "head.weight")
    return _has(shapes, "masked_embed") or released


def _is_dino(config: Config | None, shapes: Shapes) -> bool:
    plain = wrapper_of(shapes) in ("", "teacher/module.backbone.", "teacher/backbone.", "module.", "backbone.")
    others = (_is_dinov2, _is_ibot, _is_mae)
    return (
        config is None
        and plain
        and _has(shapes, "cls_token", "pos_embed", "norm.weight")
        and not _has(shapes, "head.weight")
        and not any(other(config, shapes) for other in others)
    )


def _is_deit(config: Config | None, shapes: Shapes) -> bool:
    """Any other classifier under timm's names: DeiT's own files, a state dict of timm's, MAE's fine-tuned ones."""
    return (
        config is None and _has(shapes, "head.weight") and len(_below(shapes, wrapper_of(shapes))["head.weight"]) == 2
    )


# -------------------------------------------------------------------------------------------- what differs by author


def _reader(origin: Origin):
    return lambda config, shapes, given: _read(origin, shapes, given)


def _ruler(origin: Origin):
    return lambda bundle: _rules(origin, bundle)


def _read_dinov2(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    bundle = _read(DINOV2, shapes, given)
    encoder = dict(bundle.networks["encoder"])
    if encoder["registers"]:  # these were released with antialiasing and without the offset
        encoder["position_resampling"] = "bicubic_antialias"
    return bundle._replace(networks=bundle.networks | {"encoder": encoder})


def _read_dinov3(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    bundle = _read(DINOV3, shapes, given)
    # their qkv.bias is multiplied by bias_mask, which is zero for the keys
    encoder = dict(bundle.networks["encoder"])
    masked = any(name.endswith("attn.qkv.bias_mask") for name in shapes)
    encoder |= {"key_bias": not masked}
    return bundle._replace(networks=bundle.networks | {"encoder": encoder})


def _dinov3_buffers(bundle: Bundle) -> Sequence[Buffer]:
    model = vit(bundle.networks["encoder"])
    width, depth, _, heads = model.sizes
    wrapper = bundle.options.get("wrapper", "")
    quarter = width // heads // 4
    periods = model.rope_base ** (np.arange(quarter) * 4 / (width // heads))
    mask = np.repeat(np.array([1.0, 0.0, 1.0], np.float32), width)
    masks = [Buffer(f"{wrapper}blocks.{i}.attn.qkv.bias_mask", mask) for i in range(depth)]
    return [Buffer(f"{wrapper}rope_embed.periods", periods.astype(np.float32), checked=True), *masks]


def _read_mae(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    bundle = _read(MAE, shapes, given)
    own = _below(shapes, bundle.options["wrapper"])
    if "decoder_pos_embed" not in own:
        return bundle
    encoder = {k: v for k, v in bundle.networks["encoder"].items() if k != "mask_token"}  # that is the decoder's
    width = own["decoder_embed.weight"][0]
    heads = given.get("decoder_heads", 16)
    decoder = {
        "name": "masked_decoder",
        "width": width,
        "depth": count_blocks(own, "decoder_blocks.{i}.norm1.weight"),
        "heads": heads,
        "mlp_dim": own["decoder_blocks.0.mlp.fc1.weight"][0],
        "positions": "learned",
        "prefix_positions": 1,
    }
    assumed = (*bundle.options["assumed"], f"{heads} attention heads in the decoder")
    return bundle._replace(
        networks={"encoder": encoder, "decoder": decoder}, options=bundle.options | {"assumed": assumed}
    )


def _mae_rules(bundle: Bundle) -> list[Rule]:
    rules = _rules(MAE, bundle)
    if "decoder" in bundle.networks:
        wrapper = bundle.options.get("wrapper", "")
        block = {part: wrapper + name.replace("blocks.", "decoder_blocks.") for part, name in NAMES.items()}
        rules += mae_decoder_rules(bundle, block, wrapper)
    return rules


FAMILIES = (
    Family("original/dinov3", _is_dinov3, _read_dinov3, _ruler(DINOV3), buffers=_dinov3_buffers),
    Family("original/dinov2", _is_dinov2, _read_dinov2, _ruler(DINOV2)),
    Family("original/moco_v3", _is_moco_v3, _reader(MOCO_V3), _ruler(MOCO_V3)),
    Family("original/mae", _is_mae, _read_mae, _mae_rules),
    Family("original/ibot", _is_ibot, _reader(IBOT), _ruler(IBOT)),
    Family("original/dino", _is_dino, _reader(DINO), _ruler(DINO)),
    Family("original/deit", _is_deit, _reader(MAE), _ruler(MAE)),
)
