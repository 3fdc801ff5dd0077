"""DINOv2 (Oquab et al., Learning Robust Visual Features without Supervision, 2023, arXiv:2304.07193)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import stream
from vfm_jax.core.tables import lookup
from vfm_jax.losses.regularizers import koleo
from vfm_jax.losses.self_distillation import (
    centered_softmax,
    dino_loss,
    masked_patch_cross_entropy,
    sinkhorn,
    update_center,
)
from vfm_jax.nn.patches import grid_of
from vfm_jax.objectives.crop_masks import CropMasks
from vfm_jax.objectives.crop_teacher import average_teacher, frozen_teacher
from vfm_jax.objectives.interface import Objective, Variables, encoder_predictions, project_views
from vfm_jax.objectives.multicrop import (
    crops_of,
    encode_crops,
    init_networks,
    measure_assignments,
    pooled_by_view,
    with_teacher,
)
from vfm_jax.objectives.teacher import move_teacher, start_teacher
from vfm_jax.optim import Schedule, as_schedule


class Seen(NamedTuple):
    """What student and teacher make of the crops of each image.

    Attributes:
        student: pooled features of all crops (b v d), global ones first.
        teacher: of the global crops (b t d).
        student_patches: tokens of all patches of the global crops (b t n d).
        teacher_patches: the teacher's of the same patches.
        masked: the patches that are compared (b t n).
    """

    student: jax.Array
    teacher: jax.Array
    student_patches: jax.Array
    teacher_patches: jax.Array
    masked: jax.Array


def dinov2(
    encoder: Any,
    head: Any,
    patch_head: Any = None,
    teacher: Any = None,
    teacher_head: Any = None,
    teacher_patch_head: Any = None,
    *,
    student_temperature: float | Schedule = 0.1,
    teacher_temperature: float | Schedule = 0.07,
    teacher_momentum: float | Schedule = 0.994,
    assignment: str = "sinkhorn",
    center_momentum: float = 0.9,
    sinkhorn_iterations: int = 3,
    masked_crops: float = 0.5,
    mask_ratio: tuple[float, float] = (0.1, 0.5),
    exact_masks: bool = False,
    mask_group_size: int | None = None,
    dino_weight: float | Schedule = 1.0,
    local_weight: float | Schedule = 1.0,
    ibot_weight: float | Schedule = 1.0,
    koleo_weight: float | Schedule = 0.1,
    koleo_group_size: int | None = None,
) -> Objective:
    """DINO on crops, iBOT on patches hidden from the student, and KoLeo to spread the images out.

    The loss is that of the authors' code: their mean over the pairs of different crops; the patches' mean over all
    global crops, of which those without a mask add nothing; KoLeo's sum over the global crops, where the paper names
    the first alone.

    With a frozen `teacher` it is distillation: the student sees every patch, the same patches are compared (all of
    them by a `mask_ratio` of 1), and its running average, which teaches nobody then, is still the result.

    Reference: Oquab et al., 2023 (arXiv:2304.07193), Sec. 4 and 5, and `SSLMetaArch` of their code.

    Args:
        encoder: images and hidden patches -> Features; a ViT with `mask_token=True`, but for distillation.
        head: pooled features -> logits of prototypes.
        patch_head: the same of patches; None: `head` is shared.
        teacher: images -> Features; frozen, with heads of its own. None: the student's running average teaches.
        teacher_head: its pooled features -> logits of as many prototypes as `head` has.
        teacher_patch_head: the same of its patches, where the student's have a head of their own.
        student_temperature: τ_s.
        teacher_temperature: τ_t, for crops and patches; the authors raise it from 0.04.
        teacher_momentum: λ of the student's average; the authors raise it to 1 by a cosine.
        assignment: balance the teacher's logits by "sinkhorn", or "center" and sharpen them.
        center_momentum: m of the centres' averages.
        sinkhorn_iterations: of "sinkhorn".
        masked_crops: share of the global crops that are masked.
        mask_ratio: least and largest share of a masked crop's patches that are hidden.
        exact_masks: see `CropMasks.exact` (DINOv3).
        mask_group_size: images that share out masks (the authors': those of one GPU); None: the batch. As patches are
            gathered from a group, one that lies on one device costs least.
        dino_weight: of the crops' loss.
        local_weight: of its part from local crops, in which it is otherwise 1 (DINOv3's later stages: 0.5).
        ibot_weight: of the patches' loss.
        koleo_weight: of KoLeo.
        koleo_group_size: examples among which KoLeo looks for neighbours; None: the batch.

    Raises:
        UserError: a frozen teacher and heads that do not fit it and the student's.
    """
    temperature, momentum = as_schedule(teacher_temperature), as_schedule(teacher_momentum)
    patch_role = "head" if patch_head is None else "patch_head"
    heads = {"head": head} | ({} if patch_head is None else {"patch_head": patch_head})
    roles = ("encoder", *heads)
    masks = CropMasks(masked_crops, mask_ratio, exact_masks, mask_group_size)
    teacher_heads = {"head": teacher_head, "patch_head": teacher_patch_head}
    teacher_heads = {role: one for role, one in teacher_heads.items() if one is not None}
    if teacher_heads and teacher is None:
        raise UserError(f"config.networks.teacher_{next(iter(teacher_heads))} needs config.networks.teacher.")
    teaching = (
        average_teacher(encoder, heads) if teacher is None else frozen_teacher(encoder, heads, teacher, teacher_heads)
    )
    assign = lookup(
        {
            "center": lambda logits, valid, center, step: centered_softmax(logits, center, temperature(step)),
            "sinkhorn": lambda logits, valid, center, step: sinkhorn(
                logits, temperature(step), sinkhorn_iterations, valid
            ),
        },
        assignment,
        "config.objective.assignment",
    )

    def init(key, batch) -> Variables:
        crops = crops_of(batch, "dinov2")
        student = init_networks(key, encoder, crops, **heads)
        centers = {role: jnp.zeros(one.out_dim, jnp.float32) for role, one in heads.items()}
        centers = {"crops": centers["head"], "patches": centers[patch_role]} if assignment == "center" else {}
        extra = {**with_teacher(student, roles), **teaching.init(key, crops), "center": centers}
        return Variables(student.params, extra)

    def draw(batch, key, step):
        del step  # nothing here changes over training
        _, t, height, width, _ = batch["global"].shape
        grid = grid_of((height, width), encoder.patch_size)
        return {**batch, "masked": masks.draw(stream(key, "mask"), batch, t, grid)}

    def forward(params, extra, batch, key, step):
        del step
        crops, b = crops_of(batch, "dinov2"), batch["global"].shape[0]
        hidden = {"masked": rearrange(batch["masked"], "b t n -> (b t) n")}
        seen, statistics = encode_crops(
            encoder,
            params["encoder"],
            extra["encoder"],
            crops,
            batch,
            stream(key, "drop_path"),
            of_whole=hidden if teacher is None else {},
            of_local={"local": True} if getattr(encoder, "local_class_norm", False) else {},
        )
        taught, extra = teaching.encode(extra, crops)
        outputs = Seen(
            student=pooled_by_view(seen, b),
            teacher=rearrange(taught.pooled, "(b t) d -> b t d", b=b),
            student_patches=rearrange(seen.whole.patch_tokens, "(b t) n d -> b t n d", b=b),
            teacher_patches=rearrange(taught.patch_tokens, "(b t) n d -> b t n d", b=b),
            masked=batch["masked"],
        )
        return outputs, {**extra, "encoder": statistics}

    def match_crops(params, extra, outputs, step):
        """Both parts of the crops' loss, unweighted; the mean of the teacher's logits; measurements."""
        t, num_local = outputs.teacher.shape[1], outputs.student.shape[1] - outputs.teacher.shape[1]
        student, statistics = project_views(head, params["head"], extra["head"], outputs.student)
        logits, extra = teaching.project({**extra, "head": statistics}, outputs.teacher, "head")
        flat = rearrange(logits, "b t m -> (b t) m")
        targets = assign(flat, None, extra["center"].get("crops"), step).reshape(logits.shape)
        num_pairs, tau = t * (t - 1 + num_local), as_schedule(student_temperature)(step)
        parts = {"dino_global": t * (t - 1) / num_pairs * dino_loss(student[:, :t], targets, tau)}
        if num_local:
            matched = dino_loss(student[:, t:], targets, tau, same_view=True)
            parts["dino_local"] = t * num_local / num_pairs * matched * as_schedule(local_weight)(step)
        return parts, jnp.mean(flat, axis=0), measure_assignments(student, targets), extra

    def match_patches(params, extra, outputs, step):
        """The patches' loss and the mean of the teacher's logits of them."""
        index, weight = masks.hidden(outputs.masked)
        student, logits = (
            masks.take(tokens, index)[:, None] for tokens in (outputs.student_patches, outputs.teacher_patches)
        )
        student, statistics = project_views(heads[patch_role], params[patch_role], extra[patch_role], student)
        logits, extra = teaching.project({**extra, patch_role: statistics}, logits, patch_role)
        student, logits, weight = student[:, 0], logits[:, 0], weight.reshape(-1)
        hidden = weight > 0
        targets = assign(logits, hidden, extra["center"].get("patches"), step)
        num_crops, tau = outputs.teacher.shape[0] * outputs.teacher.shape[1], as_schedule(student_temperature)(step)
        loss = masked_patch_cross_entropy(student, targets, weight, tau, num_crops)
        mean = jnp.sum(logits, axis=0, where=hidden[:, None]) / jnp.maximum(jnp.sum(hidden, dtype=jnp.float32), 1)
        return loss, mean, extra

    def criterion(params, extra, outputs, step):
        crops, crops_mean, measured, extra = match_crops(params, extra, outputs, step)
        patches, patches_mean, extra = match_patches(params, extra, outputs, step)
        views = [outputs.student[:, view] for view in range(outputs.teacher.shape[1])]
        spread = sum(jnp.mean(koleo(view, group_size=koleo_group_size)) for view in views)
        terms = {name: as_schedule(dino_weight)(step) * part for name, part in crops.items()}
        terms["ibot"] = as_schedule(ibot_weight)(step) * patches
        terms["koleo"] = as_schedule(koleo_weight)(step) * spread
        measured |= {"temperature": temperature(step), "teacher_momentum": momentum(step)}
        if assignment == "center":
            means = {"crops": crops_mean, "patches": patches_mean}
            center = {name: update_center(extra["center"][name], means[name], center_momentum) for name in means}
            measured["center_norm"] = jnp.linalg.norm(center["crops"])
            extra = {**extra, "center": center}
        loss = sum(terms.values(), jnp.float32(0))
        return loss, (extra, {"loss": loss} | {f"loss/{name}": term for name, term in terms.items()} | measured)

    def after_update(params, extra, step):
        return {**extra, "teacher": move_teacher(extra["teacher"], params, momentum(step))}

    return Objective(
        init,
        forward,
        criterion,
        after_update,
        encoder_predictions(encoder),
        separable=False,
        embedding=lambda outputs: outputs.student[:, : outputs.teacher.shape[1]],
        after_load=lambda params, extra: {**extra, "teacher": start_teacher(params, roles)},
        draw=draw,
    )
