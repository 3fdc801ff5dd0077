"""iGPT (Chen et al., Generative Pretraining from Pixels, 2020, ICML)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vfm_jax.core.errors import UserError
from vfm_jax.core.keys import example_keys, stream
from vfm_jax.nn.patches import color_classes, colors_of_classes, patchify
from vfm_jax.objectives.interface import Objective, Variables, carry_nothing, encoder_predictions


class Guessed(NamedTuple):
    """Logits of each pixel's colour class (b n m), the class (b n), and the tokens pooled (b d)."""

    logits: jax.Array
    classes: jax.Array
    pooled: jax.Array


def igpt(encoder: Any, head: Any) -> Objective:
    """Predicts the colour class of each pixel from the pixels before it, in raster order.

    A pixel is a patch of the encoder, which may be larger than one and then counts by its mean colour. Features are
    pooled from the level that the encoder returns (`levels`), where it returns one: those of a middle block serve
    best (Sec. 4.2).

    Reference: Chen et al., 2020 (ICML), Sec. 2.1, 3.1 and 3.2, and the authors' code. The palette is a regular one
    where theirs are cluster centres, so that losses are not comparable.

    Args:
        encoder: images, normalised to [-1, 1] -> Features; causal, with a class token as the start of the sequence.
        head: tokens, the grid, number of classes -> logits.
    """
    needed = {"causal": True, "class_token": True, "registers": 0, "distillation_token": False}
    if found := [field for field, value in needed.items() if getattr(encoder, field, None) != value]:
        raise UserError(
            f"igpt predicts pixels from a start token and those before: set config.networks.encoder.{found[0]}="
            f"{needed[found[0]]}."
        )
    if not getattr(encoder, "color_levels", 0):
        raise UserError("igpt reads and predicts classes of colours: set config.networks.encoder.color_levels=8.")

    def classes_of(images) -> jax.Array:
        return color_classes(patchify(images, encoder.patch_size), encoder.patch_size**2, encoder.color_levels)

    def guess(params, images, keys=None, train=False) -> Guessed:
        classes = classes_of(images)
        b, n = classes.shape
        before = jnp.broadcast_to(jnp.arange(n - 1)[None], (b, n - 1))  # nothing is predicted from the last
        seen = encoder.apply({"params": params["encoder"]}, images, keep=before, keys=keys, train=train)
        num_classes = encoder.color_levels ** images.shape[-1]
        logits = head.apply({"params": params["head"]}, seen.tokens, seen.grid, num_classes)
        return Guessed(logits, classes, seen.pooled)

    def init(key, batch) -> Variables:
        seen, own = encoder.init_with_output(stream(key, "encoder"), batch["image"])
        num_classes = encoder.color_levels ** batch["image"].shape[-1]
        other = head.init(stream(key, "head"), seen.tokens[:, :-1], seen.grid, num_classes)
        return Variables({"encoder": own["params"], "head": other["params"]}, {})

    def forward(params, extra, batch, key, step):
        del step  # nothing here changes over training
        keys = example_keys(stream(key, "drop_path"), batch["epoch"], batch["index"])
        return guess(params, batch["image"], keys, train=True), extra

    def criterion(params, extra, outputs, step):
        del params, step
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs.logits, outputs.classes))
        hit = jnp.argmax(outputs.logits, axis=-1) == outputs.classes
        return loss, (extra, {"loss": loss, "accuracy": jnp.mean(hit.astype(jnp.float32))})

    def features(variables: Variables, batch) -> Any:
        seen = shared["features"](variables, batch)
        return seen.replace(pooled=jnp.mean(seen.levels[0], axis=1)) if seen.levels else seen

    def reconstruction(variables: Variables, batch) -> dict[str, jax.Array]:
        """Images, the likeliest colour of each pixel by the true ones before it, and ones: all is predicted."""
        images, (b, h, w, c) = batch["image"], batch["image"].shape
        likeliest = jnp.argmax(guess(variables.params, images).logits, axis=-1)
        side = encoder.patch_size
        colors = colors_of_classes(likeliest, encoder.color_levels, c).reshape(b, h // side, w // side, c)
        made = jnp.repeat(jnp.repeat(colors, side, axis=1), side, axis=2)
        return {"original": images, "reconstructed": made, "hidden": jnp.ones_like(images)}

    shared = encoder_predictions(encoder)
    return Objective(
        init,
        forward,
        criterion,
        carry_nothing,
        shared | {"features": features, "reconstruction": reconstruction},
        separable=True,
        embedding=lambda outputs: outputs.pooled[:, None],
    )
