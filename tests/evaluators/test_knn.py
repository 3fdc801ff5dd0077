"""Weighted k-NN against the authors' code."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.evaluators import knn as constructor
from vfm_jax.evaluators.knn import _normalize, rank_classes, vote
from vfm_jax.evaluators.ranking import accuracies


@pytest.fixture
def golden(golden_directory):
    with np.load(golden_directory / "eval/knn.npz") as arrays:
        return dict(arrays)


def as_images(rows):
    return rows[:, None, None]


def test_accuracies_are_those_of_dino(golden, toy):
    predict, batches, _ = toy(
        {
            "train": (as_images(golden["train_x"]), golden["train_y"]),
            "test": (as_images(golden["test_x"]), golden["test_y"]),
        },
        batch_size=50,
    )
    ks = tuple(int(k) for k in golden["ks"])
    figures = constructor(num_neighbors=ks, temperature=0.07).run(predict, batches)
    for i, k in enumerate(ks):
        assert 100 * figures[f"accuracy_k{k}"] == pytest.approx(golden["dino_top1"][i], rel=1e-6)
        assert 100 * figures[f"accuracy_k{k}"] == pytest.approx(golden["dinov2_top1"][i], rel=1e-6)
        if golden["top5_unambiguous"][i]:
            assert 100 * figures[f"accuracy_top5_k{k}"] == pytest.approx(golden["dino_top5"][i], rel=1e-6)
    assert golden["top5_unambiguous"].any()


def test_votes_are_dinov2s_probabilities_once_divided_by_those_of_the_largest_k(golden):
    ks = tuple(int(k) for k in golden["ks"])
    train, test = (jnp.asarray(_normalize(golden[name])) for name in ("train_x", "test_x"))
    votes = np.asarray(vote(train, jnp.asarray(golden["train_y"]), test, jnp.float32(0.07), ks, 7))
    total = votes[ks.index(max(ks))].sum(axis=1, keepdims=True)
    for k, of_k in zip(ks, votes, strict=True):
        np.testing.assert_allclose(of_k / total, golden[f"dinov2_probs_k{k}"], atol=1e-5)


def test_chunks_and_their_padding_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(13, 3)).astype(np.float32), rng.normal(size=(11, 3)).astype(np.float32)
    labels = rng.integers(0, 4, 13).astype(np.int32)
    fields = dict(num_neighbors=(2, 5), temperature=0.07, num_classes=4)
    whole = rank_classes(train, labels, test, **fields)
    assert whole.shape == (2, 11, 4)
    monkeypatch.setitem(rank_classes.__globals__, "CHUNK", 4)
    np.testing.assert_array_equal(rank_classes(train, labels, test, **fields), whole)


def test_with_a_small_temperature_the_nearest_decides(golden):
    arrays = [golden[name] for name in ("train_x", "train_y", "test_x")]
    one, many = (rank_classes(*arrays, num_neighbors=(k,), temperature=1e-6, num_classes=7)[0, :, 0] for k in (1, 20))
    np.testing.assert_array_equal(one, many)


def test_an_image_of_a_class_that_train_lacks_is_wrong(toy):
    rows = np.eye(3, dtype=np.float32)
    predict, batches, _ = toy(
        {"train": (as_images(rows[:2]), np.array([0, 1])), "test": (as_images(rows), np.array([0, 1, 6]))}
    )
    assert constructor(num_neighbors=1).run(predict, batches)["accuracy"] == pytest.approx(2 / 3)


def test_ranks_beyond_k_do_not_count_among_the_five():
    ranked, labels = np.array([[3, 1, 0, 2, 4]]), np.array([0])
    assert accuracies(ranked, labels, 7, most=2)["accuracy_top5"] == 0
    assert accuracies(ranked, labels, 7, most=3)["accuracy_top5"] == 1


def test_more_neighbors_than_train_images_are_refused_naming_both(toy, blobs):
    predict, batches, _ = toy({"train": blobs(9, seed=1), "test": blobs(5, seed=2)})
    with pytest.raises(UserError, match="num_neighbors is 20, but the train split has 9 images"):
        constructor().run(predict, batches)


@pytest.mark.parametrize("fields", [{"num_neighbors": 0}, {"num_neighbors": ()}, {"temperature": 0.0}])
def test_values_without_meaning_are_refused_when_built(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        constructor(**fields)
