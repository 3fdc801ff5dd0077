"""AdamW, LARS and SGD with parameter groups, built from a recipe's fields."""

from collections.abc import Mapping, Sequence
from typing import Any

import optax

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build
from vfm_jax.core.trees import map_named
from vfm_jax.optim.groups import LeafSettings, leaf_settings
from vfm_jax.optim.schedules import Schedule
from vfm_jax.optim.transforms import (
    add_weight_decay,
    clip_by_global_norm,
    scale_by_adam,
    scale_by_lr_scale,
    scale_by_trust_ratio,
)

Groups = Sequence[Mapping[str, Any]]


def adamw(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay, which the learning rate multiplies as in PyTorch and optax.

    Reference: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017 (arXiv:1711.05101).

    Args:
        params: arrays or their shapes.
        schedule: step -> learning rate.
        path: of the config dict, for messages.
        b1: memory of the first moment, in [0, 1).
        b2: memory of the second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: of groups that name none.
        groups: tuple of dicts with the fields of `groups.Group`; by default biases and scales do not decay.
        layer_decay: factor of the learning rate from one encoder layer to the one below it.
        clip_norm: gradients of a larger global norm are scaled down to it.
    """
    _check_share(f"{path}.b1", b1)
    _check_share(f"{path}.b2", b2)
    leaves = leaf_settings(params, groups, weight_decay=weight_decay, layer_decay=layer_decay, path=path)
    return _assemble(
        params,
        leaves,
        clip_norm,
        path,
        scale_by_adam(b1=b1, b2=b2, eps=eps),
        add_weight_decay(leaves),
        scale_by_lr_scale(leaves),
        optax.scale_by_learning_rate(schedule),
    )


def lars(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust_coefficient: float = 0.001,
    classic_momentum: bool = False,
    nesterov: bool = False,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
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
        weight_decay: added to the gradient before its norm is taken; of groups that name none.
        trust_coefficient: step length as a share of the leaf's norm, at learning rate 1.
        classic_momentum: the learning rate enters the momentum (SimCLR's code); otherwise it multiplies the momentum
            (MAE, MoCo v3, Barlow Twins). The two differ while the learning rate changes.
        nesterov: Nesterov's momentum.
        groups: tuple of dicts with the fields of `groups.Group`.
        layer_decay: factor of the learning rate from one encoder layer to the one below it.
        clip_norm: gradients of a larger global norm are scaled down to it.
    """
    _check_share(f"{path}.momentum", momentum)
    leaves = leaf_settings(
        params, groups, weight_decay=weight_decay, layer_decay=layer_decay, adaptive=True, path=path
    )
    trace = optax.trace(decay=momentum, nesterov=nesterov)
    rate = optax.chain(scale_by_lr_scale(leaves), optax.scale_by_learning_rate(schedule))
    return _assemble(
        params,
        leaves,
        clip_norm,
        path,
        add_weight_decay(leaves),
        scale_by_trust_ratio(leaves, trust_coefficient),
        *((rate, trace) if classic_momentum else (trace, rate)),
    )


def sgd(
    params: Any,
    schedule: Schedule,
    path: str,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    groups: Groups | None = None,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Stochastic gradient descent with momentum, m ← momentum · m + g, p ← p - lr · m (PyTorch's form).

    Args:
        params: arrays or their shapes.
        schedule: step -> learning rate.
        path: of the config dict, for messages.
        momentum: memory of the momentum, in [0, 1).
        nesterov: Nesterov's momentum.
        weight_decay: added to the gradient; of groups that name none.
        groups: tuple of dicts with the fields of `groups.Group`; by default biases and scales do not decay.
        layer_decay: factor of the learning rate from one encoder layer to the one below it.
        clip_norm: gradients of a larger global norm are scaled down to it.
    """
    _check_share(f"{path}.momentum", momentum)
    leaves = leaf_settings(params, groups, weight_decay=weight_decay, layer_decay=layer_decay, path=path)
    return _assemble(
        params,
        leaves,
        clip_norm,
        path,
        add_weight_decay(leaves),
        optax.trace(decay=momentum, nesterov=nesterov),
        scale_by_lr_scale(leaves),
        optax.scale_by_learning_rate(schedule),
    )


OPTIMIZERS = {"adamw": adamw, "lars": lars, "sgd": sgd}


def make_optimizer(
    params: Any, spec: Mapping[str, Any], schedule: Schedule, *, where: str = "config.optimizer"
) -> optax.GradientTransformation:
    """The optimizer that `spec` names, for parameters of these names.

    Its state is float32, and the name of every moment ends in the name of its parameter. Frozen leaves (a group with
    `lr_scale=0`) have neither state nor update, and no part in `clip_norm`; under `jit` the gradients of leaves that
    nothing else uses are not even computed.

    Args:
        params: arrays or their shapes.
        spec: `name` and keywords of an entry of `OPTIMIZERS`.
        schedule: step -> learning rate.
        where: path of `spec`, for messages.

    Raises:
        UserError: an unknown name or field; a value out of range; a leaf without a group, a group without leaves.
    """
    return build(OPTIMIZERS, spec, where, params=params, schedule=schedule, path=where)


def _assemble(
    params: Any,
    leaves: Mapping[str, LeafSettings],
    clip_norm: float | None,
    path: str,
    *rules: optax.GradientTransformation,
) -> optax.GradientTransformation:
    """The chain of `rules`, after clipping, on the leaves that are not frozen."""
    if clip_norm is not None:
        if clip_norm <= 0:
            raise UserError(f"{path}.clip_norm is {clip_norm}; expected a positive norm, or None for no clipping.")
        rules = (clip_by_global_norm(clip_norm), *rules)
    trained = map_named(lambda name, _: leaves[name].lr_scale > 0, params)
    frozen = map_named(lambda name, _: leaves[name].lr_scale == 0, params)
    if not any(settings.lr_scale > 0 for settings in leaves.values()):
        raise UserError(f"{path}.groups freeze every leaf (lr_scale=0): nothing is left to train.")
    if all(settings.lr_scale > 0 for settings in leaves.values()):
        return optax.chain(*rules)
    return optax.chain(optax.masked(optax.chain(*rules), trained), optax.masked(optax.set_to_zero(), frozen))


def _check_share(field: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UserError(f"{field} is {value}; expected a number in [0, 1).")
