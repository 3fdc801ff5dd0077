"""iBOT (Zhou et al., Image BERT Pre-Training with Online Tokenizer, 2021, arXiv:2111.07832)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import stream
from vfm_jax.core.tables import lookup
from vfm_jax.losses.self_distillation import (
    centered_softmax,
    dino_loss,
    mask_weights,
    masked_patch_cross_entropy,
    update_center,
)
from vfm_jax.nn.masking import block_masks, draw_counts, hide_count, masking_noise
from vfm_jax.nn.patches import grid_of
from vfm_jax.objectives.interface import Objective, Variables, encoder_predictions, project_views, view_keys
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


class Seen(NamedTuple):
    """What student and teacher made of the crops.

    Attributes:
        student: pooled features of all crops, global ones (with patches hidden) first (b v d).
        teacher: pooled features of the global crops (b t d).
        student_patches: patch tokens of the global crops (b t n d).
        teacher_patches: the same, nothing hidden (b t n d).
        masked: which patches were hidden from the student (b t n).
    """

    student: jax.Array
    teacher: jax.Array
    student_patches: jax.Array
    teacher_patches: jax.Array
    masked: jax.Array


def ibot(
    encoder: Any,
    head: Any,
    patch_head: Any = None,
    *,
    student_temperature: float | Schedule = 0.1,
    teacher_temperature: float | Schedule = 0.04,
    teacher_patch_temperature: float | Schedule = 0.04,
    teacher_momentum: float | Schedule = 0.996,
    center_momentum: float = 0.9,
    patch_center_momentum: float = 0.9,
    class_weight: float = 1.0,
    patch_weight: float = 1.0,
    mask_shape: str = "block",
    mask_ratios: Sequence[tuple[float, float]] = ((0.0, 0.0), (0.1, 0.5)),
    mask_min_aspect: float = 0.3,
    mask_start_steps: int = 0,
) -> Objective:
    """Self-distillation of the class token across crops (DINO), and of hidden patches within a crop.

    Reference: Zhou et al., 2021 (arXiv:2111.07832), Algorithm 1 and Sec. 3.

    Args:
        encoder: images, and which patches are hidden -> Features with tokens of all patches.
        head: pooled features, or patch tokens -> logits of prototypes.
        patch_head: for the patches, where they have a head of their own. (The authors' unshared heads share all but
            the prototypes; their published models share all, as here by default.)
        student_temperature: τ_s.
        teacher_temperature: τ_t of the class token.
        teacher_patch_temperature: τ_t of patches.
        teacher_momentum: of the teacher's average; the authors raise it to 1 by a cosine.
        center_momentum: of the average of the class token's logits.
        patch_center_momentum: of the average of the patches' logits.
        class_weight: λ₁.
        patch_weight: λ₂.
        mask_shape: "block" or "random".
        mask_ratios: ranges of the share of hidden patches, drawn anew for each global crop; see `draw_counts`.
        mask_min_aspect: of blocks.
        mask_start_steps: nothing is hidden before.

    Raises:
        UserError: the encoder has no token to put in place of patches; no such shape of masks.
    """
    if not getattr(encoder, "mask_token", False):
        raise UserError("ibot hides patches from its student: set config.networks.encoder.mask_token=True (a ViT).")
    heads = {"head": head} | ({} if patch_head is None else {"patch_head": patch_head})
    roles, patch_role = ("encoder", *heads), list(heads)[-1]
    shapes = {"block": block_mask, "random": random_mask}
    draw = lookup(shapes, mask_shape, "config.objective.mask_shape")

    def masks(batch, key, step) -> jax.Array:
        t, height, width = batch["global"].shape[1:4]
        grid = grid_of((height, width), encoder.patch_size)
        counts = draw_counts(view_keys(batch, stream(key, "ratio"), t), mask_ratios, grid[0] * grid[1])
        counts = jnp.where(step < mask_start_steps, 0, counts)
        return draw(view_keys(batch, stream(key, "place"), t), grid, counts, mask_min_aspect)  # (b t) n

    def init(key, batch) -> Variables:
        student = init_networks(key, encoder, crops_of(batch, "ibot"), **heads)
        centers = {
            "center": jnp.zeros(head.out_dim, jnp.float32),
            "patch_center": jnp.zeros(heads[patch_role].out_dim, jnp.float32),
        }
        return Variables(student.params, {**with_teacher(student, roles), **centers})

    def forward(params, extra, batch, key, step):
        crops, b = crops_of(batch, "ibot"), batch["global"].shape[0]
        masked = masks(batch, stream(key, "mask"), step)
        seen, statistics = encode_crops(
            encoder,
            params["encoder"],
            extra["encoder"],
            crops,
            batch,
            stream(key, "drop_path"),
            of_whole={"masked": masked},
        )
        taught, extra = encode_by_teacher(encoder, extra, crops)

        def by_view(x):
            return rearrange(x, "(b t) ... -> b t ...", b=b)

        outputs = Seen(
            pooled_by_view(seen, b),
            by_view(taught.pooled),
            by_view(seen.whole.patch_tokens),
            by_view(taught.patch_tokens),
            by_view(masked),
        )
        return outputs, {**extra, "encoder": statistics}

    def criterion(params, extra, outputs, step):
        temperature = as_schedule(student_temperature)(step)

        # The class token, across crops.
        student, statistics = project_views(head, params["head"], extra["head"], outputs.student)
        teacher, extra = project_by_teacher(head, {**extra, "head": statistics}, outputs.teacher)
        targets = centered_softmax(teacher, extra["center"], as_schedule(teacher_temperature)(step))
        class_loss = class_weight * dino_loss(student, targets, temperature)
        center = update_center(extra["center"], jnp.mean(teacher, axis=(0, 1)), center_momentum)

        # Patches, within a crop.
        b, t, n, _ = outputs.student_patches.shape
        one = heads[patch_role]
        patches, statistics = project_views(
            one, params[patch_role], extra[patch_role], rearrange(outputs.student_patches, "b t n d -> b (t n) d")
        )
        teacher_patches, extra = project_by_teacher(
            one,
            {**extra, patch_role: statistics},
            rearrange(outputs.teacher_patches, "b t n d -> b (t n) d"),
            patch_role,
        )
        patch_targets = centered_softmax(
            teacher_patches, extra["patch_center"], as_schedule(teacher_patch_temperature)(step)
        )
        weight = mask_weights(rearrange(outputs.masked, "b t n -> (b t) n")).reshape(b, t * n)
        patch_loss = patch_weight * masked_patch_cross_entropy(patches, patch_targets, weight, temperature, b * t)
        patch_center = update_center(
            extra["patch_center"], jnp.mean(teacher_patches, axis=(0, 1)), patch_center_momentum
        )

        loss = class_loss + patch_loss
        measured = measure_assignments(student, targets) | {
            "loss/class": class_loss,
            "loss/patch": patch_loss,
            "center_norm": jnp.linalg.norm(center),
            "patch_center_norm": jnp.linalg.norm(patch_center),
            "masked_share": jnp.mean(outputs.masked.astype(jnp.float32)),
        }
        return loss, ({**extra, "center": center, "patch_center": patch_center}, {"loss": loss} | measured)

    def after_update(params, extra, step):
        return {**extra, "teacher": move_teacher(extra["teacher"], params, as_schedule(teacher_momentum)(step))}

    return Objective(
        init,
        forward,
        criterion,
        after_update,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs.teacher,
        after_load=lambda params, extra: {**extra, "teacher": start_teacher(params, roles)},
    )


def block_mask(keys: jax.Array, grid: tuple[int, int], counts: jax.Array, min_aspect: float) -> jax.Array:
    """Blocks of at least a ninth of the image, as the authors' loader draws them."""
    return block_masks(keys, grid, counts, min_area=float((min(grid) // 3) ** 2), min_aspect=min_aspect)


def random_mask(keys: jax.Array, grid: tuple[int, int], counts: jax.Array, min_aspect: float) -> jax.Array:
    """Single patches, independent of each other."""
    del min_aspect
    return hide_count(masking_noise(keys, grid[0] * grid[1]), counts)
