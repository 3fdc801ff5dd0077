"""I-JEPA (Assran et al., Self-Supervised Learning from Images with a JEPA, 2023, arXiv:2301.08243)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from vfm_jax.core.keys import example_keys, stream
from vfm_jax.losses.prediction import masked_smooth_l1, standardize_features
from vfm_jax.nn.masking import gather_tokens
from vfm_jax.nn.multi_block import Blocks, multi_block_masking
from vfm_jax.nn.patches import grid_of
from vfm_jax.objectives.interface import Objective, Variables, encoder_predictions
from vfm_jax.objectives.teacher import move_teacher, start_teacher
from vfm_jax.optim import Schedule, as_schedule


class Predicted(NamedTuple):
    """Predicted and true representations (b n d) of the blocks; padding is not valid (b n).

    The teacher's representation of the whole image is pooled (b d).
    """

    prediction: jax.Array
    target: jax.Array
    valid: jax.Array
    pooled: jax.Array


def ijepa(
    encoder: Any,
    predictor: Any,
    *,
    num_targets: int = 4,
    target_scale: tuple[float, float] = (0.15, 0.2),
    target_aspect_ratio: tuple[float, float] = (0.75, 1.5),
    context_scale: tuple[float, float] = (0.85, 1.0),
    min_context: int = 10,
    allow_overlap: bool = False,
    momentum: float | Schedule = 0.996,
) -> Objective:
    """Predicts a teacher's representations of several blocks of an image from those of the rest.

    Reference: Assran et al., 2023 (arXiv:2301.08243), Fig. 3 and Sec. 3; the loss and the masks are the code's.

    Args:
        encoder: images and the context's indices -> Features of the context's patches; the teacher sees whole images.
        predictor: tokens of the context, places of context and targets, the grid -> representations of the targets.
        num_targets: this and the next five: see `nn.multi_block.multi_block_masking`.
        target_scale: area of a target block, as a share of the grid.
        target_aspect_ratio: of its height over its width.
        context_scale: area of the block that the context is cut from.
        min_context: the context keeps more patches than this.
        allow_overlap: the context may contain target patches.
        momentum: of the teacher, the running average of the encoder; the paper raises it from 0.996 to 1 on a line.
    """
    of_step = as_schedule(momentum)

    def draw(batch, key) -> tuple[Blocks, tuple[int, int]]:
        grid = grid_of(batch["image"].shape[1:3], encoder.patch_size)
        sample = multi_block_masking(
            grid,
            num_targets=num_targets,
            target_scale=tuple(target_scale),
            target_aspect_ratio=tuple(target_aspect_ratio),
            context_scale=tuple(context_scale),
            min_context=min_context,
            allow_overlap=allow_overlap,
        )
        keys = example_keys(stream(key, "block_place"), batch["epoch"], batch["index"])
        return sample(stream(key, "block_size"), keys), grid

    def init(key, batch) -> Variables:
        blocks, grid = draw(batch, key)
        places = (blocks.context[None], blocks.targets, grid)
        seen, own = encoder.init_with_output(stream(key, "encoder"), batch["image"], keep=blocks.context)
        other = predictor.init(stream(key, "predictor"), seen.patch_tokens, *places)
        params = {"encoder": own["params"], "predictor": other["params"]}
        return Variables(params, {"teacher": start_teacher(params)})

    def forward(params, extra, batch, key, step):
        del step  # the masks are of one kind all the way
        images = batch["image"]
        blocks, grid = draw(batch, key)
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        seen = encoder.apply(
            {"params": params["encoder"]},
            images,
            keep=blocks.context,
            valid=blocks.context_valid,
            keys=keys,
            train=True,
        )
        prediction = predictor.apply(
            {"params": params["predictor"]},
            seen.patch_tokens,
            blocks.context[None],
            blocks.targets,
            grid,
            blocks.context_valid[None],
            blocks.targets_valid,
        )  # (t b) q d
        teacher = encoder.apply({"params": jax.lax.stop_gradient(extra["teacher"]["encoder"])}, images)
        index, valid = (rearrange(a, "t b q -> b (t q)") for a in (blocks.targets, blocks.targets_valid))
        target = gather_tokens(standardize_features(teacher.patch_tokens), index)
        prediction = rearrange(prediction, "(t b) q d -> b (t q) d", t=num_targets)
        return Predicted(prediction, target, valid, teacher.pooled), extra

    def criterion(params, extra, outputs, step):
        del params, step
        loss = jnp.mean(masked_smooth_l1(outputs.prediction, outputs.target, outputs.valid))
        return loss, (extra, {"loss": loss})

    def after_update(params, extra, step):
        return {**extra, "teacher": move_teacher(extra["teacher"], params, of_step(step))}

    return Objective(
        init,
        forward,
        criterion,
        after_update,
        encoder_predictions(encoder),
        separable=True,
        embedding=lambda outputs: outputs.pooled[:, None],
        after_load=lambda params, extra: {**extra, "teacher": start_teacher(params)},
    )
