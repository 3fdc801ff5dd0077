"""Swin's leaves under the names of Hugging Face, timm and the authors."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.models.swin import SIZES, Swin, log_offsets, region_mask, relative_index, whole_windows, window_and_shift
from vfm_jax.weights.family import IMAGENET, Config, Family
from vfm_jax.weights.rules import Buffer, Bundle, Rule, Shapes
from vfm_jax.weights.vit import count_blocks, dense_rules, head_rules, linear_head, norm_rules, qkv_rules
from vfm_jax.weights.vit_hf import activation, pair, their_activation


class Naming(NamedTuple):
    """Foreign names of the parts; {s} is the stage, {i} the block."""

    patches: str
    norm_patches: str
    mask_token: str
    positions: str
    block: str
    merge: str
    merge_from: int  # the stage under whose number the merging before stage s stands, less s
    norm: str
    head: str
    parts: Mapping[str, str]  # within a block


TIMM_PARTS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "qkv": "attn.qkv",
    "query_bias": "attn.q_bias",
    "key_bias": "attn.k_bias",
    "value_bias": "attn.v_bias",
    "out": "attn.proj",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "table": "attn.relative_position_bias_table",
    "logit_scale": "attn.logit_scale",
    "position_network": "attn.cpb_mlp",
    "buffers": "attn",
}
HF_PARTS = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
    "table": "attention.self.relative_position_bias_table",
    "logit_scale": "attention.self.logit_scale",
    "position_network": "attention.self.continuous_position_bias_mlp",
    "buffers": "attention.self",
}


def hf_naming(prefix: str) -> Naming:
    """Hugging Face's names, below `prefix`."""
    return Naming(
        f"{prefix}embeddings.patch_embeddings.projection",
        f"{prefix}embeddings.norm",
        f"{prefix}embeddings.mask_token",
        f"{prefix}embeddings.position_embeddings",
        f"{prefix}encoder.layers.{{s}}.blocks.{{i}}",
        f"{prefix}encoder.layers.{{s}}.downsample",
        -1,
        f"{prefix}layernorm",
        "classifier",
        HF_PARTS,
    )


_TIMM = Naming(
    "patch_embed.proj",
    "patch_embed.norm",
    "mask_token",
    "absolute_pos_embed",
    "layers.{s}.blocks.{i}",
    "layers.{s}.downsample",
    0,
    "norm",
    "head.fc",
    TIMM_PARTS,
)
_ORIGINAL = _TIMM._replace(merge_from=-1, head="head")

# Real architectures of timm, whose names its loader knows; a file of another name is written under the first.
_TIMM_NAMES = {1: "swin_tiny_patch4_window7_224", 2: "swinv2_tiny_window8_256"}
_TIMM_KNOWN = re.compile(r"swin(_s3)?_(tiny|small|base|large)_|swinv2_(tiny|small|base|large)_")
_BUFFERS = ("relative_position_index", "relative_coords_table")


def _swin(bundle: Bundle) -> Swin:
    return Swin(**{k: v for k, v in bundle.networks["encoder"].items() if k != "name"})


def window_rules_agree(spec: Mapping[str, Any], image_size: tuple[int, int]) -> bool:
    """Whether a Swin computes the same by either `window_rule` on images of this size.

    Both must cut a window alike, and a map that is shifted must need no padding, which one adds before the other.
    """
    model = Swin(**{k: v for k, v in spec.items() if k != "name"})
    for stage, window in enumerate(model.windows):
        rows, columns = (-(-side // (model.patch * 2**stage)) for side in image_size)
        grid, half = (rows, columns), (window[0] // 2, window[1] // 2)
        joint, separate = (window_and_shift(grid, window, half, rule) for rule in ("joint", "separate"))
        if joint != separate or (any(joint[1]) and whole_windows(grid, joint[0]) != grid):
            return False
    return True


def _blocks(model: Swin) -> Iterator[tuple[int, int]]:
    for stage, depth in enumerate(model.sizes[1]):
        for i in range(depth):
            yield stage, i


# What the tensors tell


def _depths(shapes: Shapes, naming: Naming) -> tuple[int, ...]:
    depths: list[int] = []
    while True:
        block = naming.block.replace("{s}", str(len(depths)))
        depth = count_blocks(shapes, f"{block}.{naming.parts['norm1']}.weight")
        if not depth:
            return tuple(depths)
        depths.append(depth)


def _from_shapes(shapes: Shapes, naming: Naming, version: int) -> tuple[dict[str, Any], int]:
    """Fields that the shapes tell, and the number of channels."""
    depths = _depths(shapes, naming)
    width, channels, patch, _ = shapes[f"{naming.patches}.weight"]

    def of_stage(stage: int, part: str) -> tuple[int, ...]:
        return shapes[f"{naming.block.format(s=stage, i=0)}.{naming.parts[part]}"]

    parts = dict(naming.parts, up=naming.parts["up"] + ".weight")
    naming = naming._replace(parts=parts)
    stages = range(len(depths))
    heads = tuple(of_stage(s, "table")[1] if version == 1 else of_stage(s, "logit_scale")[0] for s in stages)
    hidden = [of_stage(s, "up")[0] for s in stages]
    first = naming.block.format(s=0, i=0)
    biases = (f"{parts.get('qkv', parts.get('query'))}.bias", parts.get("query_bias", ""))
    fields: dict[str, Any] = {"name": "swin", "version": version}
    fields |= _variant(width, depths, heads)
    fields |= {
        "patch": patch,
        "mlp_ratio": _ratio(hidden, [width * 2**s for s in stages]),
        "qkv_bias": any(f"{first}.{bias}" in shapes for bias in biases),
        "positions": "learned" if naming.positions in shapes else "none",
        "mask_token": naming.mask_token in shapes,
    }
    return fields, channels


def _variant(width: int, depths: tuple[int, ...], heads: tuple[int, ...]) -> dict[str, Any]:
    for name, row in SIZES.items():
        if row == (width, depths, heads):
            return {"variant": name}
    return {"width": width, "depths": depths, "heads": heads}


def _ratio(hidden: list[int], widths: list[int]) -> float:
    for number, width in zip(hidden, widths, strict=True):
        for ratio in (number / width, (number + 0.5) / width):
            if [int(w * ratio) for w in widths] == hidden:
                return ratio
    raise UserError(
        f"The MLPs' widths {hidden} are no fixed multiple of the stages' {widths}; a Swin here needs one."
    )


def _table_windows(shapes: Shapes, naming: Naming, depths: tuple[int, ...]) -> list[tuple[int, int]] | None:
    """Windows of the stages from their tables of relative offsets, if those are square."""
    windows = []
    for stage in range(len(depths)):
        block = naming.block.format(s=stage, i=0)
        coordinates = f"{block}.{naming.parts['buffers']}.relative_coords_table"
        table = f"{block}.{naming.parts['table']}"
        if table in shapes:
            side = math.isqrt(shapes[table][0])
            if side * side != shapes[table][0]:
                return None
            windows.append(((side + 1) // 2, (side + 1) // 2))
        elif coordinates in shapes:
            _, rows, columns, _ = shapes[coordinates]
            windows.append(((rows + 1) // 2, (columns + 1) // 2))
        else:
            return None
    return windows


def _plain(windows: Any) -> int | tuple[Any, ...]:
    """Windows in their shortest writing: one number, a number per stage, or a pair per stage."""
    if isinstance(windows, int):
        return windows
    sides = tuple(w[0] if not isinstance(w, int) and w[0] == w[1] else w for w in windows)
    if all(side == sides[0] for side in sides) and isinstance(sides[0], int):
        return sides[0]
    return tuple(side if isinstance(side, int) else tuple(side) for side in sides)


def _present_buffers(shapes: Shapes) -> dict[str, Any]:
    kinds = [kind for kind in (*_BUFFERS, "attn_mask") if any(name.endswith(f".{kind}") for name in shapes)]
    return {"buffers": kinds} if kinds else {}


# Rules


def _rules(bundle: Bundle, naming: Naming) -> list[Rule]:
    model = _swin(bundle)
    rules = [
        Rule("encoder/patch_embedding/kernel", (f"{naming.patches}.weight",), "d c h w -> h w c d"),
        Rule("encoder/patch_embedding/bias", (f"{naming.patches}.bias",)),
        *norm_rules("encoder/norm_patches", naming.norm_patches),
    ]
    if model.mask_token:
        rules.append(Rule("encoder/mask_token", (naming.mask_token,), "1 1 d -> d"))
    if model.positions == "learned":
        rows = {"h": -(-bundle.image_size[0] // model.patch)}
        rules.append(Rule("encoder/positions", (naming.positions,), "1 (h w) d -> h w d", rows))
    for stage, depth in enumerate(model.sizes[1]):
        leaf = f"encoder/stage_{stage}"
        if stage > 0:
            merge = naming.merge.format(s=stage + naming.merge_from)
            rules += norm_rules(f"{leaf}/merge/norm", f"{merge}.norm")
            rules += dense_rules(f"{leaf}/merge/reduction", f"{merge}.reduction", bias=False)
        for i in range(depth):
            block = naming.block.format(s=stage, i=i)
            names = {part: f"{block}.{name}" for part, name in naming.parts.items()}
            rules += _block_rules(model, f"{leaf}/block_{i}", names, model.sizes[2][stage])
    rules += norm_rules("encoder/norm", naming.norm)
    return rules + head_rules(bundle, {"head": naming.head})


def _block_rules(model: Swin, leaf: str, names: Mapping[str, str], heads: int) -> list[Rule]:
    first = model.version == 1
    fused = {part: name for part, name in names.items() if not (first and part == "query_bias")}
    rules = qkv_rules(f"{leaf}/attention/qkv", fused, {"heads": heads}, bias=model.qkv_bias, key_bias=first)
    rules += dense_rules(f"{leaf}/attention/out", names["out"])
    positions = f"{leaf}/attention/relative_positions"
    if first:
        rules.append(Rule(f"{positions}/table", (names["table"],)))
    else:
        rules.append(Rule(f"{leaf}/attention/logit_scale", (names["logit_scale"],), "heads 1 1 -> heads"))
        rules += dense_rules(f"{positions}/hidden", f"{names['position_network']}.0")
        rules += dense_rules(f"{positions}/out", f"{names['position_network']}.2", bias=False)
    for part in ("norm1", "norm2"):
        rules += norm_rules(f"{leaf}/{part}", names[part])
    for part in ("up", "down"):
        rules += dense_rules(f"{leaf}/mlp/{part}", names[part])
    return rules


def _buffers(bundle: Bundle, naming: Naming) -> list[Buffer]:
    """Index tables and masks, for those kinds that the file had."""
    kinds = bundle.options.get("buffers", ())
    model = _swin(bundle)
    windows, trained = model.windows, model.trained_windows
    buffers = []
    for stage, i in _blocks(model):
        rows, columns = (-(-side // (model.patch * 2**stage)) for side in bundle.image_size)
        grid = (rows, columns)
        half = (windows[stage][0] // 2, windows[stage][1] // 2) if i % 2 else (0, 0)
        window, shift = window_and_shift(grid, windows[stage], half, model.window_rule)
        block = naming.block.format(s=stage, i=i)
        own = f"{block}.{naming.parts['buffers']}"
        if "relative_position_index" in kinds:
            buffers.append(Buffer(f"{own}.relative_position_index", relative_index(window, window)))
        if "relative_coords_table" in kinds and model.version == 2:
            table = log_offsets(window, trained[stage] or window)
            table = table.reshape(1, 2 * window[0] - 1, 2 * window[1] - 1, 2)
            buffers.append(Buffer(f"{own}.relative_coords_table", table))
        if "attn_mask" in kinds and any(shift):
            mask = np.where(region_mask(whole_windows(grid, window), window, shift), np.float32(0), np.float32(-100))
            buffers.append(Buffer(f"{block}.attn_mask", mask))
    return buffers


# Hugging Face


def _hf_prefix(bundle: Bundle) -> str:
    named = bundle.options.get(
        "architectures", ("Swin" + ("ForImageClassification" if "head" in bundle.networks else "Model"),)
    )
    return "" if named[0].endswith("Model") else ("swin." if _swin(bundle).version == 1 else "swinv2.")


def _read_hf(config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del given
    config = config or {}
    version = 2 if config["model_type"] == "swinv2" else 1
    known = "embeddings.patch_embeddings.projection.weight"
    prefix = next(name for name in shapes if name.endswith(known)).removesuffix(known)
    naming = hf_naming(prefix)
    encoder, channels = _from_shapes(shapes, naming, version)
    depths = _depths(shapes, naming)
    windows = _table_windows(shapes, naming, depths) if version == 1 else None
    encoder["window"] = _plain(windows) if windows else int(config.get("window_size", 7))
    encoder["norm_epsilon"] = config.get("layer_norm_eps", 1e-5)
    encoder["activation"] = activation(config)
    encoder["merged_levels"] = True  # as their hidden_states
    if version == 2 and any(config.get("pretrained_window_sizes") or ()):
        encoder["trained_window"] = _plain([pair(side) for side in config["pretrained_window_sizes"]])
    networks: dict[str, Any] = {"encoder": encoder}
    if "classifier.weight" in shapes:
        networks["head"] = linear_head(shapes["classifier.weight"][0])
    options = {key: config[key] for key in ("id2label", "label2id") if key in config} | _present_buffers(shapes)
    if "head" not in networks and prefix:
        options["architectures"] = list(config["architectures"])
    return Bundle(networks, pair(config.get("image_size", 224)), channels, options)


def _hf_config(bundle: Bundle) -> dict[str, Any]:
    model = _swin(bundle)
    width, depths, heads = model.sizes
    window = _plain(model.windows)
    if not isinstance(window, int):
        raise UserError(f"transformers' Swin has one square window for all stages; this one has {window}.")
    kind = "Swin" if model.version == 1 else "Swinv2"
    config: dict[str, Any] = {
        "architectures": [f"{kind}ForImageClassification" if "head" in bundle.networks else f"{kind}Model"],
        "model_type": kind.lower(),
        "image_size": bundle.image_size[0] if len(set(bundle.image_size)) == 1 else list(bundle.image_size),
        "patch_size": model.patch,
        "num_channels": bundle.channels,
        "embed_dim": width,
        "depths": list(depths),
        "num_heads": list(heads),
        "window_size": window,
        "mlp_ratio": model.mlp_ratio,
        "qkv_bias": model.qkv_bias,
        "hidden_act": their_activation(model.activation),
        "layer_norm_eps": model.norm_epsilon,
        "use_absolute_embeddings": model.positions == "learned",
        "drop_path_rate": model.drop_path,
    }
    if model.version == 2:
        config["pretrained_window_sizes"] = [side[0] if side else 0 for side in model.trained_windows]
    if "head" in bundle.networks:
        labels = {str(i): f"LABEL_{i}" for i in range(bundle.networks["head"]["num_classes"])}
        config |= {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
    options = {key: value for key, value in bundle.options.items() if key != "buffers"}
    return config | options


# timm and the authors


def _timm_like(shapes: Shapes, version: int) -> bool:
    part = "relative_position_bias_table" if version == 1 else "cpb_mlp.0.weight"
    return f"layers.0.blocks.0.attn.{part}" in shapes and "patch_embed.norm.weight" in shapes


def _at_end(shapes: Shapes) -> bool:
    """Whether merging stands at the end of a stage, as the authors have it."""
    return "layers.0.downsample.reduction.weight" in shapes or "head.weight" in shapes


def _stage_windows(window: Any, stages: int) -> list[tuple[int, int]]:
    """timm's window_size as one pair per stage: a number, rows and columns of all, or one of these per stage."""
    if isinstance(window, int) or (len(window) == 2 and all(isinstance(side, int) for side in window)):
        window = [window] * stages
    return [pair(side) for side in window]


def _cut_windows(
    window: Any, size: Any, encoder: Mapping[str, Any], depths: tuple[int, ...], shapes: Shapes
) -> list[tuple[int, int]] | None:
    """The windows of version 1, which timm cuts to the maps of the images before it makes the tables.

    Raises:
        UserError: the tables in the file are of other windows.
    """
    square = _table_windows(shapes, _TIMM, depths)
    if square or not window or not size:
        return square
    windows = []
    for stage, asked in enumerate(_stage_windows(window, len(depths))):
        grid = tuple(-(-side // (encoder["patch"] * 2**stage)) for side in pair(size))
        cut, _ = window_and_shift(grid, asked, (0, 0), "separate")
        rows = shapes[f"{_TIMM.block.format(s=stage, i=0)}.{TIMM_PARTS['table']}"][0]
        if (2 * cut[0] - 1) * (2 * cut[1] - 1) != rows:
            raise UserError(
                f"Stage {stage} has {rows} relative offsets, which windows of {cut[0]} x {cut[1]} tokens (those of "
                f"images of {pair(size)} pixels) do not have. Give window and image_size as the model was trained."
            )
        windows.append(cut)
    return windows


def _read_timm(version: int, config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    config = config or {}
    name = str(config.get("architecture", ""))
    arguments = dict(config.get("model_args") or {})
    encoder, channels = _from_shapes(shapes, _TIMM, version)
    depths = _depths(shapes, _TIMM)
    size = arguments.get("img_size") or (config.get("pretrained_cfg") or {}).get("input_size", [0])[1:]
    size = given.get("image_size") or size
    found = re.search(r"window(\d+)(?:to(\d+))?_(\d+)(?:to(\d+))?$", name.partition(".")[0])
    if not size and found:
        size = int(found[4] or found[3])
    window = given.get("window") or arguments.get("window_size")
    if not window and found:
        window = int(found[2] or found[1])
    if version == 1:
        window = _cut_windows(window, size, encoder, depths, shapes)
    if not window or not size:
        raise UserError(
            "This Swin file does not say " + ("for which windows" if not window else "for which images") + " it is. "
            "Give window=8 and image_size=256, say, as it was trained."
        )
    encoder |= {"window": _plain(_stage_windows(window, len(depths))), "window_rule": "separate"}
    trained = given.get("trained_window") or arguments.get("pretrained_window_sizes")
    if version == 2 and trained is None and found and found[2]:
        grid = int(found[3]) // encoder["patch"]
        trained = [min(int(found[1]), grid // 2**stage) for stage in range(len(depths))]
    if version == 2 and trained and trained != [0] * len(depths):
        encoder["trained_window"] = _plain(trained if isinstance(trained, int) else list(trained))
    networks: dict[str, Any] = {"encoder": encoder}
    if "head.fc.weight" in shapes:
        networks["head"] = linear_head(shapes["head.fc.weight"][0])
    options = _present_buffers(shapes)
    if _TIMM_KNOWN.match(name) and name != _TIMM_NAMES[version]:
        options["architecture"] = name
    return Bundle(networks, pair(size), channels, options)


def _timm_config(bundle: Bundle) -> dict[str, Any]:
    model = _swin(bundle)
    width, depths, heads = model.sizes
    classes = bundle.networks["head"]["num_classes"] if "head" in bundle.networks else 0
    window = _plain(model.windows)
    arguments: dict[str, Any] = {
        "img_size": list(bundle.image_size),
        "patch_size": model.patch,
        "in_chans": bundle.channels,
        "embed_dim": width,
        "depths": list(depths),
        "num_heads": list(heads),
        "window_size": window
        if isinstance(window, int)
        else [list(w) if isinstance(w, tuple) else w for w in window],
        "mlp_ratio": model.mlp_ratio,
        "qkv_bias": model.qkv_bias,
    }
    if model.version == 2:
        arguments["pretrained_window_sizes"] = [side[0] if side else 0 for side in model.trained_windows]
    return {
        "architecture": bundle.options.get("architecture", _TIMM_NAMES[model.version]),
        "num_classes": classes,
        "num_features": width * 2 ** (len(depths) - 1),
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [bundle.channels, *bundle.image_size],
            "num_classes": classes,
            "mean": list(IMAGENET[0]),
            "std": list(IMAGENET[1]),
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        },
    }


def _read_original(version: int, config: Config | None, shapes: Shapes, given: Mapping[str, Any]) -> Bundle:
    del config
    encoder, channels = _from_shapes(shapes, _ORIGINAL, version)
    depths = _depths(shapes, _ORIGINAL)
    window = given.get("window") or _table_windows(shapes, _ORIGINAL, depths)
    trained = given.get("trained_window")
    if window is None or (version == 2 and trained is None):
        raise UserError(
            "This Swin file does not say for which windows it is. Give window=16, and for version 2 "
            "trained_window=12 (the windows before fine-tuning at another size; 0 for the same)."
        )
    encoder["window"] = _plain(window)
    if trained:
        encoder["trained_window"] = _plain(trained if isinstance(trained, int) else list(trained))
    mask = shapes.get("layers.0.blocks.1.attn_mask")
    side = pair(encoder["window"] if isinstance(encoder["window"], int) else encoder["window"][0])
    # the mask of the first stage counts its windows; without one the authors' images have 32 pixels a window
    count = math.isqrt(mask[0]) * encoder["patch"] if mask else 32
    size = given.get("image_size") or tuple(count * length for length in side)
    networks: dict[str, Any] = {"encoder": encoder}
    if "head.weight" in shapes:
        networks["head"] = linear_head(shapes["head.weight"][0])
    return Bundle(networks, pair(size), channels, _present_buffers(shapes))


def _hf_family(version: int) -> Family:
    kind = "swin" if version == 1 else "swinv2"
    return Family(
        f"hf/{kind}",
        lambda config, shapes: config is not None and config.get("model_type") == kind,
        _read_hf,
        lambda bundle: _rules(bundle, hf_naming(_hf_prefix(bundle))),
        lambda bundle: _buffers(bundle, hf_naming(_hf_prefix(bundle))),
        _hf_config,
        encoders=("swin",),
    )


def _timm_family(version: int) -> Family:
    return Family(
        "timm/swin" if version == 1 else "timm/swinv2",
        lambda config, shapes: _timm_like(shapes, version) and not _at_end(shapes),
        lambda config, shapes, given: _read_timm(version, config, shapes, given),
        lambda bundle: _rules(bundle, _TIMM),
        lambda bundle: _buffers(bundle, _TIMM),
        _timm_config,
        encoders=("swin",),
    )


def _original_family(version: int) -> Family:
    return Family(
        "original/swin" if version == 1 else "original/swinv2",
        lambda config, shapes: _timm_like(shapes, version) and _at_end(shapes),
        lambda config, shapes, given: _read_original(version, config, shapes, given),
        lambda bundle: _rules(bundle, _ORIGINAL),
        lambda bundle: _buffers(bundle, _ORIGINAL),
        encoders=("swin",),
    )


FAMILIES = tuple(family(version) for family in (_hf_family, _timm_family, _original_family) for version in (1, 2))
