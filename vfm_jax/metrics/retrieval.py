"""Measures of retrieval: of how many queries is what was sought among the first k?"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

CHUNK = 256  # queries at once: with 25,000 texts their similarities are 26 MB


def pair_ranks(
    image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "m d"], owner: Int[np.ndarray, " m"]
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
    """How many wrong ones are nearer, by cosine: for each text than its image, for each image than its nearest text.

    Of equally near ones the first in order counts as nearer, as in a stable sort: features that are all alike find
    no more than chance does.

    Args:
        image: features, of any length above zero.
        text: the same; several may belong to one image.
        owner: the image of each text. Every image has one.
    """
    image, text = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (image, text))
    of_texts = _in_chunks(lambda rows, own: _rank_of_own(rows, image, own), text, owner)
    by_image = np.argsort(owner, kind="stable")
    first = np.searchsorted(owner[by_image], np.arange(len(image)))
    count = np.bincount(owner, minlength=len(image))
    # the texts of each image side by side; where it has fewer than others, its first one again
    place = np.arange(count.max())
    own_texts = by_image[first[:, None] + np.where(place < count[:, None], place, 0)]
    of_images = _in_chunks(lambda rows, own: _rank_of_best(rows, text, own), image, own_texts)
    return of_texts, of_images


def recall_at(ranks: Int[np.ndarray, " n"], k: int) -> float:
    """Share of the queries with fewer than k wrong ones before the right one."""
    return float(np.mean(ranks < k))


@jax.jit
def _rank_of_own(
    query: Float[Array, "b d"], database: Float[Array, "n d"], own: Int[Array, " b"]
) -> Int[Array, " b"]:
    return _count_before(_similarity(query, database), own)


@jax.jit
def _rank_of_best(
    query: Float[Array, "b d"], database: Float[Array, "n d"], own: Int[Array, "b t"]
) -> Int[Array, " b"]:
    similarity = _similarity(query, database)
    nearest = jnp.argmax(jnp.take_along_axis(similarity, own, axis=1), axis=1)
    return _count_before(similarity, jnp.take_along_axis(own, nearest[:, None], axis=1)[:, 0])


def _similarity(query: jax.Array, database: jax.Array) -> jax.Array:
    return jnp.matmul(query, database.T, precision=jax.lax.Precision.HIGHEST)


def _count_before(similarity: Float[Array, "b n"], own: Int[Array, " b"]) -> Int[Array, " b"]:
    reached = jnp.take_along_axis(similarity, own[:, None], axis=1)
    earlier = jnp.arange(similarity.shape[1])[None, :] < own[:, None]
    return jnp.sum((similarity > reached) | ((similarity == reached) & earlier), axis=1)


def _in_chunks(
    function: Callable[[np.ndarray, np.ndarray], jax.Array], rows: np.ndarray, own: np.ndarray
) -> np.ndarray:
    """`function` of the queries, a few at a time; the last chunk is filled up, so it compiles once."""
    parts = []
    for first in range(0, len(rows), CHUNK):
        taken = np.minimum(np.arange(first, first + CHUNK), len(rows) - 1)
        parts.append(function(rows[taken], own[taken]))
    return np.concatenate(jax.device_get(parts))[: len(rows)]
