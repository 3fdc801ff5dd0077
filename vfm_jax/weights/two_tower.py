"""CLIP and SigLIP, both towers or the image tower alone, as Hugging Face, OpenAI and open_clip save them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.models.text import SIZES, TextTransformer
from vfm_jax.models.vit import ViT
from vfm_jax.weights.family import CLIP, HALF, Config, Family
from vfm_jax.weights.rules import Buffer, Bundle, Rule, Shapes
from vfm_jax.weights.vit import Names, block_rules, count_blocks, norm_rules, square_grid, variant_of, vit, vit_rules
from vfm_jax.weights.vit_hf import (
    activation,
    check_square,
    pair,
    patch_size_of,
    prefix_of,
    prefixed,
    their_activation,
)

_HF_BLOCK = {
    "norm1": "encoder.layers.{i}.layer_norm1",
    "query": "encoder.layers.{i}.self_attn.q_proj",
    "key": "encoder.layers.{i}.self_attn.k_proj",
    "value": "encoder.layers.{i}.self_attn.v_proj",
    "out": "encoder.layers.{i}.self_attn.out_proj",
    "norm2": "encoder.layers.{i}.layer_norm2",
    "up": "encoder.layers.{i}.mlp.fc1",
    "down": "encoder.layers.{i}.mlp.fc2",
}
_HF_VISION = {
    **_HF_BLOCK,
    "class_token": "embeddings.class_embedding",
    "class_token:axes": "",
    "positions": "embeddings.position_embedding.weight",
    "positions:axes": "n d",
    "patch_embedding": "embeddings.patch_embedding",
    "norm_input": "pre_layrnorm",
    "norm": "post_layernorm",
    "pool_probe": "head.probe",
    "pool_qkv": "head.attention.in_proj",
    "pool_out": "head.attention.out_proj",
    "pool_norm": "head.layernorm",
    "pool_up": "head.mlp.fc1",
    "pool_down": "head.mlp.fc2",
}
_HF_TEXT = {
    **_HF_BLOCK,
    "words": "embeddings.token_embedding.weight",
    "positions": "embeddings.position_embedding.weight",
    "norm": "final_layer_norm",
    "projection": "head",
}
_OPENAI_BLOCK = {
    "norm1": "transformer.resblocks.{i}.ln_1",
    "qkv": "transformer.resblocks.{i}.attn.in_proj",
    "qkv:suffix": "_",
    "out": "transformer.resblocks.{i}.attn.out_proj",
    "norm2": "transformer.resblocks.{i}.ln_2",
    "up": "transformer.resblocks.{i}.mlp.c_fc",
    "down": "transformer.resblocks.{i}.mlp.c_proj",
}
_OPENAI_VISION = {
    **_OPENAI_BLOCK,
    "class_token": "class_embedding",
    "class_token:axes": "",
    "positions": "positional_embedding",
    "positions:axes": "n d",
    "patch_embedding": "conv1",
    "norm_input": "ln_pre",
    "norm": "ln_post",
    "projection": "proj",
    "projection:axes": "",
}
_OPENAI_TEXT = {
    **_OPENAI_BLOCK,
    "words": "token_embedding.weight",
    "positions": "positional_embedding",
    "norm": "ln_final",
    "projection": "text_projection",
}

# What `transformers` takes where a config is silent, as configs on the hub often are.
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_CLIP_TEXT = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_SIGLIP_VISION = _SIGLIP | {
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "num_patches": 256,
    "vision_use_head": True,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def vision_rules(
    spec: Mapping[str, Any], names: Names, image_size: tuple[int, int], role: str, projection: str = ""
) -> list[Rule]:
    """Leaves of an image tower; `projection` is the name of the matrix, if it does not stand below the others."""
    return vit_rules(spec, {**names, "projection": projection} if projection else names, image_size, role)


def text_rules(
    spec: Mapping[str, Any], names: Names, role: str, projection: str, axes: str = "o i -> i o"
) -> list[Rule]:
    """Leaves of a text tower; `projection` is the name of its matrix, of these axes."""
    model = _text(spec)
    width, depth, mlp_dim, heads = model.sizes
    like = ViT("B/1", width, depth, mlp_dim, heads)  # its blocks are a ViT's
    rules = [Rule(f"{role}/token_embedding", (names["words"],)), Rule(f"{role}/positions", (names["positions"],))]
    for i in range(depth):
        block = {part: name.format(i=i) for part, name in names.items()}
        rules += block_rules(like, block, f"{role}/transformer/block_{i}")
    rules += norm_rules(f"{role}/norm", names["norm"])
    if model.projection:
        rules.append(Rule(f"{role}/projection/kernel", (projection,), axes))
    if model.projection and model.projection_bias:
        rules.append(Rule(f"{role}/projection/bias", (projection.removesuffix(".weight") + ".bias",)))
    return rules


def _text(spec: Mapping[str, Any]) -> TextTransformer:
    return TextTransformer(**{k: v for k, v in spec.items() if k != "name"})


def _text_variant(width: int, depth: int, mlp_dim: int, heads: int) -> dict[str, Any]:
    for name, row in SIZES.items():
        if row == (width, depth, mlp_dim, heads):
            return {"variant": name}
    return {"width": width, "depth": depth, "mlp_dim": mlp_dim, "heads": heads}


# ------------------------------------------------------------------------------------------------------ Hugging Face


def _section(config: Config, name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's part of the config; that of an image tower's own file is all of it."""
    if not config["model_type"].endswith("_model"):
        config = {**(config.get(f"{name}_config") or {}), **(config.get(f"{name}_config_dict") or {})}
    return {**defaults, **config}


def _sizes(section: Mapping[str, Any]) -> tuple[int, int, int, int]:
    keys = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
    width, depth, mlp_dim, heads = (section[key] for key in keys)
    return width, depth, mlp_dim, heads


def _bundle(
    config: Config,
    shapes: Shapes,
    image: Mapping[str, Any],
    text: Mapping[str, Any] | None,
    image_size: tuple[int, int],
    channels: int,
) -> Bundle:
    options: dict[str, Any] = {"prefix": prefix_of(shapes, "vision_model.")}
    if any(name.endswith("embeddings.position_ids") for name in shapes):
        options["position_ids"] = True
    if text is None:
        return Bundle({"encoder": image}, image_size, channels, options)
    section = _section(config, "text", {})
    options["text"] = {key: section[key] for key in _TOKENS if key in section}
    biased = "logit_bias" in shapes
    towers = {"name": "two_tower", "image": image, "text": text, "logit_bias": biased}
    return Bundle({"towers": towers}, image_size, channels, options)


def _read_clip(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    config = config or {}
    section = _section(config, "vision", _CLIP_VISION)
    projection = shapes.get("visual_projection.weight")
    image = {
        "name": "vit",
        **variant_of(*_sizes(section), patch_size_of(section)),
        "prefix_positions": 1,
        "norm_input": "tokens",
        "norm_pooled": True,
        "patch_bias": False,
        "activation": activation(section),
        "norm_epsilon": section["layer_norm_eps"],
        "position_resampling": "bicubic",
        "projection": projection[0] if projection else None,
    }
    text = None
    if "text_projection.weight" in shapes:
        words = _section(config, "text", _CLIP_TEXT)
        # 2 stands in the configs of before the tokenizer's end token was written there
        first = {"pooling": "argmax"} if words["eos_token_id"] == 2 else {"end_token": words["eos_token_id"]}
        text = _text_spec(words, shapes) | {"pooling": "end_token"} | first
        text |= {"causal": True, "projection": shapes["text_projection.weight"][0]}
    return _bundle(config, shapes, image, text, pair(section["image_size"]), section["num_channels"])


def _text_spec(section: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {
        "name": "text",
        **_text_variant(*_sizes(section)),
        "vocabulary": shapes["text_model.embeddings.token_embedding.weight"][0],
        "length": shapes["text_model.embeddings.position_embedding.weight"][0],
        "activation": activation(section),
        "norm_epsilon": section["layer_norm_eps"],
    }


def _read_siglip(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    config = config or {}
    flexible = config["model_type"].startswith("siglip2")
    section = _section(config, "vision", _SIGLIP_VISION)
    pooled = f"{prefix_of(shapes, 'vision_model.')}head.probe" in shapes
    patch_size = patch_size_of(section)
    image = {
        "name": "vit",
        **variant_of(*_sizes(section), patch_size),
        "class_token": False,
        "pooling": "attention" if pooled else "mean",
        "activation": activation(section),
        "norm_epsilon": section["layer_norm_eps"],
        "position_resampling": "bilinear_antialias" if flexible else "bicubic",
    }
    size = pair(section["image_size"])
    if flexible:
        rows, columns = square_grid(section["num_patches"], "config.json: num_patches")
        size = (rows * patch_size, columns * patch_size)
    text = None
    if "text_model.head.weight" in shapes:
        text = _text_spec(_section(config, "text", _SIGLIP), shapes)
        text |= {"causal": False, "pooling": "last", "projection_bias": True}
        text["projection"] = shapes["text_model.head.weight"][0]
    return _bundle(config, shapes, image, text, size, section["num_channels"])


def _hf_rules(bundle: Bundle, *, flexible: bool = False) -> list[Rule]:
    towers = bundle.networks.get("towers")
    names = dict(_HF_VISION)
    if flexible:  # a linear layer on flattened patches
        names["patch_embedding:axes"] = "d (h w c) -> h w c d"
    prefix = "vision_model." if towers else bundle.options.get("prefix", "vision_model.")
    names = prefixed(names, prefix)
    role = "towers/image" if towers else "encoder"
    spec = towers["image"] if towers else bundle.networks["encoder"]
    rules = vision_rules(spec, names, bundle.image_size, role, "visual_projection.weight")
    if towers is None:
        return rules
    siglip = towers["text"]["pooling"] == "last"
    matrix = "text_model.head.weight" if siglip else "text_projection.weight"
    rules += text_rules(towers["text"], prefixed(_HF_TEXT, "text_model."), "towers/text", matrix)
    scalar = "1 -> " if siglip else ""
    rules.append(Rule("towers/logit_scale", ("logit_scale",), scalar))
    return [*rules, Rule("towers/logit_bias", ("logit_bias",), scalar)] if towers["logit_bias"] else rules


def _hf_buffers(bundle: Bundle) -> list[Buffer]:
    """Counts of positions, in files of before `transformers` 4.31."""
    if not bundle.options.get("position_ids"):
        return []
    towers = bundle.networks.get("towers")
    model = vit(towers["image"] if towers else bundle.networks["encoder"])
    rows, columns = (side // model.patch_size for side in bundle.image_size)
    counts = {bundle.options.get("prefix", "vision_model."): rows * columns + model.prefix_positions}
    counts |= {"text_model.": _text(towers["text"]).length} if towers else {}
    return [Buffer(f"{prefix}embeddings.position_ids", np.arange(count)[None]) for prefix, count in counts.items()]


def _transformer_config(model: ViT | TextTransformer) -> dict[str, Any]:
    width, depth, mlp_dim, heads = model.sizes
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "intermediate_size": mlp_dim,
        "num_attention_heads": heads,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_epsilon,
    }


def _hf_config(bundle: Bundle, kind: str, model: str) -> dict[str, Any]:
    """`kind` is the model_type ("clip"), `model` what its classes begin with ("CLIP")."""
    towers = bundle.networks.get("towers")
    image = vit(towers["image"] if towers else bundle.networks["encoder"])
    rows, columns = bundle.image_size
    vision = {
        "model_type": f"{kind}_vision_model",
        **_transformer_config(image),
        "num_channels": bundle.channels,
        "patch_size": image.patch_size,
    }
    if kind == "siglip2":
        vision["num_patches"] = (rows // image.patch_size) * (columns // image.patch_size)
    else:
        check_square(bundle, f"{model}VisionModel")
        vision["image_size"] = rows
    vision |= {"projection_dim": image.projection or 512} if kind == "clip" else {}
    vision |= {} if kind == "clip" else {"vision_use_head": image.pooling == "attention"}
    if towers is None:
        return {"architectures": [f"{model}VisionModel{'WithProjection' if image.projection else ''}"], **vision}
    tower = _text(towers["text"])
    text = {
        "model_type": f"{kind}_text_model",
        **_transformer_config(tower),
        "vocab_size": tower.vocabulary,
        "max_position_embeddings": tower.length,
        **bundle.options.get("text", {}),
    }
    whole = {"architectures": [f"{model}Model"], "model_type": kind, "vision_config": vision, "text_config": text}
    if kind != "clip":
        text["projection_size"] = tower.projection
        return whole
    text |= {"eos_token_id": 2 if tower.pooling == "argmax" else tower.end_token}
    text["projection_dim"] = tower.projection
    return {**whole, "projection_dim": tower.projection}


# ------------------------------------------------------------------------------------------------ OpenAI, open_clip


# Those of open_clip whose heads are not 64 wide (ViT-H, g and bigG).
_WIDE_HEADS = {1280: 16, 1408: 16, 1664: 16}
_SCALARS = ("input_resolution", "context_length", "vocab_size")


def _is_openai(config: Config | None, shapes: Shapes) -> bool:
    del config
    return "visual.transformer.resblocks.0.attn.in_proj_weight" in shapes and "visual.conv1.weight" in shapes


def _read_openai(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    scalars = [name for name in _SCALARS if name in shapes]
    act = given.get("activation") or ("quick_gelu" if scalars else None)
    if act is None:
        raise UserError(
            "A CLIP file of open_clip does not say its activation. Give activation='gelu' (models trained by LAION "
            "and on DataComp) or activation='quick_gelu' (OpenAI's, and those named -quickgelu)."
        )
    width, channels, patch_size, _ = shapes["visual.conv1.weight"]
    heads = given.get("heads") or _WIDE_HEADS.get(width, width // 64)
    own = "text." if "text.token_embedding.weight" in shapes else ""
    positions = shapes["visual.positional_embedding"][0] - 1
    rows, columns = square_grid(positions, "visual.positional_embedding")

    def sizes(prefix: str, width: int, heads: int) -> tuple[int, int, int, int]:
        blocks = f"{prefix}transformer.resblocks"
        depth = count_blocks(shapes, blocks + ".{i}.ln_1.weight")
        return width, depth, shapes[f"{blocks}.0.mlp.c_fc.weight"][0], heads

    matrix = shapes.get("visual.proj")
    image = {
        "name": "vit",
        **variant_of(*sizes("visual.", width, heads), patch_size),
        "prefix_positions": 1,
        "norm_input": "tokens",
        "norm_pooled": True,
        "patch_bias": False,
        "activation": act,
        "norm_epsilon": 1e-5,
        "projection": matrix[1] if matrix else None,
    }
    words = shapes[f"{own}token_embedding.weight"]
    text_heads = given.get("text_heads") or words[1] // 64
    linear = f"{own}text_projection.weight" in shapes  # as a linear layer, transposed
    matrix = shapes.get(f"{own}text_projection.weight" if linear else f"{own}text_projection")
    text = {
        "name": "text",
        **_text_variant(*sizes(own, words[1], text_heads)),
        "vocabulary": words[0],
        "length": shapes[f"{own}positional_embedding"][0],
        "activation": act,
        "causal": True,
        "pooling": "argmax",
        "projection": matrix[0 if linear else 1] if matrix else None,
        "projection_bias": f"{own}text_projection.bias" in shapes,
    }
    towers = {"name": "two_tower", "image": image, "text": text, "logit_bias": "logit_bias" in shapes}
    assumed = (f"{heads} attention heads in the image tower, {text_heads} in the text tower",)
    options = {"prefix": own, "linear": linear, "scalars": tuple(scalars), "assumed": assumed}
    return Bundle({"towers": towers}, (rows * patch_size, columns * patch_size), channels, options)


def _openai_rules(bundle: Bundle) -> list[Rule]:
    towers = bundle.networks["towers"]
    rules = vision_rules(towers["image"], prefixed(_OPENAI_VISION, "visual."), bundle.image_size, "towers/image")
    names = prefixed(_OPENAI_TEXT, bundle.options.get("prefix", ""))
    linear = bundle.options.get("linear", False)
    matrix = names["projection"] + (".weight" if linear else "")
    rules += text_rules(towers["text"], names, "towers/text", matrix, "o i -> i o" if linear else "")
    rules.append(Rule("towers/logit_scale", ("logit_scale",)))
    return [*rules, Rule("towers/logit_bias", ("logit_bias",))] if towers["logit_bias"] else rules


def _openai_buffers(bundle: Bundle) -> list[Buffer]:
    text = _text(bundle.networks["towers"]["text"])
    values = dict(zip(_SCALARS, (bundle.image_size[0], text.length, text.vocabulary), strict=True))
    return [Buffer(name, np.array(values[name])) for name in bundle.options.get("scalars", ())]


def _family(kind: str, model: str, read: Any, mean_std: Any) -> Family:
    return Family(
        f"hf/{kind}",
        lambda config, shapes: config is not None and config.get("model_type") in (kind, f"{kind}_vision_model"),
        read,
        lambda bundle: _hf_rules(bundle, flexible=kind == "siglip2"),
        _hf_buffers,
        lambda bundle: _hf_config(bundle, kind, model),
        mean_std=mean_std,
        encoders=("two_tower", "vit"),
    )


FAMILIES = (
    _family("clip", "CLIP", _read_clip, CLIP),
    _family("siglip", "Siglip", _read_siglip, HALF),
    _family("siglip2", "Siglip2", _read_siglip, HALF),
    Family(
        "original/clip",
        _is_openai,
        _read_openai,
        _openai_rules,
        _openai_buffers,
        mean_std=CLIP,
        encoders=("two_tower",),
    ),
)
