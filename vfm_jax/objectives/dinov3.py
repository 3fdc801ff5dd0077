"""DINOv3 (Siméoni et al., DINOv3, 2025, arXiv:2508.10104)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import stream
from vfm_jax.losses.regularizers import gram_anchor
from vfm_jax.nn.patches import grid_of
from vfm_jax.nn.resample import resample_positions
from vfm_jax.objectives.dinov2 import Seen, dinov2
from vfm_jax.objectives.interface import Objective, Variables, init_network, views_of
from vfm_jax.objectives.teacher import apply_frozen, frozen_networks, start_teacher
from vfm_jax.optim import Schedule, as_schedule


class Anchored(NamedTuple):
    """What DINOv2 looks at, and how far the patches' similarities are from the Gram teacher's in each crop (b t)."""

    seen: Seen
    drift: jax.Array


def dinov3(
    encoder: Any,
    head: Any,
    patch_head: Any,
    gram_teacher: Any = None,
    teacher: Any = None,
    teacher_head: Any = None,
    teacher_patch_head: Any = None,
    *,
    student_temperature: float | Schedule = 0.1,
    teacher_temperature: float | Schedule = 0.07,
    teacher_momentum: float | Schedule = 0.994,
    sinkhorn_iterations: int = 3,
    masked_crops: float = 0.5,
    mask_ratio: tuple[float, float] = (0.1, 0.5),
    mask_group_size: int | None = None,
    local_weight: float | Schedule = 1.0,
    koleo_weight: float | Schedule = 0.1,
    koleo_group_size: int | None = None,
    gram_weight: float | Schedule = 0.0,
    gram_refresh_steps: int | None = None,
    gram_refreshes: int = 0,
) -> Objective:
    """DINOv2's losses for longer, and Gram anchoring: patches stay as alike as an earlier teacher had them.

    With a frozen `teacher` it is the distillation of smaller students. The authors train several at a time, each on
    GPUs of its own, to run the teacher once; here each is a run.

    The Gram teacher sees the crops `batch["gram"]`, the global ones at a higher resolution and as they were before
    colours changed (`same_draws_as="global"`; without that field, the global crops), and its patches are brought to
    the student's grid by bicubic interpolation.

    Reference: Siméoni et al., 2025 (arXiv:2508.10104), Sec. 3.2, 4.2, 4.3 and 5.2, and `SSLMetaArch` and
    `MultiDistillationMetaArch` of their code.

    Args:
        encoder: as in `dinov2`.
        head: pooled features -> logits of prototypes.
        patch_head: the same of patches.
        gram_teacher: the Gram teacher, from a file of its own (the authors' `gram.ckpt`); None: it begins as the
            teacher of the stage before, or as the parameters that the stage began with.
        teacher: as in `dinov2`, and so the next two.
        teacher_head: see there.
        teacher_patch_head: see there.
        student_temperature: as in `dinov2`, and so the next seven.
        teacher_temperature: see there.
        teacher_momentum: see there.
        sinkhorn_iterations: see there.
        masked_crops: see there.
        mask_ratio: see there.
        mask_group_size: see there.
        local_weight: see there.
        koleo_weight: see there, and so the group size.
        koleo_group_size: see there.
        gram_weight: of Gram anchoring; 0.0 leaves it out, and with it the Gram teacher.
        gram_refresh_steps: the Gram teacher becomes the teacher of that moment after this many updates, and
            `gram_refreshes` times in all.
        gram_refreshes: how often it does.

    Raises:
        UserError: refreshes without the time between them, or of a Gram teacher that is another network.
    """
    if gram_refreshes and not gram_refresh_steps:
        raise UserError("config.objective.gram_refreshes needs gram_refresh_steps (or _epochs), above 0.")
    base = dinov2(
        encoder,
        head,
        patch_head,
        teacher,
        teacher_head,
        teacher_patch_head,
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        teacher_momentum=teacher_momentum,
        sinkhorn_iterations=sinkhorn_iterations,
        masked_crops=masked_crops,
        mask_ratio=mask_ratio,
        exact_masks=True,
        mask_group_size=mask_group_size,
        local_weight=local_weight,
        koleo_weight=koleo_weight,
        koleo_group_size=koleo_group_size,
    )
    if gram_weight == 0.0:
        if gram_teacher is not None:
            raise UserError("config.networks.gram_teacher is for Gram anchoring: set config.objective.gram_weight.")
        return base

    def crops_for_gram(batch) -> jax.Array:
        return views_of(batch, "gram", 2, "dinov3") if "gram" in batch else batch["global"]

    def anchored_to(params: Any, extra: dict[str, Any]) -> dict[str, Any]:
        """`extra` with these parameters of an encoder as the Gram teacher's."""
        return {**extra, "frozen": {**extra["frozen"], "gram_teacher": params}}

    def init(key, batch) -> Variables:
        params, extra = base.init(key, batch)
        own = start_teacher(params)["encoder"], jax.tree.map(jnp.copy, extra["encoder"])
        if gram_teacher is not None:
            _, *own = init_network(gram_teacher, stream(key, "gram_teacher"), crops_for_gram(batch)[:, 0])
            shapes = [jax.tree.map(jnp.shape, tree) for tree in (own[0], params["encoder"])]
            if gram_refreshes and shapes[0] != shapes[1]:
                raise UserError(
                    "config.networks.gram_teacher is another network than config.networks.encoder, whose average "
                    "cannot take its place: set config.objective.gram_refreshes=0."
                )
        return Variables(params, {**extra, **frozen_networks({"gram_teacher": own}, extra)})

    def forward(params, extra, batch, key, step):
        seen, extra = base.forward(params, extra, batch, key, step)
        anchor = apply_frozen(
            encoder if gram_teacher is None else gram_teacher,
            extra,
            "gram_teacher",
            rearrange(crops_for_gram(batch), "b t h w c -> (b t) h w c"),
        )
        grid = grid_of(batch["global"].shape[2:4], encoder.patch_size)
        maps = anchor.patch_tokens.reshape(-1, *anchor.grid, anchor.tokens.shape[-1])
        maps = jax.vmap(lambda one: resample_positions(one, grid, "bicubic"))(maps)
        drift = gram_anchor(
            rearrange(seen.student_patches, "b t n d -> (b t) n d"),
            rearrange(maps, "b h w d -> b (h w) d"),
        )
        return Anchored(seen, drift.reshape(seen.teacher.shape[:2])), extra

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
        before, now = extra["frozen"]["gram_teacher"], extra["teacher"]["encoder"]
        return anchored_to(jax.lax.cond(due, lambda: now, lambda: before), extra)

    def after_load(params, extra):
        extra = base.after_load(params, extra)
        return anchored_to(start_teacher(params)["encoder"], extra) if gram_teacher is None else extra

    return base._replace(
        init=init,
        forward=forward,
        criterion=criterion,
        after_update=after_update,
        embedding=lambda outputs: base.embedding(outputs.seen),
        after_load=after_load,
    )
