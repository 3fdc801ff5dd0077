"""DINO (Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021, arXiv:2104.14294)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.keys import stream
from vfm_jax.core.tables import lookup
from vfm_jax.losses.self_distillation import centered_softmax, dino_loss, sinkhorn, update_center
from vfm_jax.objectives.interface import (
    Objective,
    Variables,
    encoder_predictions,
    project_views,
)
from vfm_jax.objectives.multicrop import (
    crops_of,
    encode_by_teacher,
    encode_crops,
    init_networks,
    measure_assignments,
    pooled_by_view,
    project_by_teacher,
    with_teacher,
)
from vfm_jax.objectives.teacher import move_teacher, start_teacher
from vfm_jax.optim import Schedule, as_schedule

ROLES = ("encoder", "head")


class Seen(NamedTuple):
    """Pooled features of all crops by the student (b v d), global ones first, and of those by the teacher (b t d)."""

    student: jax.Array
    teacher: jax.Array


def dino(
    encoder: Any,
    head: Any,
    *,
    student_temperature: float | Schedule = 0.1,
    teacher_temperature: float | Schedule = 0.04,
    teacher_momentum: float | Schedule = 0.996,
    assignment: str = "center",
    center_momentum: float = 0.9,
    sinkhorn_iterations: int = 3,
) -> Objective:
    """Self-distillation: the student matches, from any crop, what the teacher makes of another, global one.

    Reference: Caron et al., 2021 (arXiv:2104.14294), Algorithm 1 and Sec. 3.1.

    Args:
        encoder: images -> Features.
        head: pooled features -> logits of prototypes.
        student_temperature: τ_s.
        teacher_temperature: τ_t; a warm-up from 0.04 allows 0.07.
        teacher_momentum: λ of the teacher's average; the authors raise it to 1 by a cosine.
        assignment: "center" (and sharpen) the teacher's logits, or balance them by "sinkhorn".
        center_momentum: m of the centre's average.
        sinkhorn_iterations: of "sinkhorn".
    """
    temperature = as_schedule(teacher_temperature)
    assign = lookup(
        {
            "center": lambda logits, center, step: centered_softmax(logits, center, temperature(step)),
            "sinkhorn": lambda logits, center, step: sinkhorn(logits, temperature(step), sinkhorn_iterations),
        },
        assignment,
        "config.objective.assignment",
    )

    def init(key, batch) -> Variables:
        student = init_networks(key, encoder, crops_of(batch, "dino"), head=head)
        center = jnp.zeros(head.out_dim, jnp.float32)
        return Variables(student.params, {**with_teacher(student, ROLES), "center": center})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        crops, b = crops_of(batch, "dino"), batch["global"].shape[0]
        seen, statistics = encode_crops(
            encoder, params["encoder"], extra["encoder"], crops, batch, stream(key, "drop_path")
        )
        taught, extra = encode_by_teacher(encoder, extra, crops)
        teacher = rearrange(taught.pooled, "(b t) d -> b t d", b=b)
        return Seen(pooled_by_view(seen, b), teacher), {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        student, statistics = project_views(head, params["head"], extra["head"], outputs.student)
        teacher, extra = project_by_teacher(head, extra, outputs.teacher)
        flat = rearrange(teacher, "b t m -> (b t) m")
        targets = assign(flat, extra["center"], step).reshape(teacher.shape)
        loss = dino_loss(student, targets, as_schedule(student_temperature)(step))
        center = update_center(extra["center"], jnp.mean(flat, axis=0), center_momentum)
        measured = measure_assignments(student, targets) | {
            "center_norm": jnp.linalg.norm(center),
            "temperature": temperature(step),
            "teacher_momentum": as_schedule(teacher_momentum)(step),
        }
        return loss, ({**extra, "head": statistics, "center": center}, {"loss": loss} | measured)

    def after_update(params, extra, step):
        return {**extra, "teacher": move_teacher(extra["teacher"], params, as_schedule(teacher_momentum)(step))}

    return Objective(
        init,
        forward,
        criterion,
        after_update,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs.student[:, : outputs.teacher.shape[1]],
        after_load=lambda params, extra: {**extra, "teacher": start_teacher(params, ROLES)},
    )
