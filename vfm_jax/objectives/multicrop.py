"""Crops of several sizes: a student that sees them all, a teacher that sees the global ones, and how they agree.

Shared by the methods that assign views to prototypes: SwAV, DINO, iBOT and what came of them.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.keys import stream
from vfm_jax.core.types import Batch, Features, Measurements, Params
from vfm_jax.objectives.interface import (
    Extra,
    Variables,
    encode_views,
    init_network,
    project_views,
    view_keys,
    views_of,
)
from vfm_jax.objectives.teacher import start_teacher


class Crops(NamedTuple):
    """Something of the global and of the local crops: images (b v h w c), or Features of (b · v).

    Attributes:
        whole: of the global crops.
        local: of the local ones; None where the recipe makes none.
    """

    whole: Any
    local: Any = None


def crops_of(batch: Batch, method: str, num_global: int = 2) -> Crops:
    """The crops `batch["global"]` and, where there are any, `batch["local"]`.

    Raises:
        UserError: there are no global crops, or another number of them.
    """
    whole = views_of(batch, "global", num_global, method)
    return Crops(whole, views_of(batch, "local", None, method) if "local" in batch else None)


def encode_crops(
    encoder: Any,
    params: Params,
    statistics: dict[str, Any],
    crops: Crops,
    batch: Batch,
    key: jax.Array,
    *,
    of_whole: Mapping[str, Any] = {},
    of_local: Mapping[str, Any] = {},
) -> tuple[Crops, dict[str, Any]]:
    """Features of all crops in training, one pass for each size, and the encoder's batch statistics after them.

    Args:
        encoder: the student's.
        params: of it.
        statistics: its other collections.
        crops: images.
        batch: whose `epoch` and `index` the keys are drawn from.
        key: for drop path and the like; every crop has its own.
        of_whole: keywords of the encoder for the global crops (`masked`).
        of_local: the same for the local ones.
    """
    num_whole = crops.whole.shape[1]
    num_local = 0 if crops.local is None else crops.local.shape[1]
    keys = view_keys(batch, key, num_whole + num_local).reshape(-1, num_whole + num_local)
    whole, statistics = encode_views(
        encoder, params, statistics, crops.whole, keys[:, :num_whole].reshape(-1), **of_whole
    )
    if crops.local is None:
        return Crops(whole), statistics
    local, statistics = encode_views(
        encoder, params, statistics, crops.local, keys[:, num_whole:].reshape(-1), **of_local
    )
    return Crops(whole, local), statistics


def encode_by_teacher(encoder: Any, extra: Extra, crops: Crops, **how: Any) -> tuple[Features, Extra]:
    """The teacher's features of the global crops (leaves (b · v) ...), without gradient, and `extra` after it.

    As the authors have it, batch norm uses the batch, and nothing is dropped at random.
    """
    params, statistics = jax.lax.stop_gradient(extra["teacher"]["encoder"]), extra["teacher_statistics"]
    seen, moved = encode_views(encoder, params, statistics["encoder"], crops.whole, None, **how)
    return seen, {**extra, "teacher_statistics": {**statistics, "encoder": moved}}


def project_by_teacher(head: Any, extra: Extra, views: jax.Array, role: str = "head") -> tuple[jax.Array, Extra]:
    """What the teacher's head makes of views (b t d), (b t m), without gradient, and `extra` after."""
    params, statistics = extra["teacher"][role], extra["teacher_statistics"]
    made, moved = project_views(head, params, statistics[role], views)
    return jax.lax.stop_gradient(made), {**extra, "teacher_statistics": {**statistics, role: moved}}


def pooled_by_view(seen: Crops, num_examples: int) -> jax.Array:
    """Pooled features (b v d) of all crops, global ones first."""
    parts = [rearrange(one.pooled, "(b v) d -> b v d", b=num_examples) for one in seen if one is not None]
    return jnp.concatenate(parts, axis=1)


def init_networks(key: jax.Array, encoder: Any, crops: Crops, **heads: Any) -> Variables:
    """Fresh parameters and batch statistics of an encoder, and of heads (role=network) on its pooled features."""
    seen, encoder_params, encoder_statistics = init_network(encoder, stream(key, "encoder"), crops.whole[:, 0])
    params, statistics = {"encoder": encoder_params}, {"encoder": encoder_statistics}
    for role, head in heads.items():
        _, params[role], statistics[role] = init_network(head, stream(key, role), seen.pooled, train=True)
    return Variables(params, statistics)


def with_teacher(student: Variables, roles: Iterable[str]) -> Extra:
    """The `extra` of a fresh student and a teacher that is its copy, in `roles`."""
    params, statistics = student
    copies = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), {role: statistics[role] for role in roles})
    return {**statistics, "teacher": start_teacher(params, copies), "teacher_statistics": copies}


def measure_assignments(student: jax.Array, assignments: jax.Array) -> Measurements:
    """What tells collapse: to one prototype (entropy and usage fall), or to all alike (entropy nears log m).

    Args:
        student: logits (b v m), views that the teacher sees first.
        assignments: probabilities (b t m), t at least 1.

    Returns:
        teacher_entropy: mean entropy of the assignments, in nats.
        prototype_usage: share of the prototypes that are the likeliest of some view.
        agreement: share of examples whose first view the teacher assigns as the student does the last of those t.
    """
    m, last = assignments.shape[2], assignments.shape[1] - 1
    entropy = -jnp.sum(jax.scipy.special.xlogy(assignments, assignments), axis=-1)
    chosen = jnp.argmax(assignments, axis=-1)
    used = jnp.zeros(m, jnp.float32).at[chosen.reshape(-1)].set(1.0)
    agree = chosen[:, 0] == jnp.argmax(student[:, last], axis=-1)
    return {
        "teacher_entropy": jnp.mean(entropy),
        "prototype_usage": jnp.mean(used),
        "agreement": jnp.mean(agree.astype(jnp.float32)),
    }
