"""The frozen representation of a split: one vector per image, on the host."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Array, Float

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.sharding import to_host
from vfm_jax.core.tables import lookup
from vfm_jax.core.types import Batch, Features
from vfm_jax.evaluators.interface import (
    Batches,
    Cache,
    Extracted,
    Kept,
    Predict,
    check_labels,
    empty_split,
    one_behind,
)


@jax.jit
def _pooled(features: Features) -> Float[Array, "b d"]:
    return features.pooled.astype(jnp.float32)


@jax.jit
def _class_token(features: Features) -> Float[Array, "b d"]:
    if features.num_prefix_tokens == 0:
        raise UserError('pool="class" needs an encoder with a class token; this one has none. Try "mean_patch".')
    return features.tokens[:, 0].astype(jnp.float32)


@jax.jit
def _mean_patch(features: Features) -> Float[Array, "b d"]:
    return reduce(features.patch_tokens.astype(jnp.float32), "b n d -> b d", "mean")


@jax.jit
def _pixels(image: Float[Array, "b ..."]) -> Float[Array, "b d"]:
    return rearrange(image.astype(jnp.float32), "b ... -> b (...)")


def _of_features(pool: Callable[[Features], jax.Array]) -> Callable[[Predict, Batch], jax.Array]:
    return lambda predict, batch: pool(predict["features"](batch))


# How one vector per image is made. "pooled" is the encoder's own rule; "pixels" (no encoder) is the raw baseline.
POOLS: dict[str, Callable[[Predict, Batch], jax.Array]] = {
    "pooled": _of_features(_pooled),
    "class": _of_features(_class_token),
    "mean_patch": _of_features(_mean_patch),
    "pixels": lambda predict, batch: _pixels(batch["image"]),
}


def check_pool(pool: str, where: str) -> tuple[str, ...]:
    """The predictions that `pool` asks for.

    Raises:
        UserError: there is no such pooling.
    """
    lookup(POOLS, pool, f"{where}.pool")
    return () if pool == "pixels" else ("features",)


def extract(
    predict: Predict,
    batches: Batches,
    split: str,
    pool: str = "pooled",
    *,
    cache: Cache | None = None,
    labels_for: str | None = None,
) -> Extracted:
    """Float32 features, labels and record numbers of the valid examples of a split, sorted by record number.

    The order, and with it whatever is drawn from these rows later, does not depend on how they were batched.

    Args:
        predict: what the network predicts; "features" is asked for, unless pool is "pixels".
        batches: passes over the splits.
        split: which one.
        pool: "pooled" (the encoder's own rule), "class", "mean_patch", or "pixels" (the normalised image itself).
        cache: where to look first and to keep the result.
        labels_for: who needs labels; the first batch without them is then refused. None: labels may be -1.

    Raises:
        UserError: an unlabelled example, no example at all, or a pooling this encoder does not have.
        TrainingError: features that are not finite.
    """
    cache = Cache() if cache is None else cache
    if (pool, split) not in cache:
        # Pixels are in the data set already, and larger than any feature.
        kept = cache.kept(pool, split) if cache.kept is not None and pool != "pixels" else None
        cache[pool, split] = _run_encoder(predict, batches, split, pool, labels_for, kept)
    found = cache[pool, split]
    if labels_for is not None:  # the rows may have been extracted by someone who needs no labels
        check_labels(found.labels, found.index, split, labels_for)
    return found


def _run_encoder(
    predict: Predict, batches: Batches, split: str, pool: str, labels_for: str | None, kept: Kept | None
) -> Extracted:
    """The features that are not kept, together with those that are."""
    parts, unseen = ([], batches[split]()) if kept is None else ([kept.found], kept.missing())
    made = ((POOLS[pool](predict, batch), *_rows(batch, split, labels_for)) for batch in unseen)
    for features, valid, labels, index in one_behind(made):
        part = Extracted(to_host(features)[valid], labels[valid], index[valid])
        if kept is not None:
            kept.keep(part)
        parts.append(part)
    if not sum(len(part.index) for part in parts):
        raise empty_split(split)
    whole = Extracted(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    order = np.argsort(whole.index, kind="stable")
    whole = Extracted(*(column[order] for column in whole))
    broken = np.flatnonzero(~np.isfinite(whole.features).all(axis=1))
    if broken.size:
        raise TrainingError(
            f"The features ({pool}) of {broken.size} of {len(order)} {split!r} images are not finite, the first of "
            f"record {whole.index[broken[0]]}. Look at the loss: the network has diverged."
        )
    return whole


def _rows(batch: Batch, split: str, labels_for: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    valid, labels, index = (to_host(batch[field]) for field in ("valid", "label", "index"))
    if labels_for is not None:
        check_labels(labels[valid], index[valid], split, labels_for)
    return valid, labels, index
