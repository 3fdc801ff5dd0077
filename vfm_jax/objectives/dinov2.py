"""DINOv2 (Oquab et al., Learning Robust Visual Features without Supervision, 2023, arXiv:2304.07193)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.keys import example_keys, stream
from vfm_jax.core.tables import lookup
from vfm_jax.losses.regularizers import koleo
from vfm_jax.losses.self_distillation import (
    centered_softmax,
    dino_loss,
    mask_weights,
    masked_patch_cross_entropy,
    sinkhorn,
    update_center,
)
from vfm_jax.nn.masking import block_masks, gather_tokens, masked_indices
from vfm_jax.nn.patches import grid_of
from vfm_jax.objectives.interface import Objective, Variables, encoder_predictions, project_views
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
    """What student and teacher make of the crops of each image.

    Attributes:
        student: pooled features of all crops (b v d), global ones first.
        teacher: of the global crops (b t d).
        student_tokens: of the patches hidden from the student (b k d), filled up to a fixed number.
        teacher_tokens: of the same patches.
        weight: of each of them (b k): those of one crop sum to 1; 0 for the filling.
        patches: the student's tokens of all patches of the global crops (b t n d); None where nothing reads them.
    """

    student: jax.Array
    teacher: jax.Array
    student_tokens: jax.Array
    teacher_tokens: jax.Array
    weight: jax.Array
    patches: jax.Array | None


def dinov2(
    encoder: Any,
    head: Any,
    patch_head: Any = None,
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
    dino_weight: float | Schedule = 1.0,
    local_weight: float | Schedule = 1.0,
    ibot_weight: float | Schedule = 1.0,
    koleo_weight: float | Schedule = 0.1,
    koleo_group_size: int | None = None,
    keep_patches: bool = False,
) -> Objective:
    """DINO on crops, iBOT on patches hidden from the student, and KoLeo to spread the images out.

    The loss is that of the authors' code: their mean over the pairs of different crops; the patches' mean over all
    global crops, of which those without a mask add nothing; KoLeo's sum over the global crops, where the paper names
    the first alone. In each image the same number of global crops is masked, and each mask draws its own share of
    hidden patches; the authors mask half of the crops of a batch, at shares spread evenly over the range.

    Reference: Oquab et al., 2023 (arXiv:2304.07193), Sec. 4, and `SSLMetaArch` of their code.

    Args:
        encoder: images and hidden patches -> Features; a ViT with `mask_token=True`.
        head: pooled features -> logits of prototypes.
        patch_head: the same of patches; None: `head` is shared.
        student_temperature: τ_s.
        teacher_temperature: τ_t, for crops and patches; the authors raise it from 0.04.
        teacher_momentum: λ of the teacher's average; the authors raise it to 1 by a cosine.
        assignment: balance the teacher's logits by "sinkhorn", or "center" and sharpen them.
        center_momentum: m of the centres' averages.
        sinkhorn_iterations: of "sinkhorn".
        masked_crops: share of each image's global crops that are masked.
        mask_ratio: least and largest share of a masked crop's patches that are hidden.
        exact_masks: hide single patches where blocks hide too few (DINOv3).
        dino_weight: of the crops' loss.
        local_weight: of its part from local crops, in which it is otherwise 1 (DINOv3's later stages: 0.5).
        ibot_weight: of the patches' loss.
        koleo_weight: of KoLeo.
        koleo_group_size: examples among which KoLeo looks for neighbours; None: the batch.
        keep_patches: return the student's patches too, for a loss on them.
    """
    temperature, momentum = as_schedule(teacher_temperature), as_schedule(teacher_momentum)
    patch_role = "head" if patch_head is None else "patch_head"
    heads = {"head": head} | ({} if patch_head is None else {"patch_head": patch_head})
    roles = ("encoder", *heads)
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

    def draw_masks(batch, key) -> tuple[jax.Array, int]:
        """Which patches of the global crops are hidden (b t n), and how many of an image at most."""
        b, t, height, width, _ = batch["global"].shape
        grid = grid_of((height, width), encoder.patch_size)
        num_patches, num_masked = grid[0] * grid[1], round(t * masked_crops)
        keys = jax.vmap(lambda key: jax.random.split(key, 3))(example_keys(key, batch["epoch"], batch["index"]))
        rank = jax.vmap(lambda key: jax.random.permutation(key, t))(keys[:, 0])
        ratio = jax.vmap(lambda key: jax.random.uniform(key, (t,), jnp.float32, *mask_ratio))(keys[:, 1])
        wanted = jnp.where(rank < num_masked, jnp.floor(num_patches * ratio), 0).astype(jnp.int32)
        own = jax.vmap(lambda key: jax.random.split(key, t))(keys[:, 2])
        masks = block_masks(own.reshape(-1), grid, wanted.reshape(-1), exact=exact_masks)
        return masks.reshape(b, t, num_patches), int(num_patches * mask_ratio[1]) * num_masked

    def init(key, batch) -> Variables:
        crops = crops_of(batch, "dinov2")
        student = init_networks(key, encoder, crops, **heads)
        centers = {role: jnp.zeros(one.out_dim, jnp.float32) for role, one in heads.items()}
        centers = {"crops": centers["head"], "patches": centers[patch_role]} if assignment == "center" else {}
        return Variables(student.params, {**with_teacher(student, roles), "center": centers})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        crops, b = crops_of(batch, "dinov2"), batch["global"].shape[0]
        masked, most = draw_masks(batch, stream(key, "mask"))
        seen, statistics = encode_crops(
            encoder,
            params["encoder"],
            extra["encoder"],
            crops,
            batch,
            stream(key, "drop_path"),
            of_whole={"masked": rearrange(masked, "b t n -> (b t) n")},
            of_local={"local": True},
        )
        taught, extra = encode_by_teacher(encoder, extra, crops)
        index, _ = masked_indices(rearrange(masked, "b t n -> b (t n)"), most)
        weight = rearrange(mask_weights(rearrange(masked, "b t n -> (b t) n")), "(b t) n -> b (t n)", b=b)
        patches = rearrange(seen.whole.patch_tokens, "(b t) n d -> b t n d", b=b)
        outputs = Seen(
            student=pooled_by_view(seen, b),
            teacher=rearrange(taught.pooled, "(b t) d -> b t d", b=b),
            student_tokens=gather_tokens(rearrange(patches, "b t n d -> b (t n) d"), index),
            teacher_tokens=gather_tokens(rearrange(taught.patch_tokens, "(b t) n d -> b (t n) d", b=b), index),
            weight=jnp.take_along_axis(weight, index, axis=1),
            patches=patches if keep_patches else None,
        )
        return outputs, {**extra, "encoder": statistics}

    def match_crops(params, extra, outputs, step):
        """Both parts of the crops' loss, unweighted; the mean of the teacher's logits; measurements."""
        t, num_local = outputs.teacher.shape[1], outputs.student.shape[1] - outputs.teacher.shape[1]
        student, statistics = project_views(head, params["head"], extra["head"], outputs.student)
        teacher, extra = project_by_teacher(head, {**extra, "head": statistics}, outputs.teacher)
        flat = rearrange(teacher, "b t m -> (b t) m")
        targets = assign(flat, None, extra["center"].get("crops"), step).reshape(teacher.shape)
        num_pairs, tau = t * (t - 1 + num_local), as_schedule(student_temperature)(step)
        parts = {"dino_global": t * (t - 1) / num_pairs * dino_loss(student[:, :t], targets, tau)}
        if num_local:
            matched = dino_loss(student[:, t:], targets, tau, same_view=True)
            parts["dino_local"] = t * num_local / num_pairs * matched * as_schedule(local_weight)(step)
        return parts, jnp.mean(flat, axis=0), measure_assignments(student, targets), extra

    def match_patches(params, extra, outputs, step):
        """The patches' loss and the mean of the teacher's logits of them."""
        network, hidden = heads[patch_role], outputs.weight.reshape(-1) > 0
        student, statistics = project_views(network, params[patch_role], extra[patch_role], outputs.student_tokens)
        extra = {**extra, patch_role: statistics}
        teacher, extra = project_by_teacher(network, extra, outputs.teacher_tokens, patch_role)
        flat = rearrange(teacher, "b k m -> (b k) m")
        targets = assign(flat, hidden, extra["center"].get("patches"), step).reshape(teacher.shape)
        num_crops, tau = outputs.teacher.shape[0] * outputs.teacher.shape[1], as_schedule(student_temperature)(step)
        loss = masked_patch_cross_entropy(student, targets, outputs.weight, tau, num_crops)
        num_hidden = jnp.sum(hidden, dtype=jnp.float32)
        mean = jnp.sum(flat, axis=0, where=hidden[:, None]) / jnp.maximum(num_hidden, 1)
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
    )
