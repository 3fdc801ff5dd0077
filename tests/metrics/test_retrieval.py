"""Recall of pairs against big_vision's evaluator, and against a sort."""

import numpy as np
import pytest

from vfm_jax.metrics.retrieval import pair_ranks, recall_at


def test_recall_is_big_visions(golden_directory):
    g = np.load(golden_directory / "eval" / "retrieval.npz")
    of_texts, of_images = pair_ranks(g["image"], g["text"], g["text_to_image"])
    for k, to_image, to_text in zip(g["ks"].tolist(), g["t2i_recall"], g["i2t_recall"], strict=True):
        assert recall_at(of_texts, k) == pytest.approx(to_image, abs=1e-6)
        assert recall_at(of_images, k) == pytest.approx(to_text, abs=1e-6)


def test_ranks_are_places_in_a_stable_sort_with_any_number_of_texts_an_image(monkeypatch):
    monkeypatch.setattr("vfm_jax.metrics.retrieval.CHUNK", 4)  # several chunks, the last one not full
    rng = np.random.default_rng(0)
    image = rng.integers(-2, 3, (9, 3)).astype(np.float32) + 0.5  # with ties
    owner = rng.permutation(np.concatenate([np.arange(9), rng.integers(0, 9, 8)]))
    text = rng.integers(-2, 3, (17, 3)).astype(np.float32) + 0.5
    of_texts, of_images = pair_ranks(image, text, owner)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    similarity = np.round(unit(text) @ unit(image).T, 5)  # equal in float32 up to rounding
    for i, row in enumerate(similarity):
        above, level = (row > row[owner[i]]).sum(), (row == row[owner[i]]).sum()
        assert above <= of_texts[i] < above + level
    for i, column in enumerate(similarity.T):
        best = column[owner == i].max()
        assert (column > best).sum() <= of_images[i] < (column > best).sum() + (column == best).sum()


def test_features_that_are_all_alike_find_no_more_than_chance():
    same = np.ones((20, 4), np.float32)
    for ranks in pair_ranks(same, same, np.arange(20)):
        np.testing.assert_array_equal(ranks, np.arange(20))
        assert recall_at(ranks, 5) == 0.25
