"""The ViT's leaves under any naming: a table of names per origin, and the rules that follow from it."""

import math
from collections.abc import Mapping
from typing import Any

from vfm_jax.core.errors import UserError
from vfm_jax.models.vit import SIZES, ViT
from vfm_jax.weights.rules import Bundle, Rule, Shapes

# A naming gives the foreign name of each part; "{i}" is the number of the block. Tokens, positions and scales are
# tensors; the others are modules with a weight and mostly a bias. What a model lacks is not asked for.
Names = Mapping[str, str]

SEPARATE_QKV = "three (heads e) d -> d three heads e"
FUSED_QKV = "(three heads e) d -> d three heads e"

# Heads of 64 channels, but for the widest (the papers' and timm's models).
HEADS_BY_WIDTH = {192: 3, 256: 4, 320: 5, 384: 6, 512: 8, 640: 10, 768: 12, 832: 13, 896: 14, 1024: 16}
HEADS_BY_WIDTH |= {1152: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16, 4096: 32}


class _Known(dict):
    """Names of which a missing one says what the naming has no place for."""

    def __missing__(self, part: str) -> str:
        raise UserError(f"it has no place for {part}")


def dense_rules(leaf: str, module: str, *, bias: bool = True) -> list[Rule]:
    """A linear layer; theirs is (outputs, inputs)."""
    rules = [Rule(f"{leaf}/kernel", (f"{module}.weight",), "o i -> i o")]
    return [*rules, Rule(f"{leaf}/bias", (f"{module}.bias",))] if bias else rules


def norm_rules(leaf: str, module: str, *, bias: bool = True) -> list[Rule]:
    """A layer norm, or an RMS norm (without bias)."""
    rules = [Rule(f"{leaf}/scale", (f"{module}.weight",))]
    return [*rules, Rule(f"{leaf}/bias", (f"{module}.bias",))] if bias else rules


def variant_of(width: int, depth: int, mlp_dim: int, heads: int, patch_size: int) -> dict[str, Any]:
    """Fields of a `ViT` for these sizes: a variant of the papers' where there is one."""
    for name, row in SIZES.items():
        if row == (width, depth, mlp_dim, heads):
            return {"variant": f"{name}/{patch_size}"}
    return {"variant": f"B/{patch_size}", "width": width, "depth": depth, "mlp_dim": mlp_dim, "heads": heads}


def square_grid(num_patches: int, what: str) -> tuple[int, int]:
    """Rows and columns of a square table.

    Raises:
        UserError: it is not square.
    """
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise UserError(
            f"{what} has {num_patches} positions, no square grid. Say for which image it is: image_size=(H, W)."
        )
    return side, side


def count_blocks(shapes: Shapes, name: str) -> int:
    """How many of `name` ("blocks.{i}.norm1.weight") there are, from 0 on."""
    depth = 0
    while name.format(i=depth) in shapes:
        depth += 1
    return depth


def vit(spec: Mapping[str, Any]) -> ViT:
    """The module of a recipe's network dict."""
    return ViT(**{k: v for k, v in spec.items() if k != "name"})


def vit_rules(
    spec: Mapping[str, Any], names: Names, image_size: tuple[int, int], role: str = "encoder"
) -> list[Rule]:
    """All leaves of a ViT.

    Args:
        spec: its network dict.
        names: of the parts, with their prefix.
        image_size: the images that the position table is for.
        role: what our names begin with.
    """
    model, names = vit(spec), _Known(names)
    rules = _embedding_rules(model, names, image_size, role)
    for i in range(model.sizes[1]):
        block = _Known({part: name.format(i=i) for part, name in names.items()})
        rules += block_rules(model, block, f"{role}/transformer/block_{i}")
    layer_norm = model.norm == "layer_norm"
    for part, wanted in {
        "norm": model.final_norm or model.norm_pooled,
        "class_norm": model.class_norm,
        "local_class_norm": model.local_class_norm,
    }.items():
        rules += norm_rules(f"{role}/{part}", names[part], bias=layer_norm) if wanted else []
    rules += _pooling_rules(model, names, role)
    if model.representation:
        rules += dense_rules(f"{role}/representation", names["representation"])
    if model.projection:
        rules.append(
            Rule(f"{role}/projection/kernel", (names["projection"],), names.get("projection:axes", "o i -> i o"))
        )
    return rules


def _embedding_rules(model: ViT, names: Names, image_size: tuple[int, int], role: str) -> list[Rule]:
    patch = (names["patch_embedding"] + ".weight",)
    axes = names.get("patch_embedding:axes", "d c h w -> h w c d")
    sizes = {"h": model.patch_size, "w": model.patch_size} if "(" in axes else {}
    rules = [Rule(f"{role}/patch_embedding/kernel", patch, axes, sizes)]
    if model.patch_bias:
        rules.append(Rule(f"{role}/patch_embedding/bias", (names["patch_embedding"] + ".bias",)))
    tokens = {
        "class_token": model.class_token,
        "distillation_token": model.distillation_token,
        "registers": model.registers > 0,
        "mask_token": model.mask_token,
    }
    for part, wanted in tokens.items():
        if wanted:
            plain = "1 r d -> r d" if part == "registers" else "1 1 d -> d"
            rules.append(Rule(f"{role}/{part}", (names[part],), names.get(f"{part}:axes", plain)))
    if model.positions == "learned":
        rows, columns = (side // model.patch_size for side in image_size)
        axes = names.get("positions:axes", "1 n d")
        table = axes.replace("n", "(h w)") + " -> h w d"
        split = axes.split().index("n")
        k = model.prefix_positions
        if k:
            rules.append(
                Rule(f"{role}/prefix_positions", (names["positions"],), f"{axes} -> n d", part=(split, 0, k))
            )
        part = (split, k, None) if k else None
        rules.append(Rule(f"{role}/positions", (names["positions"],), table, {"h": rows, "w": columns}, part))
    if model.norm_input:
        rules += norm_rules(f"{role}/norm_input", names["norm_input"], bias=model.norm == "layer_norm")
    if model.relative_positions == "shared":
        rules.append(Rule(f"{role}/relative_positions/table", (names["relative_positions"],)))
    return rules


def block_rules(model: ViT, names: Names, leaf: str) -> list[Rule]:
    """One block, with `names` for its number."""
    layer_norm = model.norm == "layer_norm"
    heads = {"heads": model.sizes[3]}
    rules = norm_rules(f"{leaf}/norm1", names["norm1"], bias=layer_norm)
    rules += qkv_rules(f"{leaf}/attention/qkv", names, heads, bias=model.qkv_bias, key_bias=model.key_bias)
    if model.qk_norm:
        rules += norm_rules(f"{leaf}/attention/q_norm", names["q_norm"], bias=layer_norm)
        rules += norm_rules(f"{leaf}/attention/k_norm", names["k_norm"], bias=layer_norm)
    if model.relative_positions == "block":
        rules.append(Rule(f"{leaf}/attention/relative_positions/table", (names["relative_positions"],)))
    out = names["out"]
    rules.append(Rule(f"{leaf}/attention/out/kernel", (f"{out}.weight",), "d (heads e) -> heads e d", heads))
    rules += [Rule(f"{leaf}/attention/out/bias", (f"{out}.bias",))] if model.out_bias else []
    rules += norm_rules(f"{leaf}/norm2", names["norm2"], bias=layer_norm)
    if model.mlp == "swiglu" and "gate_up" in names:  # one matrix, the gate's rows first
        hidden = model.sizes[2]
        for part, rows in {"gate": (0, 0, hidden), "up": (0, hidden, None)}.items():
            rules.append(Rule(f"{leaf}/mlp/{part}/kernel", (names["gate_up"] + ".weight",), "o i -> i o", part=rows))
            if model.mlp_bias:
                rules.append(Rule(f"{leaf}/mlp/{part}/bias", (names["gate_up"] + ".bias",), part=rows))
        parts = ("down",)
    else:
        parts = ("gate", "up", "down") if model.mlp == "swiglu" else ("up", "down")
    for part in parts:
        rules += dense_rules(f"{leaf}/mlp/{part}", names[part], bias=model.mlp_bias)
    if model.layer_scale is not None:
        rules += [Rule(f"{leaf}/{scale}/gamma", (names[scale],)) for scale in ("scale1", "scale2")]
    return rules


def qkv_rules(leaf: str, names: Names, heads: Mapping[str, int], *, bias: bool, key_bias: bool) -> list[Rule]:
    """Query, key and value: one matrix in the file ("qkv"), or three ("query", "key", "value")."""
    if "qkv" in names:
        fused = {**heads, "three": 3}
        suffix = names.get("qkv:suffix", ".")  # torch.nn.MultiheadAttention writes in_proj_weight
        kernel = Rule(f"{leaf}/kernel", (f"{names['qkv']}{suffix}weight",), FUSED_QKV, fused)
        if not bias:
            return [kernel]
        if "query_bias" not in names:
            theirs = (f"{names['qkv']}{suffix}bias",)
            return [kernel, Rule(f"{leaf}/bias", theirs, "(three heads e) -> three heads e", fused)]
        parts = tuple(names[f"{part}_bias"] for part in ("query", "key", "value"))
    else:
        separate = tuple(f"{names[part]}.weight" for part in ("query", "key", "value"))
        kernel = Rule(f"{leaf}/kernel", separate, SEPARATE_QKV, heads)
        if not bias:
            return [kernel]
        parts = tuple(f"{names[part]}.bias" for part in ("query", "key", "value"))
    theirs = parts if key_bias else (parts[0], None, parts[2])
    return [kernel, Rule(f"{leaf}/bias", theirs, "three (heads e) -> three heads e", heads)]


def _pooling_rules(model: ViT, names: Names, role: str) -> list[Rule]:
    if model.pooling not in ("attention", "attention_aim"):
        return []
    leaf, heads = f"{role}/pool", {"heads": model.sizes[3]}
    rules = [Rule(f"{leaf}/probe", (names["pool_probe"],), "1 1 d -> 1 d")]
    if model.pooling == "attention_aim":
        parts = (f"{names['pool_key']}.weight", f"{names['pool_value']}.weight")
        rules.append(Rule(f"{leaf}/key_value/kernel", parts, "two (heads e) d -> d two heads e", heads))
        if model.qkv_bias:
            biases = (f"{names['pool_key']}.bias", f"{names['pool_value']}.bias")
            rules.append(Rule(f"{leaf}/key_value/bias", biases, "two (heads e) -> two heads e", heads))
        rules.append(Rule(f"{leaf}/out/kernel", (names["pool_out"] + ".weight",), "d (heads e) -> heads e d", heads))
        return [*rules, Rule(f"{leaf}/out/bias", (names["pool_out"] + ".bias",))]
    if "pool_query" in names:  # a query of its own, key and value in one
        query, both = names["pool_query"], names["pool_key_value"]
        two = heads | {"two": 2}
        rules += [
            Rule(f"{leaf}/query/kernel", (f"{query}.weight",), "(heads e) d -> d heads e", heads),
            Rule(f"{leaf}/query/bias", (f"{query}.bias",), "(heads e) -> heads e", heads),
            Rule(f"{leaf}/key_value/kernel", (f"{both}.weight",), "(two heads e) d -> d two heads e", two),
            Rule(f"{leaf}/key_value/bias", (f"{both}.bias",), "(two heads e) -> two heads e", two),
        ]
    else:  # torch.nn.MultiheadAttention: all three in one
        width, three = model.sizes[0], names["pool_qkv"]
        first, rest = (0, 0, width), (0, width, None)
        two = heads | {"two": 2}
        rules += [
            Rule(f"{leaf}/query/kernel", (f"{three}_weight",), "(heads e) d -> d heads e", heads, first),
            Rule(f"{leaf}/key_value/kernel", (f"{three}_weight",), "(two heads e) d -> d two heads e", two, rest),
            Rule(f"{leaf}/query/bias", (f"{three}_bias",), "(heads e) -> heads e", heads, first),
            Rule(f"{leaf}/key_value/bias", (f"{three}_bias",), "(two heads e) -> two heads e", two, rest),
        ]
    out = names["pool_out"]
    rules.append(Rule(f"{leaf}/out/kernel", (f"{out}.weight",), "d (heads e) -> heads e d", heads))
    rules.append(Rule(f"{leaf}/out/bias", (f"{out}.bias",)))
    rules += norm_rules(f"{leaf}/norm", names["pool_norm"])
    rules += dense_rules(f"{leaf}/mlp/up", names["pool_up"])
    return rules + dense_rules(f"{leaf}/mlp/down", names["pool_down"])


def mae_decoder_rules(bundle: Bundle, block: Names, prefix: str) -> list[Rule]:
    """MAE's decoder; `block` names the parts of a block, `prefix` stands before the other names."""
    spec = bundle.networks["decoder"]
    patch_size = vit(bundle.networks["encoder"]).patch_size
    model = ViT(
        f"B/{patch_size}",
        spec["width"],
        spec["depth"],
        spec.get("mlp_dim") or int(spec["width"] * spec.get("mlp_ratio", 4.0)),
        spec["heads"],
        qkv_bias=spec.get("qkv_bias", True),
    )
    rows, columns = (side // patch_size for side in bundle.image_size)
    table, k = (f"{prefix}decoder_pos_embed",), spec.get("prefix_positions", 0)
    rules = [
        *dense_rules("decoder/embed", f"{prefix}decoder_embed"),
        Rule("decoder/mask_token", (f"{prefix}mask_token",), "1 1 d -> d"),
        *([Rule("decoder/prefix_positions", table, "1 n d -> n d", part=(1, 0, k))] if k else []),
        Rule("decoder/positions", table, "1 (h w) d -> h w d", {"h": rows, "w": columns}, (1, k, None)),
    ]
    for i in range(spec["depth"]):
        names = {part: name.format(i=i) for part, name in block.items()}
        rules += block_rules(model, names, f"decoder/transformer/block_{i}")
    rules += norm_rules("decoder/norm", f"{prefix}decoder_norm")
    return rules + dense_rules("decoder/pixels", f"{prefix}decoder_pred")


def linear_head(num_classes: int) -> dict[str, Any]:
    """A classifier on the pooled vector, as a recipe writes it."""
    return {"name": "linear_head", "num_classes": num_classes}


def head_rules(bundle: Bundle, modules: Mapping[str, str]) -> list[Rule]:
    """Classifiers, for those roles of `modules` (role -> foreign module) that the bundle has."""
    return [
        rule
        for role, module in modules.items()
        if role in bundle.networks
        for rule in dense_rules(f"{role}/logits", module)
    ]
