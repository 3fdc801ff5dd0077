"""Who teaches a student of crops: its own running average, or a larger network that never learns."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from einops import rearrange

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import stream
from vfm_jax.core.types import Features
from vfm_jax.nn.resample import resample_positions
from vfm_jax.objectives.interface import Extra, init_network
from vfm_jax.objectives.multicrop import Crops, encode_by_teacher, project_by_teacher
from vfm_jax.objectives.teacher import apply_frozen, frozen_networks


class CropTeacher(NamedTuple):
    """What makes the targets of global crops, without gradient.

    Attributes:
        init: (key, crops) -> what `extra` holds of it, beside the student's average, which every method here keeps.
        encode: (extra, crops) -> features of the global crops (leaves (b · v) ...), and `extra` after it.
        project: (extra, views (b v d), the head's role) -> logits (b v m), and `extra` after it.
    """

    init: Callable[[jax.Array, Crops], Extra]
    encode: Callable[[Extra, Crops], tuple[Features, Extra]]
    project: Callable[[Extra, jax.Array, str], tuple[jax.Array, Extra]]


def average_teacher(encoder: Any, heads: Mapping[str, Any]) -> CropTeacher:
    """The student's own running average, `extra["teacher"]`."""
    return CropTeacher(
        init=lambda key, crops: {},
        encode=lambda extra, crops: encode_by_teacher(encoder, extra, crops),
        project=lambda extra, views, role: project_by_teacher(heads[role], extra, views, role),
    )


def frozen_teacher(
    encoder: Any, heads: Mapping[str, Any], teacher: Any, teacher_heads: Mapping[str, Any]
) -> CropTeacher:
    """A trained network with the heads that it was trained with; the student's average is a result alone.

    Where its patches are of another size than the student's, it sees the crops resized to as many patches, by
    antialiased bilinear interpolation (DINOv3's ConvNeXts have cells of 32 pixels, and see twice the resolution).

    Reference: Oquab et al., 2023 (arXiv:2304.07193), Sec. 5; Siméoni et al., 2025 (arXiv:2508.10104), Sec. 5.2, and
    `MultiDistillationMetaArch` of their code.

    Args:
        encoder: the student's.
        heads: of the student, by role.
        teacher: images -> Features.
        teacher_heads: by the same roles, its features -> logits of the prototypes that the student's heads have too.

    Raises:
        UserError: a head without its counterpart, or with another number of prototypes.
    """
    for role in {**heads, **teacher_heads}:
        own, other = heads.get(role), teacher_heads.get(role)
        if own is None or other is None or own.out_dim != other.out_dim:
            sizes = ["none" if one is None else f"{one.out_dim} prototypes" for one in (own, other)]
            raise UserError(
                f"A frozen teacher's heads have the prototypes of its student's: config.networks.{role} has "
                f"{sizes[0]}, config.networks.teacher_{role} {sizes[1]}."
            )

    def images_for(crops: Crops) -> jax.Array:
        images = rearrange(crops.whole, "b t h w c -> (b t) h w c")
        if teacher.patch_size == encoder.patch_size:
            return images
        height, width = (side // encoder.patch_size * teacher.patch_size for side in images.shape[1:3])
        return jax.vmap(lambda image: resample_positions(image, (height, width), "bilinear_antialias"))(images)

    def init(key: jax.Array, crops: Crops) -> Extra:
        seen, *own = init_network(teacher, stream(key, "teacher"), images_for(crops))
        made = {"teacher": own}
        for role, head in teacher_heads.items():
            _, *made[f"teacher_{role}"] = init_network(head, stream(key, f"teacher_{role}"), seen.pooled, train=True)
        return frozen_networks(made)

    def encode(extra: Extra, crops: Crops) -> tuple[Features, Extra]:
        return apply_frozen(teacher, extra, "teacher", images_for(crops)), extra

    def project(extra: Extra, views: jax.Array, role: str) -> tuple[jax.Array, Extra]:
        flat = rearrange(views, "b v d -> (b v) d")
        logits = apply_frozen(teacher_heads[role], extra, f"teacher_{role}", flat)
        return rearrange(logits, "(b v) m -> b v m", v=views.shape[1]), extra

    return CropTeacher(init, encode, project)
