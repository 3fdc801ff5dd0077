"""Finding the text of an image and the image of a text, among all of the test split."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.sharding import to_host
from vfm_jax.core.types import Features
from vfm_jax.evaluators.interface import (
    Batches,
    Cache,
    Evaluator,
    Predict,
    empty_split,
    one_behind,
)
from vfm_jax.metrics.retrieval import pair_ranks, recall_at


@jax.jit
def _pooled(features: Features) -> Float[Array, "b d"]:
    return features.pooled.astype(jnp.float32)


def retrieval(*, recall_at_k: Sequence[int] = (1, 5, 10)) -> Evaluator:
    """Recall at k, in [0, 1]: `text_to_image_recall_at_1`, ... and `image_to_text_recall_at_1`, ...

    All texts of an image take part, not only the first; an image finds its text where it finds any of them.

    Reference: the protocol of Karpathy and Fei-Fei, 2014 (arXiv:1412.2306), Sec. 4.1, as in big_vision's
    image_text_retrieval.py; COCO's is five texts an image (max_texts=5).

    Args:
        recall_at_k: the numbers of first ones that are looked at.

    Raises:
        UserError: here, a k below one; when run, data without texts.
    """
    ks = tuple(recall_at_k)
    if not ks or min(ks) < 1:
        raise UserError(f"retrieval: recall_at_k is {recall_at_k!r}; expected whole numbers above 0.")

    def run(predict: Predict, batches: Batches, cache: Cache | None = None) -> dict[str, float]:
        del cache  # what is cached is of images alone

        def made():
            for batch in batches["test"]():
                if "texts" not in batch:
                    raise UserError(
                        'retrieval needs texts, and this data has none: take a source of pairs, name="pairs".'
                    )
                each = ({**batch, "text": text} for text in jnp.moveaxis(batch["texts"], 1, 0))
                texts = jnp.stack([_pooled(predict["text_features"](one)) for one in each], axis=1)
                yield _pooled(predict["features"](batch)), texts, batch["num_texts"], batch["valid"]

        images, texts, counts = [], [], []
        for parts in one_behind(made()):
            image, text, count, valid = map(to_host, parts)
            there = np.arange(text.shape[1]) < count[valid][:, None]
            images.append(image[valid])
            texts.append(text[valid][there])
            counts.append(count[valid])
        count = np.concatenate(counts or [np.zeros(0, np.int32)])
        if not len(count):
            raise empty_split("test")
        image, text = np.concatenate(images), np.concatenate(texts)
        if not (np.isfinite(image).all() and np.isfinite(text).all()):
            raise TrainingError("Features of the 'test' split are not finite. Look at the loss: it has diverged.")
        of_texts, of_images = pair_ranks(image, text, np.repeat(np.arange(len(count)), count))
        return {f"image_to_text_recall_at_{k}": recall_at(of_images, k) for k in ks} | {
            f"text_to_image_recall_at_{k}": recall_at(of_texts, k) for k in ks
        }

    return Evaluator(run, needs=("features", "text_features"), splits=("test",))
