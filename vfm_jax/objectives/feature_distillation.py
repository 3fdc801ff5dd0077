"""Distillation of features: a student learns to tell what frozen networks make of an image, one or several.

The form is UNIC's (Sariyildiz et al., UNIC: Universal Classification Models via Multi-teacher Distillation, 2024,
arXiv:2408.05088): each teacher has projectors of its own, its features are standardised, and cosine distance and
smooth L1 count one half each. AM-RADIO (Ranzinger et al., 2023, arXiv:2312.06709) and Theia (Shang et al., 2024,
arXiv:2407.20179) differ in the weights: 0.9 and 0.1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.distillation import cosine_distance, smooth_l1, squared_distance
from vfm_jax.nn.resample import resample_positions
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    apply_network,
    carry_nothing,
    encoder_predictions,
    init_network,
)
from vfm_jax.objectives.teacher import apply_frozen, frozen_networks
from vfm_jax.optim import Schedule, as_schedule

PARTS = {"projectors": "pooled", "patch_projectors": "patches"}  # who predicts what


class Known(NamedTuple):
    """What the student makes of an image and each teacher by name: pooled features (b d) and patches (b n d)."""

    student: dict[str, jax.Array]
    teachers: dict[str, dict[str, jax.Array]]


def feature_distillation(
    encoder: Any,
    teachers: Mapping[str, Any],
    projectors: Mapping[str, Any],
    patch_projectors: Mapping[str, Any] = {},
    *,
    cosine_weight: float = 0.5,
    smooth_l1_weight: float = 0.5,
    mse_weight: float = 0.0,
    standardize: bool = True,
    statistics_momentum: float | Schedule = 0.99,
) -> Objective:
    """Mean over teachers and over pooled features and patches of a distance between projected and true features.

    A teacher called NAME sees the view `batch["teacher_NAME"]` where the recipe makes one (its own size and pixel
    values, `same_draws_as="image"`), else what the student sees. Its patches are brought to the student's grid.
    UNIC's projectors take all layers of the student, ours the last; it also leaves teachers out at random.

    Args:
        encoder: images -> Features.
        teachers: by name, images -> Features; frozen.
        projectors: by the teacher's name, the student's pooled features -> the teacher's.
        patch_projectors: the same of patch tokens; {} leaves patches out.
        cosine_weight: of the cosine distance.
        smooth_l1_weight: of smooth L1.
        mse_weight: of the mean squared error.
        standardize: subtract the mean of each of a teacher's features and divide by its deviation, so that no teacher
            and no feature outweighs the others.
        statistics_momentum: of their running averages, which begin as 0 and 1; a batch is standardised by those from
            before it. The authors' falls from 0 to 0.999, here by a schedule.

    Raises:
        UserError: projectors of no teacher, or a teacher without.
    """
    predictors = {"projectors": dict(projectors)} | (
        {"patch_projectors": dict(patch_projectors)} if patch_projectors else {}
    )
    for role, own in predictors.items():
        if set(own) != set(teachers):
            raise UserError(
                f"config.networks.{role} are of {', '.join(own) or 'nobody'}, and config.networks.teachers are "
                f"{', '.join(teachers)}. Give each teacher one of the same name."
            )

    def view_of(batch, name) -> jax.Array:
        return batch.get(f"teacher_{name}", batch["image"])

    def parts_of(seen, grid=None) -> dict[str, jax.Array]:
        """Pooled features and, where they are compared, patches on a grid."""
        parts = {"pooled": seen.pooled}
        if patch_projectors:
            parts["patches"] = seen.patch_tokens
            if grid is not None and grid != seen.grid:
                maps = seen.patch_tokens.reshape(-1, *seen.grid, seen.tokens.shape[-1])
                maps = jax.vmap(lambda one: resample_positions(one, grid, "bilinear"))(maps)
                parts["patches"] = maps.reshape(maps.shape[0], -1, maps.shape[-1])
        return parts

    def init(key, batch) -> Variables:
        params: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        seen, params["encoder"], extra["encoder"] = init_network(encoder, stream(key, "encoder"), batch["image"])
        for role, networks in predictors.items():
            given = _rows(parts_of(seen)[PARTS[role]])
            made = {
                n: init_network(one, stream(key, f"{role}/{n}"), given, train=True) for n, one in networks.items()
            }
            params[role] = {name: own for name, (_, own, _) in made.items()}
            extra[role] = {name: statistics for name, (_, _, statistics) in made.items()}
        own = stream(key, "teachers")
        made = {n: init_network(one, stream(own, n), view_of(batch, n)) for n, one in teachers.items()}
        frozen = {name: variables for name, (_, *variables) in made.items()}
        moments = {
            name: {part: _moments(one.shape[-1]) for part, one in parts_of(seen).items()}
            for name, (seen, _, _) in made.items()
        }
        return Variables(params, extra | frozen_networks(frozen) | {"feature_statistics": moments})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        seen, statistics = apply_network(
            encoder, params["encoder"], extra["encoder"], batch["image"], keys=keys, train=True
        )
        known = {
            name: parts_of(apply_frozen(one, extra, name, view_of(batch, name)), seen.grid)
            for name, one in teachers.items()
        }
        return Known(parts_of(seen), known), {**extra, "encoder": statistics}

    def distance(student, teacher) -> jax.Array:
        weighted = ((cosine_weight, cosine_distance), (smooth_l1_weight, smooth_l1), (mse_weight, squared_distance))
        return sum((weight * jnp.mean(gap(student, teacher)) for weight, gap in weighted if weight), jnp.float32(0))

    def criterion(params, extra, outputs, step):
        momentum, terms = as_schedule(statistics_momentum)(step), {}
        statistics = {role: dict(extra[role]) for role in predictors}
        moments = {name: dict(extra["feature_statistics"][name]) for name in teachers}
        for name in teachers:
            gaps = []
            for role, networks in predictors.items():
                part = PARTS[role]
                made, statistics[role][name] = apply_network(
                    networks[name], params[role][name], extra[role][name], _rows(outputs.student[part]), train=True
                )
                target = jax.lax.stop_gradient(_rows(outputs.teachers[name][part]))
                if standardize:
                    before = moments[name][part]
                    moments[name][part] = _move(before, target, momentum)
                    target = (target - before["mean"][None]) / (before["deviation"][None] + 1e-6)
                gaps.append(distance(made, target))
            terms[name] = sum(gaps[1:], gaps[0]) / (len(gaps) * len(teachers))
        loss = sum(terms.values(), jnp.float32(0))
        measured = {f"loss/{name}": term for name, term in terms.items()} if len(terms) > 1 else {}
        return loss, ({**extra, **statistics, "feature_statistics": moments}, {"loss": loss, **measured})

    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs.student["pooled"][:, None],
    )


def _rows(features: jax.Array) -> jax.Array:
    """All vectors below one another."""
    return features.reshape(-1, features.shape[-1])


def _moments(width: int) -> dict[str, jax.Array]:
    return {"mean": jnp.zeros(width, jnp.float32), "deviation": jnp.ones(width, jnp.float32)}


def _move(before: dict[str, jax.Array], rows: jax.Array, momentum: jax.Array) -> dict[str, jax.Array]:
    """The running mean and deviation of features after rows (n d) of them."""
    now = {"mean": jnp.mean(rows, axis=0), "deviation": jnp.std(rows, axis=0, ddof=1) + 1e-6}
    return {name: momentum * old + (1 - momentum) * now[name] for name, old in before.items()}
