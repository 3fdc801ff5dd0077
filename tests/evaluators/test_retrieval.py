"""Retrieval over batches: every text of every valid image, and nothing of the padding."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.types import Features
from vfm_jax.evaluators import EVALUATORS
from vfm_jax.metrics.retrieval import pair_ranks, recall_at

COUNTS = np.array([2, 1, 3, 1, 2, 3, 1])
NUM, MOST, WIDTH = len(COUNTS), 3, 4


def _features(rows):
    return Features(tokens=rows[:, None], pooled=rows)


PREDICT = {
    "features": lambda batch: _features(batch["image"]),
    "text_features": lambda batch: _features(batch["text"].astype(jnp.float32)),
}


def _data(seed=0):
    rng = np.random.default_rng(seed)
    texts = rng.integers(-9, 10, (NUM, MOST, WIDTH))
    return rng.normal(size=(NUM, WIDTH)).astype(np.float32), texts


def _batches(image, texts, size=4):
    def iterate():
        for first in range(0, NUM, size):
            valid = np.arange(first, first + size) < NUM
            rows = np.minimum(np.arange(first, first + size), NUM - 1)
            made = np.where(valid[:, None], image[rows], 1e6).astype(np.float32)
            yield {
                "image": jnp.asarray(made),
                "texts": jnp.asarray(texts[rows], jnp.int32),
                "text": jnp.asarray(texts[rows][:, 0], jnp.int32),
                "num_texts": jnp.asarray(COUNTS[rows], jnp.int32),
                "valid": jnp.asarray(valid),
            }

    return {"test": iterate}


def test_recall_counts_every_text_of_every_image_once():
    image, texts = _data()
    figures = EVALUATORS["retrieval"](recall_at_k=(1, 3)).run(PREDICT, _batches(image, texts))
    rows = np.concatenate([texts[i, :count] for i, count in enumerate(COUNTS)]).astype(np.float32)
    of_texts, of_images = pair_ranks(image, rows, np.repeat(np.arange(NUM), COUNTS))
    assert figures == {
        "image_to_text_recall_at_1": recall_at(of_images, 1),
        "image_to_text_recall_at_3": recall_at(of_images, 3),
        "text_to_image_recall_at_1": recall_at(of_texts, 1),
        "text_to_image_recall_at_3": recall_at(of_texts, 3),
    }
    assert 0 < figures["text_to_image_recall_at_3"] < 1


def test_data_without_texts_or_images_and_broken_features_are_refused():
    image, texts = _data()
    run = EVALUATORS["retrieval"]().run
    plain = [{k: v for k, v in batch.items() if "text" not in k} for batch in _batches(image, texts)["test"]()]
    with pytest.raises(UserError, match='name="pairs"'):
        run(PREDICT, {"test": lambda: plain})
    with pytest.raises(UserError, match="no images"):
        run(PREDICT, {"test": list})
    with pytest.raises(TrainingError, match="not finite"):
        run(PREDICT, _batches(np.full_like(image, np.nan), texts))
    with pytest.raises(UserError, match="above 0"):
        EVALUATORS["retrieval"](recall_at_k=(0,))
