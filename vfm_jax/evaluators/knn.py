"""Weighted k-nearest-neighbour classification of frozen features, as DINO does it."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from vfm_jax.core.errors import UserError
from vfm_jax.evaluators.features import check_pool, extract
from vfm_jax.evaluators.interface import Batches, Cache, Evaluator, Predict
from vfm_jax.evaluators.ranking import NUM_RANKED, accuracies, map_chunks

CHUNK = (
    128  # test images at once; with 50,000 train images the similarities stay in the cache of a CPU (1.2 times 256)
)


def vote(
    train: Float[Array, "n d"],
    labels: Int[Array, " n"],
    test: Float[Array, "b d"],
    temperature: Float[Array, ""],
    ks: tuple[int, ...],
    num_classes: int,
) -> Float[Array, "k b m"]:
    """For each k, every class's votes for each test row: Σ exp((cos − cos of the nearest) / T) over k train rows.

    DINO's votes but for a factor of each row, so that no T overflows. Rows are of length one; the search is exact.
    """
    exact = jax.lax.Precision.HIGHEST
    similarity = jnp.matmul(test, train.T, precision=exact)  # b n
    # The barrier keeps the slices below out of the search: with them XLA on the CPU sorts whole rows, 17 x slower.
    nearest, which = jax.lax.optimization_barrier(jax.lax.top_k(similarity, max(ks)))
    weights = jnp.exp((nearest - nearest[:, :1]) / temperature)
    classes = jax.nn.one_hot(labels[which], num_classes, dtype=jnp.float32)  # b k m
    return jnp.stack([jnp.einsum("bk,bkm->bm", weights[:, :k], classes[:, :k], precision=exact) for k in ks])


@functools.partial(jax.jit, static_argnames=("ks", "num_classes"))
def _rank(train, labels, temperature, test, *, ks, num_classes):
    votes = vote(train, labels, test, temperature, ks, num_classes)
    return rearrange(jax.lax.top_k(votes, min(NUM_RANKED, num_classes))[1], "k b r -> b (k r)")


def rank_classes(
    train: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "t d"],
    *,
    num_neighbors: Sequence[int],
    temperature: float,
    num_classes: int,
) -> Int[np.ndarray, "k t r"]:
    """For each k, the (up to five) classes with most votes for each test row, best first; equal votes by class."""
    fixed = (jnp.asarray(_normalize(train)), jnp.asarray(labels), jnp.float32(temperature))
    rank = functools.partial(_rank, *fixed, ks=tuple(num_neighbors), num_classes=num_classes)
    return rearrange(map_chunks(rank, _normalize(test), CHUNK), "t (k r) -> k t r", k=len(num_neighbors))


def _normalize(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def knn(*, num_neighbors: int | Sequence[int] = 20, temperature: float = 0.07, pool: str = "pooled") -> Evaluator:
    """Accuracy on the test split of votes from the nearest train images, weighted by exp(cosine similarity / T).

    `accuracy` is in [0, 1]; with several `num_neighbors` one figure for each (`accuracy_k10`, `accuracy_k20`).
    `accuracy_top5` (among the min(5, k) classes with most votes) is given where there are more than five classes.
    A test image of a class that train lacks counts as wrong.

    Reference: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, 2021 (arXiv:2104.14294),
    Sec. 4.1 (k = 20) and the authors' eval_knn.py; the form is Wu et al., 2018 (arXiv:1805.01978), Sec. 3.4.

    Args:
        num_neighbors: k, or several of them.
        temperature: T of the votes, above zero.
        pool: how an image becomes one vector (`features.POOLS`).

    Raises:
        UserError: here, no such pooling, or a k or a T below one and zero; when run, k above the train images.
    """
    ks = (num_neighbors,) if isinstance(num_neighbors, int) else tuple(num_neighbors)
    if not ks or min(ks) < 1:
        raise UserError(f"knn: num_neighbors is {num_neighbors!r}; expected a whole number above 0, or several.")
    if not temperature > 0:
        raise UserError(f"knn: temperature is {temperature!r}; expected a number above 0, such as 0.07.")
    needs = check_pool(pool, "knn")

    def run(predict: Predict, batches: Batches, cache: Cache | None = None) -> dict[str, float]:
        train, test = (
            extract(predict, batches, split, pool, cache=cache, labels_for="knn") for split in ("train", "test")
        )
        if max(ks) > len(train.labels):
            raise UserError(
                f"knn: num_neighbors is {max(ks)}, but the train split has {len(train.labels)} images.\n"
                f"Set num_neighbors to {len(train.labels)} or less."
            )
        num_classes = int(max(train.labels.max(), test.labels.max())) + 1
        ranks = rank_classes(
            train.features,
            train.labels,
            test.features,
            num_neighbors=ks,
            temperature=temperature,
            num_classes=num_classes,
        )
        figures = {}
        for k, ranked in zip(ks, ranks, strict=True):
            suffix = f"_k{k}" if len(ks) > 1 else ""
            for name, value in accuracies(ranked, test.labels, num_classes, most=k).items():
                figures[f"{name}{suffix}"] = value
        return figures

    return Evaluator(run, needs)
