"""DINOv3 (Siméoni et al., DINOv3, 2025, arXiv:2508.10104)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.errors import UserError
from vfm_jax.losses.regularizers import gram_anchor
from vfm_jax.nn.patches import grid_of
from vfm_jax.nn.resample import resample_positions
from vfm_jax.objectives.dinov2 import Seen, dinov2
from vfm_jax.objectives.interface import Objective, Variables, encode_views, views_of
from vfm_jax.objectives.teacher import start_teacher
from vfm_jax.optim import Schedule, as_schedule


class Anchored(NamedTuple):
    """What DINOv2 looks at, and how far the patches' similarities are from the Gram teacher's in each crop (b t)."""

    seen: Seen
    drift: jax.Array


def dinov3(
    encoder: Any,
    head: Any,
    patch_head: Any,
    *,
    student_temperature: float | Schedule = 0.1,
    teacher_temperature: float | Schedule = 0.07,
    teacher_momentum: float | Schedule = 0.994,
    sinkhorn_iterations: int = 3,
    masked_crops: float = 0.5,
    mask_ratio: tuple[float, float] = (0.1, 0.5),
    local_weight: float | Schedule = 1.0,
    koleo_weight: float | Schedule = 0.1,
    koleo_group_size: int | None = None,
    gram_weight: float | Schedule = 0.0,
    gram_refresh_steps: int | None = None,
    gram_refreshes: int = 0,
) -> Objective:
    """DINOv2's losses for longer, and Gram anchoring: patches stay as alike as an earlier teacher had them.

    The Gram teacher sees the crops `batch["gram"]`, the global ones at a higher resolution and as they were before
    colours changed (`same_draws_as="global"`; without that field, the global crops), and its patches are brought to
    the student's grid by bicubic interpolation.

    Reference: Siméoni et al., 2025 (arXiv:2508.10104), Sec. 3.2, 4.2 and 4.3, and `SSLMetaArch` of their code.

    Args:
        encoder: as in `dinov2`.
        head: pooled features -> logits of prototypes.
        patch_head: the same of patches.
        student_temperature: as in `dinov2`, and so the next six.
        teacher_temperature: see there.
        teacher_momentum: see there.
        sinkhorn_iterations: see there.
        masked_crops: see there.
        mask_ratio: see there.
        local_weight: see there.
        koleo_weight: see there, and so the group size.
        koleo_group_size: see there.
        gram_weight: of Gram anchoring; 0.0 leaves it out, and with it the Gram teacher.
        gram_refresh_steps: the Gram teacher becomes the teacher of that moment after this many updates, and
            `gram_refreshes` times in all. Before, it is the one that a stage before left, or else the parameters that
            the stage began with.
        gram_refreshes: how often it does.

    Raises:
        UserError: refreshes without the time between them.
    """
    if gram_refreshes and not gram_refresh_steps:
        raise UserError("config.objective.gram_refreshes needs gram_refresh_steps (or _epochs), above 0.")
    base = dinov2(
        encoder,
        head,
        patch_head,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        teacher_momentum=teacher_momentum,
        sinkhorn_iterations=sinkhorn_iterations,
        masked_crops=masked_crops,
        mask_ratio=mask_ratio,
        exact_masks=True,
        local_weight=local_weight,
        koleo_weight=koleo_weight,
        koleo_group_size=koleo_group_size,
        keep_patches=True,
    )

    def without_patches(params, extra, batch, key, step):
        seen, extra = base.forward(params, extra, batch, key, step)
        return seen._replace(patches=None), extra

    if gram_weight == 0.0:
        return base._replace(forward=without_patches)

    def init(key, batch) -> Variables:
        params, extra = base.init(key, batch)
        return Variables(params, {**extra, "gram": start_teacher(params)})

    def forward(params, extra, batch, key, step):
        seen, extra = base.forward(params, extra, batch, key, step)
        crops = views_of(batch, "gram", 2, "dinov3") if "gram" in batch else batch["global"]
        anchor, _ = encode_views(
            encoder, extra["gram"]["encoder"], extra["teacher_statistics"]["encoder"], crops, None
        )
        grid = grid_of(batch["global"].shape[2:4], encoder.patch_size)
        maps = anchor.patch_tokens.reshape(-1, *anchor.grid, anchor.tokens.shape[-1])
        maps = jax.vmap(lambda one: resample_positions(one, grid, "bicubic"))(maps)
        drift = gram_anchor(
            rearrange(seen.patches, "b t n d -> (b t) n d"),
            rearrange(jax.lax.stop_gradient(maps), "b h w d -> b (h w) d"),
        )
        return Anchored(seen._replace(patches=None), drift.reshape(seen.teacher.shape[:2])), extra

    def criterion(params, extra, outputs, step):
        loss, (extra, measured) = base.criterion(params, extra, outputs.seen, step)
        gram = as_schedule(gram_weight)(step) * jnp.mean(outputs.drift)
        return loss + gram, (extra, {**measured, "loss": loss + gram, "loss/gram": gram})

    def after_update(params, extra, step):
        extra = base.after_update(params, extra, step)
        if not gram_refresh_steps:
            return extra
        times, over = jnp.divmod(step + 1, gram_refresh_steps)
        due = (over == 0) & (times <= gram_refreshes)
        teacher = {"encoder": extra["teacher"]["encoder"]}
        return {**extra, "gram": jax.lax.cond(due, lambda: teacher, lambda: extra["gram"])}

    return base._replace(
        init=init,
        forward=forward,
        criterion=criterion,
        after_update=after_update,
        embedding=lambda outputs: base.embedding(outputs.seen),
        after_load=lambda params, extra: {**base.after_load(params, extra), "gram": start_teacher(params)},
    )
