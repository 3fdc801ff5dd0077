"""Parameter groups: which leaves decay, which learn slower, which not at all; chosen by patterns over leaf names."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import check_fields, nearest
from vfm_jax.core.trees import check_used, label_by_rules, named_leaves
from vfm_jax.optim.schedules import Schedule


class Group(NamedTuple):
    """Settings of the leaves whose name a pattern finds (`re.search`); a leaf belongs to its first match.

    Attributes:
        match: regular expression over leaf names.
        weight_decay: instead of the optimizer's.
        lr_scale: multiplies the learning rate; 0 freezes the leaves, which then have no optimizer state.
        trust_ratio: LARS and LAMB only: the update is scaled to the norm of the leaf.
        freeze_steps: the first so many updates do not move the leaves (`freeze_epochs`, ... in a recipe), DINO's and
            SwAV's last layer. Their moments follow the gradients meanwhile, as in DINOv2, whose rate is 0 then; DINO
            v1 drops the gradients, so there the moments, and Adam's count of steps, begin with the first move.
        clip_norm: instead of the optimizer's: the norm of the group's gradients taken together is at most this.
        schedule: a learning rate of the group's own (SimSiam's predictor keeps the first one).
    """

    match: str
    weight_decay: float | Schedule | None = None
    lr_scale: float = 1.0
    trust_ratio: bool = True
    freeze_steps: int = 0
    clip_norm: float | None = None
    schedule: Schedule | None = None


class LeafSettings(NamedTuple):
    """What the optimizer does with one leaf.

    Attributes:
        weight_decay: a number, or a schedule.
        lr_scale: of the group and the layer; 0 for a frozen leaf.
        trust_ratio: whether the update is scaled to the norm of the leaf.
        freeze_steps: updates that do not move it.
        clip: (name, largest norm) of the leaves whose gradients are clipped together with this one's; None for none.
        schedule: of the learning rate, where it is not the optimizer's.
    """

    weight_decay: float | Schedule = 0.0
    lr_scale: float = 1.0
    trust_ratio: bool = True
    freeze_steps: int = 0
    clip: tuple[str, float] | None = None
    schedule: Schedule | None = None


# Biases, the scales of norms and LayerScale's gamma: the one-dimensional parameters of every network here. And the
# temperature and offset of image-text methods, which are numbers.
DEFAULT_GROUPS = (
    Group(r"(^|/)(bias|scale|gamma|logit_scale|logit_bias)$", weight_decay=0.0, trust_ratio=False),
    Group(".*"),
)

# Whose gradients are clipped together: leaf name -> a name that they share.
CLIP_OVER = {"all": lambda name: "", "network": lambda name: name.split("/")[0], "leaf": lambda name: name}

BLOCK = re.compile(r"^encoder/(?:.*?/)??(?:block_(\d+)/|stage_(\d+)/(?:block_(\d+)/)?)")
EMBEDDING = re.compile(
    r"^encoder/(patch_embedding/|stem/|stem_norm/|norm_patches/|norm_input/|register"
    r"|(class_token|distillation_token|mask_token|positions|prefix_positions)$)"
)


def leaf_settings(
    params: Any,
    groups: Sequence[Mapping[str, Any]] | None = None,
    *,
    weight_decay: float | Schedule = 0.0,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    clip_over: str = "all",
    adaptive: bool = False,
    path: str = "config.optimizer",
) -> dict[str, LeafSettings]:
    """Settings by leaf name: those of the leaf's group, the rate times the scale of its layer.

    Args:
        params: arrays or their shapes; only names are read.
        groups: fields of `Group`, in order of precedence; None for `DEFAULT_GROUPS`, whose patterns may be idle.
        weight_decay: of groups that name none.
        layer_decay: see `layer_scales`.
        clip_norm: of the leaves of all groups that name none.
        clip_over: whose gradients `clip_norm` bounds together: "all"; each "network" (DINOv2); each "leaf" (DINO).
        adaptive: groups may set `trust_ratio`.
        path: of the config dict, for messages.

    Raises:
        UserError: an unknown field or value; a leaf without a group; a group without leaves.
    """
    names = list(named_leaves(params))
    if groups is None:
        chosen: Sequence[Group] = DEFAULT_GROUPS
    else:
        chosen = [_read_group(fields, adaptive, f"{path}.groups[{i}]") for i, fields in enumerate(groups)]
    labels = named_leaves(label_by_rules(params, [group.match for group in chosen], f"{path}.groups"))
    if groups is not None:
        check_used([group.match for group in chosen], names, f"{path}.groups")
        for i, group in enumerate(chosen):
            if i not in labels.values() and group.match != ".*":  # a closing ".*" may have nothing left to catch
                raise UserError(
                    f"{path}.groups[{i}]: every leaf that {group.match!r} matches is taken by an earlier group."
                    " The first match wins: put the narrower pattern first."
                )
    scales = layer_scales(names, layer_decay, path) if layer_decay is not None else {}
    if clip_over not in CLIP_OVER:
        raise UserError(
            f"{path}.clip_over is {clip_over!r}.{nearest(clip_over, CLIP_OVER)} Known: {', '.join(CLIP_OVER)}."
        )
    _check_norm(clip_norm, path)

    def one(name: str) -> LeafSettings:
        group = chosen[labels[name]]
        decay = weight_decay if group.weight_decay is None else group.weight_decay
        scale = group.lr_scale * scales.get(name, 1.0)
        clip = None if clip_norm is None else (CLIP_OVER[clip_over](name), clip_norm)
        if group.clip_norm is not None:
            clip = (f"group {labels[name]}", group.clip_norm)
        return LeafSettings(decay, scale, group.trust_ratio, group.freeze_steps, clip, group.schedule)

    return {name: one(name) for name in names}


def layer_scales(names: Iterable[str], layer_decay: float, path: str = "config.optimizer") -> dict[str, float]:
    """The learning-rate scale of each leaf: layer_decay^(depth + 1 - layer), smallest at the input.

    Layer 0 is the encoder's embedding (patches or stem, positions, class, register and mask token), layer i + 1 its
    block i, and layer depth + 1, of scale 1, all else: the last norm, pooling, heads, other networks. The depth is
    read off the names of the encoder's blocks.

    In a net of stages (stage_2/block_0) the blocks are counted on across stages, and what brings a map to a stage
    (downsample, merge) goes with the stage's first block, as timm groups them. The authors of ConvNeXt make one layer
    of three blocks, 12 in all (arXiv:2201.03545, App. A.2): of a factor of theirs, take about the third root.

    Reference: He et al., 2021 (arXiv:2111.06377), Table 9, as in the authors' fine-tuning code; Clark et al., 2020.

    Raises:
        UserError: the factor is not in (0, 1]; no leaf is named like "encoder/transformer/block_3/...".
    """
    if not 0.0 < layer_decay <= 1.0:
        raise UserError(f"{path}.layer_decay is {layer_decay}; expected a factor in (0, 1], such as 0.65.")
    names = list(names)
    places = {name: _place(found) for name in names if (found := BLOCK.search(name))}
    if not places:
        raise UserError(
            f"{path}.layer_decay needs an encoder made of blocks (leaves named encoder/.../block_0/...);"
            f" leaves here are named like {', '.join(names[:3])}. Remove layer_decay for this network."
        )
    depths: dict[int, int] = {}
    for stage, block in places.values():
        depths[stage] = max(depths.get(stage, 0), block + 1)
    blocks = {
        name: sum(depth for before, depth in depths.items() if before < stage) + block
        for name, (stage, block) in places.items()
    }
    top = max(blocks.values()) + 2

    def layer(name: str) -> int:
        if name in blocks:
            return blocks[name] + 1
        return 0 if EMBEDDING.search(name) else top

    return {name: layer_decay ** (top - layer(name)) for name in names}


def _place(found: re.Match[str]) -> tuple[int, int]:
    """Stage and block of a leaf; a net without stages is of one."""
    block, stage, block_of_stage = (int(number or 0) for number in found.groups())
    return (stage, block_of_stage) if found.group(2) else (0, block)


def _read_group(fields: Mapping[str, Any], adaptive: bool, where: str) -> Group:
    check_fields(Group, fields, where, given=() if adaptive else ("trust_ratio",))
    group = Group(**fields)
    try:
        re.compile(group.match)
    except re.error as error:
        raise UserError(f"{where}.match is {group.match!r}, which is no regular expression: {error}.") from None
    numbers = (group.lr_scale, group.weight_decay, group.freeze_steps)
    if any(isinstance(number, int | float) and number < 0 for number in numbers):
        raise UserError(f"{where} ({group.match!r}): weight_decay, lr_scale and freeze_steps are zero or more.")
    _check_norm(group.clip_norm, where)
    return group


def _check_norm(clip_norm: float | None, where: str) -> None:
    if clip_norm is not None and clip_norm <= 0:
        raise UserError(f"{where}.clip_norm is {clip_norm}; expected a positive norm, or None for no clipping.")
