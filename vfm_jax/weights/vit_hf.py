"""ViTs as Hugging Face `transformers` saves them: config.json beside model.safetensors."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.models.vit import ViT
from vfm_jax.weights.family import HALF, IMAGENET, Config, Family
from vfm_jax.weights.rules import Bundle, Rule, Shapes
from vfm_jax.weights.vit import (
    Names,
    head_rules,
    linear_head,
    mae_decoder_rules,
    norm_rules,
    variant_of,
    vit,
    vit_rules,
)

# Their name of an activation -> ours. The reverse takes the first that fits.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

_BERT_BLOCK = {
    "norm1": "encoder.layer.{i}.layernorm_before",
    "query": "encoder.layer.{i}.attention.attention.query",
    "key": "encoder.layer.{i}.attention.attention.key",
    "value": "encoder.layer.{i}.attention.attention.value",
    "out": "encoder.layer.{i}.attention.output.dense",
    "norm2": "encoder.layer.{i}.layernorm_after",
    "up": "encoder.layer.{i}.intermediate.dense",
    "down": "encoder.layer.{i}.output.dense",
}
_EMBEDDINGS = {
    "class_token": "embeddings.cls_token",
    "distillation_token": "embeddings.distillation_token",
    "mask_token": "embeddings.mask_token",
    "registers": "embeddings.register_tokens",
    "positions": "embeddings.position_embeddings",
    "patch_embedding": "embeddings.patch_embeddings.projection",
}
_VIT = _EMBEDDINGS | _BERT_BLOCK | {"norm": "layernorm", "representation": "pooler.dense"}
_BEIT = _VIT | {
    "scale1": "encoder.layer.{i}.lambda_1",
    "scale2": "encoder.layer.{i}.lambda_2",
}
_TABLE = "relative_position_bias.relative_position_bias_table"
_DINOV2 = (
    _EMBEDDINGS
    | _BERT_BLOCK
    | {
        "mask_token:axes": "1 d -> d",
        "norm1": "encoder.layer.{i}.norm1",
        "scale1": "encoder.layer.{i}.layer_scale1.lambda1",
        "norm2": "encoder.layer.{i}.norm2",
        "up": "encoder.layer.{i}.mlp.fc1",
        "down": "encoder.layer.{i}.mlp.fc2",
        "scale2": "encoder.layer.{i}.layer_scale2.lambda1",
        "norm": "layernorm",
    }
)
_DINOV2_SWIGLU = _DINOV2 | {
    "gate_up": "encoder.layer.{i}.mlp.weights_in",
    "down": "encoder.layer.{i}.mlp.weights_out",
}
_DINOV3 = {
    "class_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "registers": "embeddings.register_tokens",
    "patch_embedding": "embeddings.patch_embeddings",
    "norm1": "layer.{i}.norm1",
    "query": "layer.{i}.attention.q_proj",
    "key": "layer.{i}.attention.k_proj",
    "value": "layer.{i}.attention.v_proj",
    "out": "layer.{i}.attention.o_proj",
    "scale1": "layer.{i}.layer_scale1.lambda1",
    "norm2": "layer.{i}.norm2",
    "gate": "layer.{i}.mlp.gate_proj",
    "up": "layer.{i}.mlp.up_proj",
    "down": "layer.{i}.mlp.down_proj",
    "scale2": "layer.{i}.layer_scale2.lambda1",
    "norm": "norm",
}
_AIMV2 = {
    "positions": "embeddings.position_embedding.weight",
    "positions:axes": "n d",
    "patch_embedding": "embeddings.patch_embed",
    "norm_input": "embeddings.rms_norm",
    "norm1": "encoder.layers.{i}.rms_norm1",
    "query": "encoder.layers.{i}.attention.q_proj",
    "key": "encoder.layers.{i}.attention.k_proj",
    "value": "encoder.layers.{i}.attention.v_proj",
    "out": "encoder.layers.{i}.attention.out_proj",
    "norm2": "encoder.layers.{i}.rms_norm2",
    "gate": "encoder.layers.{i}.ffn.gate_proj",
    "up": "encoder.layers.{i}.ffn.up_proj",
    "down": "encoder.layers.{i}.ffn.down_proj",
    "norm": "rms_norm",
    "pool_probe": "head.cls_token",
    "pool_key": "head.k_proj",
    "pool_value": "head.v_proj",
    "pool_out": "head.output_proj",
}


def pair(size: Any) -> tuple[int, int]:
    """Height and width of a size that the config gives as one number or two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def activation(config: Config, field: str = "hidden_act") -> str:
    """Our name of the config's activation.

    Raises:
        UserError: one that we do not have.
    """
    name = config.get(field, "gelu")
    if name not in ACTIVATIONS:
        raise UserError(f"config.json: {field} is {name!r}; known here are {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def their_activation(name: str) -> str:
    """Their name of our activation."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == name)


def patch_size_of(config: Config) -> int:
    """Pixels along one side of a patch.

    Raises:
        UserError: patches that are not square.
    """
    rows, columns = pair(config["patch_size"])
    if rows != columns:
        raise UserError(f"config.json: patches of {rows} x {columns} pixels; only square ones are known here.")
    return rows


def prefix_of(shapes: Shapes, base: str) -> str:
    """`base` ("vit.") where the file's names bear it, else ""."""
    return base if any(name.startswith(base) for name in shapes) else ""


def num_classes_of(shapes: Shapes, module: str) -> int | None:
    """Outputs of the classifier, or None where the file has none."""
    weight = shapes.get(f"{module}.weight")
    return weight[0] if weight else None


def prefixed(names: Names, prefix: str) -> dict[str, str]:
    """The names with `prefix` before each; axes stay."""
    return {part: name if ":" in part else prefix + name for part, name in names.items()}


def _is(model_type: str, config: Config | None, shapes: Shapes) -> bool:
    del shapes
    return config is not None and config.get("model_type") == model_type


def _sizes(config: Config, mlp_dim: int) -> dict[str, Any]:
    return variant_of(
        config["hidden_size"],
        config["num_hidden_layers"],
        mlp_dim,
        config["num_attention_heads"],
        patch_size_of(config),
    )


def _common(config: Config) -> dict[str, Any]:
    """Fields that ViT, DeiT, MAE and I-JEPA share."""
    return {
        "name": "vit",
        **_sizes(config, config["intermediate_size"]),
        "activation": activation(config),
        "norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "qkv_bias": config.get("qkv_bias", True),
        "position_resampling": "bicubic",
    }


def _bundle(config: Config, networks: Mapping[str, Any], shapes: Shapes, base: str) -> Bundle:
    options = {k: config[k] for k in ("id2label", "label2id") if k in config}
    return Bundle(
        networks,
        pair(config.get("image_size", 224)),
        config.get("num_channels", 3),
        options | {"prefix": prefix_of(shapes, base)},
    )


def _base_config(bundle: Bundle, model_type: str, architecture: str) -> dict[str, Any]:
    model = vit(bundle.networks["encoder"])
    width, depth, mlp_dim, heads = model.sizes
    rows, columns = bundle.image_size
    labels = {k: bundle.options[k] for k in ("id2label", "label2id") if k in bundle.options}
    head = bundle.networks.get("head")
    if head and "id2label" not in labels:
        names = {str(i): f"LABEL_{i}" for i in range(head["num_classes"])}
        labels = {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp_dim,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_epsilon,
        "image_size": rows if rows == columns else [rows, columns],
        "patch_size": model.patch_size,
        "num_channels": bundle.channels,
        "qkv_bias": model.qkv_bias,
        "drop_path_rate": model.drop_path,
        **labels,
    }


def _prefix(bundle: Bundle, base: str) -> str:
    """As in the file it came from; for a model of ours as `transformers` writes it: with a head, the base's name."""
    return bundle.options.get("prefix", base if len(bundle.networks) > 1 else "")


# --------------------------------------------------------------------------------------------------------------- ViT


def _read_vit(config: Config, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    prefix = prefix_of(shapes, "vit.")
    encoder = _common(config) | {"class_token": True, "prefix_positions": 1}
    if f"{prefix}embeddings.mask_token" in shapes:
        encoder["mask_token"] = True
    if f"{prefix}pooler.dense.weight" in shapes:
        encoder["representation"] = shapes[f"{prefix}pooler.dense.weight"][0]
    networks = {"encoder": encoder}
    if (num_classes := num_classes_of(shapes, "classifier")) is not None:
        networks["head"] = linear_head(num_classes)
    return _bundle(config, networks, shapes, "vit.")


def _vit_rules(bundle: Bundle) -> list[Rule]:
    names = prefixed(_VIT, _prefix(bundle, "vit."))
    rules = vit_rules(bundle.networks["encoder"], names, bundle.image_size)
    return rules + head_rules(bundle, {"head": "classifier"})


def check_square(bundle: Bundle, architecture: str) -> None:
    """Refuses images that are not square, for a class of theirs that takes no others."""
    if len(set(bundle.image_size)) > 1:
        raise UserError(f"{architecture} of transformers has positions of square images, not of {bundle.image_size}.")


def _is_theirs(bundle: Bundle) -> bool:
    """Whether the model was read from a folder of `transformers`, to which it goes back as it was."""
    return bundle.options.get("family", "").startswith("hf/")


def _check_pooler(bundle: Bundle, architecture: str) -> None:
    """Refuses what transformers would load with a pooler of random numbers; a file of theirs is as they made it."""
    if (
        architecture.endswith("Model")
        and not vit(bundle.networks["encoder"]).representation
        and not _is_theirs(bundle)
    ):
        raise UserError(f"{architecture} of transformers has a pooler, which this model has not (representation).")


def _vit_config(bundle: Bundle) -> dict[str, Any]:
    architecture = "ViTForImageClassification" if "head" in bundle.networks else "ViTModel"
    _check_pooler(bundle, architecture)
    model = vit(bundle.networks["encoder"])
    pooler = {"pooler_output_size": model.representation} if model.representation else {}
    return _base_config(bundle, "vit", architecture) | pooler


# -------------------------------------------------------------------------------------------------------------- DeiT


def _read_deit(config: Config, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    prefix = prefix_of(shapes, "deit.")
    encoder = _common(config) | {"class_token": True, "distillation_token": True, "prefix_positions": 2}
    if f"{prefix}embeddings.mask_token" in shapes:
        encoder["mask_token"] = True
    if f"{prefix}pooler.dense.weight" in shapes:
        encoder["representation"] = shapes[f"{prefix}pooler.dense.weight"][0]
    networks: dict[str, Any] = {"encoder": encoder}
    if (num_classes := num_classes_of(shapes, "cls_classifier")) is not None:
        networks |= {"head": linear_head(num_classes), "distillation_head": linear_head(num_classes)}
    elif (num_classes := num_classes_of(shapes, "classifier")) is not None:
        networks["head"] = linear_head(num_classes)
    return _bundle(config, networks, shapes, "deit.")


def _deit_rules(bundle: Bundle) -> list[Rule]:
    names = prefixed(_VIT, _prefix(bundle, "deit."))
    both = "distillation_head" in bundle.networks
    heads = {"head": "cls_classifier" if both else "classifier", "distillation_head": "distillation_classifier"}
    return vit_rules(bundle.networks["encoder"], names, bundle.image_size) + head_rules(bundle, heads)


def _deit_config(bundle: Bundle) -> dict[str, Any]:
    both, one = "distillation_head" in bundle.networks, "head" in bundle.networks
    architecture = (
        "DeiTForImageClassificationWithTeacher" if both else "DeiTForImageClassification" if one else "DeiTModel"
    )
    _check_pooler(bundle, architecture)
    return _base_config(bundle, "deit", architecture)


# --------------------------------------------------------------------------------------------------------------- MAE


# As on the hub, and as transformers 5 writes them.
_DECODER_BLOCKS = ("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")


def _read_mae(config: Config, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    encoder = _common(config) | {"class_token": True, "prefix_positions": 1}
    networks: dict[str, Any] = {"encoder": encoder}
    if "decoder.mask_token" in shapes:
        networks["decoder"] = {
            "name": "masked_decoder",
            "width": config["decoder_hidden_size"],
            "depth": config["decoder_num_hidden_layers"],
            "heads": config["decoder_num_attention_heads"],
            "mlp_dim": config["decoder_intermediate_size"],
            "norm_epsilon": encoder["norm_epsilon"],
            "activation": encoder["activation"],
            "qkv_bias": encoder["qkv_bias"],
            "positions": "learned",
            "prefix_positions": 1,
        }
    bundle = _bundle(config, networks, shapes, "vit.")
    named = (blocks for blocks in _DECODER_BLOCKS if any(name.startswith(blocks) for name in shapes))
    return bundle._replace(options={**bundle.options, "decoder_blocks": next(named, _DECODER_BLOCKS[0])})


def _mae_rules(bundle: Bundle) -> list[Rule]:
    if "decoder" not in bundle.networks and "decoder_blocks" not in bundle.options:  # not read from there
        raise UserError("ViTMAEModel of transformers hides patches, which an encoder alone does not want.")
    names = prefixed(_VIT, _prefix(bundle, "vit."))
    rules = vit_rules(bundle.networks["encoder"], names, bundle.image_size)
    if "decoder" in bundle.networks:
        blocks = bundle.options.get("decoder_blocks", _DECODER_BLOCKS[0])
        names = {part: name.replace("encoder.layer.", blocks) for part, name in _BERT_BLOCK.items()}
        rules += mae_decoder_rules(bundle, names, "decoder.")
    return rules


def _mae_config(bundle: Bundle) -> dict[str, Any]:
    decoder = bundle.networks.get("decoder")
    check_square(bundle, "ViTMAE")
    config = _base_config(bundle, "vit_mae", "ViTMAEForPreTraining" if decoder else "ViTMAEModel")
    if decoder:
        config |= {
            "decoder_hidden_size": decoder["width"],
            "decoder_num_hidden_layers": decoder["depth"],
            "decoder_num_attention_heads": decoder["heads"],
            "decoder_intermediate_size": decoder.get("mlp_dim")
            or int(decoder["width"] * decoder.get("mlp_ratio", 4.0)),
        }
    return config


# ------------------------------------------------------------------------------------------------------------ I-JEPA


def _read_ijepa(config: Config, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    prefix = prefix_of(shapes, "ijepa.")
    encoder = _common(config) | {"class_token": False, "pooling": "mean"}
    if f"{prefix}embeddings.mask_token" in shapes:
        encoder["mask_token"] = True
    networks = {"encoder": encoder}
    if (num_classes := num_classes_of(shapes, "classifier")) is not None:
        networks["head"] = linear_head(num_classes)
    return _bundle(config, networks, shapes, "ijepa.")


def _ijepa_rules(bundle: Bundle) -> list[Rule]:
    names = prefixed(_VIT, _prefix(bundle, "ijepa."))
    rules = vit_rules(bundle.networks["encoder"], names, bundle.image_size)
    return rules + head_rules(bundle, {"head": "classifier"})


def _ijepa_config(bundle: Bundle) -> dict[str, Any]:
    architecture = "IJepaForImageClassification" if "head" in bundle.networks else "IJepaModel"
    return _base_config(bundle, "ijepa", architecture)


# ------------------------------------------------------------------------------------------------------------ DINOv2


def _read_dinov2(base: str, config: Config, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    prefix = prefix_of(shapes, base)
    block = f"{prefix}encoder.layer.0.mlp."
    swiglu = config.get("use_swiglu_ffn", False)
    mlp_dim = shapes[f"{block}weights_out.weight" if swiglu else f"{block}fc2.weight"][1]
    num_classes = num_classes_of(shapes, "classifier")
    encoder: dict[str, Any] = {
        "name": "vit",
        **_sizes(config, mlp_dim),
        "class_token": True,
        "prefix_positions": 1,
        "registers": config.get("num_register_tokens", 0),
        "mask_token": f"{prefix}embeddings.mask_token" in shapes,
        "norm_epsilon": config.get("layer_norm_eps", 1e-6),
        "qkv_bias": config.get("qkv_bias", True),
        "layer_scale": config.get("layerscale_value", 1.0),
        "pooling": "class" if num_classes is None else "class_mean",
        "position_resampling": "bicubic_antialias" if base == "dinov2_with_registers." else "bicubic",
        # The gate's activation is SiLU whatever hidden_act says.
        **({"mlp": "swiglu", "activation": "silu"} if swiglu else {"activation": activation(config)}),
    }
    networks: dict[str, Any] = {"encoder": encoder}
    if num_classes is not None:
        networks["head"] = linear_head(num_classes)
    return _bundle(config, networks, shapes, base)


def _dinov2_rules(base: str, bundle: Bundle) -> list[Rule]:
    encoder = bundle.networks["encoder"]
    names = prefixed(_DINOV2_SWIGLU if encoder.get("mlp") == "swiglu" else _DINOV2, _prefix(bundle, base))
    return vit_rules(encoder, names, bundle.image_size) + head_rules(bundle, {"head": "classifier"})


def _check_always_there(model: ViT, architecture: str, *, mask_token: bool = True) -> None:
    """Refuses a model without what theirs would make up."""
    parts = {"a mask token": model.mask_token or not mask_token, "layer scales": model.layer_scale is not None}
    if lacking := [part for part, there in parts.items() if not there]:
        raise UserError(f"{architecture} of transformers always has {lacking[0]}, which this model has not.")


def _dinov2_mlp_ratio(model: ViT, architecture: str) -> int:
    """The whole number from which they work out the width of the MLPs.

    Raises:
        UserError: there is none for this width.
    """
    width, _, mlp_dim, _ = model.sizes
    for ratio in range(1, 65):
        hidden = width * ratio
        if model.mlp == "swiglu":
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        if hidden == mlp_dim:
            return ratio
    raise UserError(
        f"{architecture} of transformers has MLPs of a whole multiple of the width {width}"
        + (", two thirds of it rounded to eights" if model.mlp == "swiglu" else "")
        + f"; {mlp_dim} is none."
    )


def _dinov2_config(model_type: str, architecture: str, bundle: Bundle) -> dict[str, Any]:
    model = vit(bundle.networks["encoder"])
    kind = "ForImageClassification" if "head" in bundle.networks else "Model"
    _check_always_there(model, architecture, mask_token=model_type == _REGISTERS)
    check_square(bundle, architecture)
    config = _base_config(bundle, model_type, architecture + kind)
    del config["intermediate_size"]
    registers = {"num_register_tokens": model.registers} if model_type.endswith("registers") else {}
    mask = {"use_mask_token": model.mask_token} if model_type == "dinov2" else {}
    return (
        config
        | registers
        | mask
        | {
            "mlp_ratio": _dinov2_mlp_ratio(model, architecture),
            "layerscale_value": model.layer_scale,
            "use_swiglu_ffn": model.mlp == "swiglu",
            "hidden_act": "gelu" if model.mlp == "swiglu" else config["hidden_act"],
        }
    )


# ------------------------------------------------------------------------------------------------------------ DINOv3


def _read_dinov3(config: Config, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    prefix = prefix_of(shapes, "dinov3_vit.")
    gated = config.get("use_gated_mlp", False)
    biases = {part: config.get(f"{part}_bias", part != "key") for part in ("query", "key", "value")}
    if biases["query"] != biases["value"]:
        raise UserError("config.json: query_bias and value_bias differ; here both have a bias or neither.")
    encoder = {
        "name": "vit",
        **_sizes(config, config["intermediate_size"]),
        "positions": "rope",
        "rope_base": config.get("rope_theta", 100.0),
        "rope_shift": config.get("pos_embed_shift"),
        "rope_jitter": config.get("pos_embed_jitter"),
        "rope_rescale": config.get("pos_embed_rescale"),
        "class_token": True,
        "registers": config.get("num_register_tokens", 0),
        "mask_token": f"{prefix}embeddings.mask_token" in shapes,
        "norm_epsilon": config.get("layer_norm_eps", 1e-5),
        "qkv_bias": biases["query"],
        "key_bias": biases["key"],
        "out_bias": config.get("proj_bias", True),
        "mlp": "swiglu" if gated else "mlp",
        "mlp_bias": config.get("mlp_bias", True),
        "activation": activation(config),
        "layer_scale": config.get("layerscale_value", 1.0),
    }
    return _bundle(config, {"encoder": encoder}, shapes, "dinov3_vit.")


def _dinov3_rules(bundle: Bundle) -> list[Rule]:
    names = prefixed(_DINOV3, _prefix(bundle, "dinov3_vit."))
    return vit_rules(bundle.networks["encoder"], names, bundle.image_size)


def _dinov3_config(bundle: Bundle) -> dict[str, Any]:
    model = vit(bundle.networks["encoder"])
    _check_always_there(model, "DINOv3ViT")
    config = _base_config(bundle, "dinov3_vit", "DINOv3ViTModel")
    del config["qkv_bias"]
    return config | {
        "num_register_tokens": model.registers,
        "rope_theta": model.rope_base,
        "pos_embed_shift": model.rope_shift,
        "pos_embed_jitter": model.rope_jitter,
        "pos_embed_rescale": model.rope_rescale,
        "query_bias": model.qkv_bias,
        "key_bias": model.qkv_bias and model.key_bias,
        "value_bias": model.qkv_bias,
        "proj_bias": model.out_bias,
        "mlp_bias": model.mlp_bias,
        "use_gated_mlp": model.mlp == "swiglu",
        "layerscale_value": model.layer_scale,
    }


# -------------------------------------------------------------------------------------------------------------- BEiT


def _read_beit(config: Config, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    prefix = prefix_of(shapes, "beit.")
    mean = config.get("use_mean_pooling", True)
    shared = config.get("use_shared_relative_position_bias", False)
    own = config.get("use_relative_position_bias", False)
    absolute = config.get("use_absolute_position_embeddings", False)
    scaled = config.get("layer_scale_init_value", 0.1) > 0
    encoder = {
        "name": "vit",
        **_sizes(config, config["intermediate_size"]),
        "positions": "learned" if absolute else "none",
        "prefix_positions": int(absolute),
        "position_resampling": "bicubic",
        "relative_positions": "shared" if shared else "block" if own else "none",
        "class_token": True,
        "mask_token": f"{prefix}embeddings.mask_token" in shapes,
        "key_bias": False,
        "activation": activation(config),
        "norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "layer_scale": config["layer_scale_init_value"] if scaled else None,
        "pooling": "mean" if mean else "class",
        **({"norm_pooled": True, "final_norm": f"{prefix}pooler.layernorm.weight" in shapes} if mean else {}),
    }
    networks: dict[str, Any] = {"encoder": encoder}
    if (num_classes := num_classes_of(shapes, "classifier")) is not None:
        networks["head"] = linear_head(num_classes)
    if (vocabulary := num_classes_of(shapes, "lm_head")) is not None:
        networks["token_head"] = linear_head(vocabulary)
        encoder |= {"norm_pooled": False, "final_norm": True}
        if f"{prefix}layernorm.weight" in shapes and prefix:  # theirs then normalises twice
            networks["token_head"] |= {"layer_norm": True, "norm_epsilon": encoder["norm_epsilon"]}
    return _bundle(config, networks, shapes, "beit.")


def _beit_rules(bundle: Bundle) -> list[Rule]:
    encoder = bundle.networks["encoder"]
    prefix = _prefix(bundle, "beit.")
    own = "encoder.layer.{i}.attention.attention." + _TABLE
    table = f"encoder.{_TABLE}" if encoder.get("relative_positions") == "shared" else own
    names = prefixed(_BEIT | {"relative_positions": table}, prefix)
    masked = bundle.networks.get("token_head")
    if masked:
        # The first norm is saved outside the base and the second inside, as transformers 5 loads (and swaps) them.
        names["norm"] = "layernorm"
    elif encoder.get("pooling") == "mean":
        names["norm"] = f"{prefix}pooler.layernorm"
    rules = vit_rules(encoder, names, bundle.image_size)
    if masked and masked.get("layer_norm"):
        rules += norm_rules("token_head/norm", f"{prefix}layernorm")
    return rules + head_rules(bundle, {"head": "classifier", "token_head": "lm_head"})


def _beit_config(bundle: Bundle) -> dict[str, Any]:
    model = vit(bundle.networks["encoder"])
    kinds = {"token_head": "BeitForMaskedImageModeling", "head": "BeitForImageClassification"}
    architecture = next((name for role, name in kinds.items() if role in bundle.networks), "BeitModel")
    config = _base_config(bundle, "beit", architecture)
    del config["qkv_bias"]
    vocabulary = bundle.networks.get("token_head", {}).get("num_classes")
    return (
        config
        | ({"vocab_size": vocabulary} if vocabulary else {})
        | {
            "use_mean_pooling": model.pooling == "mean",
            "use_relative_position_bias": model.relative_positions == "block",
            "use_shared_relative_position_bias": model.relative_positions == "shared",
            "use_absolute_position_embeddings": model.positions == "learned",
            "use_mask_token": model.mask_token,
            "layer_scale_init_value": model.layer_scale or 0.0,
        }
    )


# ------------------------------------------------------------------------------------------------------------- AIMv2


def _read_aimv2(config: Config, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    native = config.get("is_native", False)
    encoder = {
        "name": "vit",
        **_sizes(config, config["intermediate_size"]),
        "positions": "sincos2d" if native else "learned",
        "class_token": False,
        "norm_input": "patches",
        "norm": "rms_norm",
        "norm_epsilon": config.get("rms_norm_eps", 1e-5),
        "qkv_bias": config.get("qkv_bias", False),
        "out_bias": config.get("qkv_bias", False),
        "mlp": "swiglu",
        "mlp_bias": config.get("mlp_bias", False),
        "activation": activation(config),
        "pooling": "attention_aim" if config.get("use_head", True) else "mean",
        "position_resampling": "bicubic",
    }
    return _bundle(config, {"encoder": encoder}, shapes, "vision_model.")


def _aimv2_rules(bundle: Bundle) -> list[Rule]:
    names = prefixed(_AIMV2, _prefix(bundle, "vision_model."))
    return vit_rules(bundle.networks["encoder"], names, bundle.image_size)


def _aimv2_config(bundle: Bundle) -> dict[str, Any]:
    model = vit(bundle.networks["encoder"])
    config = _base_config(bundle, "aimv2_vision_model", "Aimv2VisionModel")
    del config["layer_norm_eps"]
    return config | {
        "rms_norm_eps": model.norm_epsilon,
        "mlp_bias": model.mlp_bias,
        "use_head": model.pooling == "attention_aim",
        "is_native": model.positions == "sincos2d",
    }


_REGISTERS = "dinov2_with_registers"

# What a config.json means where it leaves a field out: the defaults of transformers' config classes.
_BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
_MAE_DECODER = {
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "decoder_intermediate_size": 2048,
}
_DINOV3_SIZES = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "layer_norm_eps": 1e-5}
_AIMV2_SIZES = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 2816}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": _BASE,
    "deit": _BASE,
    "vit_mae": _BASE | _MAE_DECODER,
    "ijepa": _BASE,
    "dinov2": _BASE | {"patch_size": 14, "layer_norm_eps": 1e-6},
    _REGISTERS: _BASE | {"layer_norm_eps": 1e-6, "num_register_tokens": 4},
    "dinov3_vit": _BASE | _DINOV3_SIZES | {"pos_embed_rescale": 2.0},
    "beit": _BASE | {"layer_scale_init_value": 0.1},
    "aimv2_vision_model": _BASE | _AIMV2_SIZES | {"patch_size": 14, "hidden_act": "silu", "qkv_bias": False},
}


def _family(
    model_type: str,
    read: Callable[[Config, Shapes, Mapping[str, Any]], Bundle],
    rules: Callable[[Bundle], list[Rule]],
    config: Callable[[Bundle], dict[str, Any]],
    mean_std: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET,
) -> Family:
    def completed(found: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
        return read({**_DEFAULTS[model_type], **(found or {})}, shapes, given)

    name = model_type.removesuffix("_vision_model")
    return Family(
        f"hf/{name}", functools.partial(_is, model_type), completed, rules, config=config, mean_std=mean_std
    )


def _dinov2_family(model_type: str, architecture: str) -> Family:
    base = f"{model_type}."
    return _family(
        model_type,
        functools.partial(_read_dinov2, base),
        functools.partial(_dinov2_rules, base),
        functools.partial(_dinov2_config, model_type, architecture),
    )


FAMILIES = (
    _family("vit", _read_vit, _vit_rules, _vit_config, HALF),
    _family("deit", _read_deit, _deit_rules, _deit_config),
    _family("vit_mae", _read_mae, _mae_rules, _mae_config),
    _family("ijepa", _read_ijepa, _ijepa_rules, _ijepa_config),
    _dinov2_family("dinov2", "Dinov2"),
    _dinov2_family(_REGISTERS, "Dinov2WithRegisters"),
    _family("dinov3_vit", _read_dinov3, _dinov3_rules, _dinov3_config),
    _family("beit", _read_beit, _beit_rules, _beit_config, HALF),
    _family("aimv2_vision_model", _read_aimv2, _aimv2_rules, _aimv2_config),
)
