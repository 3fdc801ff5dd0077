"""Optimizers with parameter groups, built from a recipe's fields.

All of them share these fields:

    weight_decay  of groups that name none: a number or a schedule
    groups        tuple of dicts with the fields of `groups.Group`; by default biases and scales do not decay
    layer_decay   factor of the learning rate from one encoder layer to the one below it: `groups.layer_scales`
    clip_norm     gradients of a larger norm are scaled down to it
    clip_over     whose gradients are clipped together: "all", each "network" (DINOv2), each "leaf" (DINO)
    sam_radius    sharpness-aware minimization with this radius: `sharpness.sharpness_aware`, two gradients a step

The learning rate multiplies the decay everywhere, as in PyTorch and optax. A paper whose decay is multiplied by the
schedule's relative factor alone (big_vision, AIMv2's "fully decoupled" one) has its number divided by the highest
learning rate here, which is arithmetic in the recipe: `weight_decay=1e-4 / c.schedule.base`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build, nearest
from vfm_jax.core.trees import map_named, named_leaves
from vfm_jax.optim.adafactor import average_updates, scale_by_factored_rms
from vfm_jax.optim.groups import LeafSettings, leaf_settings
from vfm_jax.optim.muon import matrix_axes, scale_by_muon
from vfm_jax.optim.schedules import Schedule
from vfm_jax.optim.sharpness import sharpness_aware
from vfm_jax.optim.transforms import (
    add_momentum,
    add_weight_decay,
    clip_by_norm,
    hold_frozen,
    scale_by_adam,
    scale_by_rate,
    scale_by_trust_ratio,
)

Groups = Sequence[Mapping[str, Any]]
Decay = float | Schedule
DTYPES = ("float32", "bfloat16")
# Kernels at the ends of a network: the first sees pixels, the last gives logits, and Muon is for those between.
NOT_MUON = r"(^|/)(patch_embedding|stem|logits|prototypes|pixels)/"


def adamw(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum_dtype: str = "float32",
    weight_decay: Decay = 0.0,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    clip_over: str = "all",
    sam_radius: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay.

    Reference: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017 (arXiv:1711.05101).

    Args:
        params: arrays or their shapes.
        schedule: step -> learning rate.
        path: of the config dict, for messages.
        b1: memory of the first moment, in [0, 1).
        b2: memory of the second moment, in [0, 1).
        eps: added to the root of the second moment.
        momentum_dtype: of the first moment; "bfloat16" in big_vision's recipes.
        weight_decay: from this field on, all optimizers share them.
    """
    _check_share(f"{path}.b1", b1)
    _check_share(f"{path}.b2", b2)
    _check_dtype(f"{path}.momentum_dtype", momentum_dtype)
    shared: dict[str, Any] = dict(layer_decay=layer_decay, clip_norm=clip_norm, clip_over=clip_over)
    leaves = leaf_settings(params, groups, weight_decay=weight_decay, path=path, **shared)
    rules = (
        scale_by_adam(b1=b1, b2=b2, eps=eps, momentum_dtype=momentum_dtype),
        add_weight_decay(leaves),
        scale_by_rate(leaves, schedule),
    )
    return _assemble(params, leaves, sam_radius, path, *rules)


def lamb(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    momentum_dtype: str = "float32",
    weight_decay: Decay = 0.0,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = 1.0,
    clip_over: str = "all",
    sam_radius: float | None = None,
) -> optax.GradientTransformation:
    """AdamW whose step in each leaf is the learning rate times the leaf's norm.

    As timm and NVIDIA's apex have it: gradients are clipped to norm 1, and leaves that do not decay keep Adam's step.

    Reference: You et al., Large Batch Optimization for Deep Learning, 2019 (arXiv:1904.00962), Algorithm 2.

    Args:
        params: arrays or their shapes.
        schedule: step -> learning rate.
        path: of the config dict, for messages.
        b1: memory of the first moment, in [0, 1).
        b2: memory of the second moment, in [0, 1).
        eps: added to the root of the second moment.
        momentum_dtype: of the first moment.
        weight_decay: from this field on, all optimizers share them.
    """
    _check_share(f"{path}.b1", b1)
    _check_share(f"{path}.b2", b2)
    _check_dtype(f"{path}.momentum_dtype", momentum_dtype)
    shared: dict[str, Any] = dict(layer_decay=layer_decay, clip_norm=clip_norm, clip_over=clip_over)
    leaves = leaf_settings(params, groups, weight_decay=weight_decay, adaptive=True, path=path, **shared)
    leaves = {name: s._replace(trust_ratio=s.trust_ratio and bool(s.weight_decay)) for name, s in leaves.items()}
    rules = (
        scale_by_adam(b1=b1, b2=b2, eps=eps, momentum_dtype=momentum_dtype),
        add_weight_decay(leaves),
        scale_by_trust_ratio(leaves, 1.0),
        scale_by_rate(leaves, schedule),
    )
    return _assemble(params, leaves, sam_radius, path, *rules)


def lion(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: Decay = 0.0,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    clip_over: str = "all",
    sam_radius: float | None = None,
) -> optax.GradientTransformation:
    """Steps of equal size along the sign of an average of momentum and gradient.

    Reference: Chen et al., Symbolic Discovery of Optimization Algorithms, 2023 (arXiv:2302.06675), Program 1.

    Args:
        params: arrays or their shapes.
        schedule: step -> learning rate; a third to a tenth of AdamW's, with a decay as many times larger (Sec. 5).
        path: of the config dict, for messages.
        b1: share of the momentum in the step, in [0, 1).
        b2: memory of the momentum, in [0, 1).
        weight_decay: from this field on, all optimizers share them.
    """
    _check_share(f"{path}.b1", b1)
    _check_share(f"{path}.b2", b2)
    shared: dict[str, Any] = dict(layer_decay=layer_decay, clip_norm=clip_norm, clip_over=clip_over)
    leaves = leaf_settings(params, groups, weight_decay=weight_decay, path=path, **shared)
    rules = (
        optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=jnp.float32),
        add_weight_decay(leaves),
        scale_by_rate(leaves, schedule),
    )
    return _assemble(params, leaves, sam_radius, path, *rules)


def adafactor(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    momentum: float = 0.9,
    momentum_dtype: str = "bfloat16",
    decay_exponent: float = 0.8,
    decay_cap: float = 0.999,
    min_size: int = 32,
    eps: float = 1e-30,
    weight_decay: Decay = 0.0,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    clip_over: str = "all",
    sam_radius: float | None = None,
) -> optax.GradientTransformation:
    """Adam in half the memory or less: a factored second moment, and a first one in bfloat16 (big_vision's form).

    The learning rate does not follow the parameters' size, updates are not clipped, and the momentum's bias is not
    corrected.

    Reference: Shazeer and Stern, Adafactor, 2018 (arXiv:1804.04235); Zhai et al., Scaling Vision Transformers, 2021
    (arXiv:2106.04560), Sec. 3.4.

    Args:
        params: arrays or their shapes.
        schedule: step -> learning rate.
        path: of the config dict, for messages.
        momentum: memory of the first moment, in [0, 1).
        momentum_dtype: it is kept in.
        decay_exponent: memory of the second moment at update t is 1 - t^-exponent, ...
        decay_cap: ... at most this.
        min_size: leaves whose second longest axis is shorter keep the whole second moment.
        eps: added to squared gradients.
        weight_decay: from this field on, all optimizers share them.
    """
    _check_share(f"{path}.momentum", momentum)
    _check_dtype(f"{path}.momentum_dtype", momentum_dtype)
    shared: dict[str, Any] = dict(layer_decay=layer_decay, clip_norm=clip_norm, clip_over=clip_over)
    leaves = leaf_settings(params, groups, weight_decay=weight_decay, path=path, **shared)
    rules = (
        scale_by_factored_rms(decay_exponent=decay_exponent, decay_cap=decay_cap, min_size=min_size, eps=eps),
        average_updates(momentum=momentum, dtype=momentum_dtype),
        add_weight_decay(leaves),
        scale_by_rate(leaves, schedule),
    )
    return _assemble(params, leaves, sam_radius, path, *rules)


def muon(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    iterations: int = 5,
    dtype: str = "bfloat16",
    adamw: str = NOT_MUON,
    adamw_lr_scale: float = 0.015,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-10,
    weight_decay: Decay = 0.0,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    clip_over: str = "all",
    sam_radius: float | None = None,
) -> optax.GradientTransformation:
    """Kernels inside the networks move along an orthogonal matrix near their momentum; all else is AdamW's.

    AdamW has the leaves that are no matrix (biases, scales, tokens, tables) and those that `adamw` names. Query, key
    and value are three matrices. The defaults are the authors', whose rates are 0.02, and 3e-4 for AdamW.

    Reference: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024
    (https://kellerjordan.github.io/posts/muon/), as in KellerJordan/Muon.

    Args:
        params: arrays or their shapes.
        schedule: step -> learning rate of Muon: the spectral norm of a step.
        path: of the config dict, for messages.
        momentum: memory of the momentum, in [0, 1).
        nesterov: the momentum as it will be after this gradient once more.
        iterations: of Newton and Schulz.
        dtype: of these iterations.
        adamw: regular expression over leaf names: kernels that AdamW takes.
        adamw_lr_scale: AdamW's learning rate as a share of Muon's.
        b1: AdamW's memory of the first moment.
        b2: AdamW's memory of the second moment.
        eps: AdamW's.
        weight_decay: from this field on, all optimizers share them.
    """
    for field, share in (("momentum", momentum), ("b1", b1), ("b2", b2)):
        _check_share(f"{path}.{field}", share)
    _check_dtype(f"{path}.dtype", dtype)
    shared: dict[str, Any] = dict(layer_decay=layer_decay, clip_norm=clip_norm, clip_over=clip_over)
    leaves = leaf_settings(params, groups, weight_decay=weight_decay, path=path, **shared)
    matrices = {
        name
        for name, leaf in named_leaves(params).items()
        if not re.search(adamw, name) and matrix_axes(name, leaf.shape) is not None
    }
    leaves = {
        name: settings if name in matrices else settings._replace(lr_scale=adamw_lr_scale * settings.lr_scale)
        for name, settings in leaves.items()
    }
    rules = (
        optax.masked(
            scale_by_muon(momentum=momentum, nesterov=nesterov, iterations=iterations, dtype=dtype),
            lambda tree: map_named(lambda name, _: name in matrices, tree),
        ),
        optax.masked(
            scale_by_adam(b1=b1, b2=b2, eps=eps),
            lambda tree: map_named(lambda name, _: name not in matrices, tree),
        ),
        add_weight_decay(leaves),
        scale_by_rate(leaves, schedule),
    )
    return _assemble(params, leaves, sam_radius, path, *rules)


def lars(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    momentum: float = 0.9,
    momentum_dtype: str = "float32",
    trust_coefficient: float = 0.001,
    clip_trust: bool = False,
    classic_momentum: bool = False,
    nesterov: bool = False,
    weight_decay: Decay = 0.0,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    clip_over: str = "all",
    sam_radius: float | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum whose step in each leaf is proportional to the leaf's norm.

    Biases and scales neither decay nor adapt by default, as in SimCLR, MAE and MoCo v3; Barlow Twins' and others'
    choices are groups with `weight_decay` and `trust_ratio`. `optax.lars` is the form with `classic_momentum` only.

    Reference: You et al., Large Batch Training of Convolutional Networks, 2017 (arXiv:1708.03888).

    Args:
        params: arrays or their shapes.
        schedule: step -> learning rate.
        path: of the config dict, for messages.
        momentum: memory of the momentum, in [0, 1).
        momentum_dtype: it is kept in.
        trust_coefficient: step length as a share of the leaf's norm, at learning rate 1.
        clip_trust: the rate of a leaf is the smaller of its trust ratio and the learning rate, in place of their
            product (LARC).
        classic_momentum: the learning rate enters the momentum (SimCLR's code); otherwise it multiplies the momentum
            (MAE, MoCo v3, Barlow Twins). The two differ while the learning rate changes.
        nesterov: Nesterov's momentum.
        weight_decay: added to the gradient before its norm is taken; from this field on all share them.
    """
    _check_share(f"{path}.momentum", momentum)
    _check_dtype(f"{path}.momentum_dtype", momentum_dtype)
    shared: dict[str, Any] = dict(layer_decay=layer_decay, clip_norm=clip_norm, clip_over=clip_over)
    leaves = leaf_settings(params, groups, weight_decay=weight_decay, adaptive=True, path=path, **shared)
    trace = add_momentum(momentum=momentum, nesterov=nesterov, dtype=momentum_dtype)
    rate = scale_by_rate(leaves, schedule)
    rules = (
        add_weight_decay(leaves),
        scale_by_trust_ratio(leaves, trust_coefficient, schedule if clip_trust else None),
        *((rate, trace) if classic_momentum else (trace, rate)),
    )
    return _assemble(params, leaves, sam_radius, path, *rules)


def sgd(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    momentum: float = 0.9,
    momentum_dtype: str = "float32",
    nesterov: bool = False,
    weight_decay: Decay = 0.0,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    clip_over: str = "all",
    sam_radius: float | None = None,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum, m ← momentum · m + g, p ← p - lr · m (PyTorch's form).

    Args:
        params: arrays or their shapes.
        schedule: step -> learning rate.
        path: of the config dict, for messages.
        momentum: memory of the momentum, in [0, 1).
        momentum_dtype: it is kept in; "bfloat16" in big_vision's recipes.
        nesterov: Nesterov's momentum.
        weight_decay: added to the gradient; from this field on all share them.
    """
    _check_share(f"{path}.momentum", momentum)
    _check_dtype(f"{path}.momentum_dtype", momentum_dtype)
    shared: dict[str, Any] = dict(layer_decay=layer_decay, clip_norm=clip_norm, clip_over=clip_over)
    leaves = leaf_settings(params, groups, weight_decay=weight_decay, path=path, **shared)
    rules = (
        add_weight_decay(leaves),
        add_momentum(momentum=momentum, nesterov=nesterov, dtype=momentum_dtype),
        scale_by_rate(leaves, schedule),
    )
    return _assemble(params, leaves, sam_radius, path, *rules)


OPTIMIZERS = {
    "adafactor": adafactor,
    "adamw": adamw,
    "lamb": lamb,
    "lars": lars,
    "lion": lion,
    "muon": muon,
    "sgd": sgd,
}


def make_optimizer(
    params: Any,
    spec: Mapping[str, Any],
    schedule: Schedule,
    *,
    freeze_steps: Mapping[str, int] = {},
    where: str = "config.optimizer",
) -> optax.GradientTransformation:
    """The optimizer that `spec` names, for parameters of these names.

    Its state is float32, but for a first moment asked for in bfloat16, and the name of every moment ends in the name
    of its parameter. Frozen leaves (a group with `lr_scale=0`) have neither state nor update, and no part in
    `clip_norm`; under `jit` the gradients of leaves that nothing else uses are not even computed.

    Args:
        params: arrays or their shapes.
        spec: `name` and keywords of an entry of `OPTIMIZERS`.
        schedule: step -> learning rate.
        freeze_steps: pattern -> number of first updates that do not move the leaves whose names it matches; a group
            may hold them longer (`groups.Group.freeze_steps`).
        where: path of `spec`, for messages.

    Raises:
        UserError: an unknown name or field; a value out of range; a leaf without a group, a group without leaves.
    """
    update = build(OPTIMIZERS, spec, where, params=params, schedule=schedule, path=where)
    held = {
        name: max((steps for pattern, steps in freeze_steps.items() if re.search(pattern, name)), default=0)
        for name in named_leaves(params)
    }
    return optax.chain(update, hold_frozen(held)) if any(held.values()) else update


def _assemble(
    params: Any,
    leaves: Mapping[str, LeafSettings],
    sam_radius: float | None,
    path: str,
    *rules: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """The chain of `rules` on the leaves that are not frozen, after clipping, at the gradient that SAM takes."""
    if any(settings.clip for settings in leaves.values()):
        rules = (clip_by_norm(leaves), *rules)
    held = {name: settings.freeze_steps for name, settings in leaves.items()}
    if any(held.values()):
        rules = (*rules, hold_frozen(held))
    if not any(settings.lr_scale > 0 for settings in leaves.values()):
        raise UserError(f"{path}.groups freeze every leaf (lr_scale=0): nothing is left to train.")
    update = optax.chain(*rules)
    if any(settings.lr_scale == 0 for settings in leaves.values()):
        trained = map_named(lambda name, _: leaves[name].lr_scale > 0, params)
        frozen = map_named(lambda name, _: leaves[name].lr_scale == 0, params)
        update = optax.chain(optax.masked(update, trained), optax.masked(optax.set_to_zero(), frozen))
    if sam_radius is None:
        return update
    if sam_radius <= 0:
        raise UserError(f"{path}.sam_radius is {sam_radius}; expected a positive length, such as 0.05, or None.")
    return sharpness_aware(update, sam_radius, lambda name: leaves[name].lr_scale > 0)


def _check_share(field: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UserError(f"{field} is {value}; expected a number in [0, 1).")


def _check_dtype(field: str, value: str) -> None:
    if value not in DTYPES:
        raise UserError(f"{field} is {value!r}.{nearest(value, DTYPES)} Known: {', '.join(DTYPES)}.")
