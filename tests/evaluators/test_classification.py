"""Accuracy of the network's own logits."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.evaluators.classification import classification


def run(toy, logits, labels):
    images = np.asarray(logits, np.float32)[:, None, None]
    _, batches, _ = toy({"test": (images, np.asarray(labels, np.int32))})
    return classification().run({"logits": lambda batch: batch["image"][:, 0, 0].astype(jnp.bfloat16)}, batches)


@pytest.mark.parametrize("num_classes", [5, 7])
def test_accuracy_counts_every_image_once_and_no_padding(toy, num_classes):
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(-99, 99, (11, num_classes)), rng.integers(0, num_classes, 11)
    logits = np.argsort(np.argsort(logits, axis=1), axis=1)  # no ties, exact in bfloat16
    order = np.argsort(-logits, axis=1)
    figures = run(toy, logits, labels)
    assert figures["accuracy"] == pytest.approx(np.mean(order[:, 0] == labels), rel=1e-6)
    if num_classes > 5:
        assert figures["accuracy_top5"] == pytest.approx(np.mean((order[:, :5] == labels[:, None]).any(1)), rel=1e-6)
    else:
        assert set(figures) == {"accuracy"}


def test_an_unlabelled_image_is_refused(toy):
    with pytest.raises(UserError, match="classification needs labels"):
        run(toy, np.eye(3), [0, 1, -1])


def test_a_split_without_images_is_refused(toy):
    with pytest.raises(UserError, match="no images"):
        run(toy, np.zeros((0, 3)), np.zeros(0))
