"""A toy network and toy splits."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.types import Features


@pytest.fixture
def toy():
    """Makes `(predict, batches)` of splits given as arrays; predict["features"] reads the image as tokens.

    An image is (n tokens, 1, d): `pooled` is the last token, tokens carry `num_prefix_tokens` prefix tokens.
    `predict.calls` counts the runs of the encoder.
    """

    def make(splits, *, batch_size=4, num_prefix_tokens=1, order=None):
        calls = []

        def features(batch):
            calls.append(len(batch["index"]))
            tokens = batch["image"][:, :, 0]
            return Features(tokens=tokens, pooled=tokens[:, -1], num_prefix_tokens=num_prefix_tokens)

        def batches_of(images, labels):
            def iterate():
                rows = np.arange(len(images)) if order is None else np.asarray(order)
                for first in range(0, len(rows), batch_size):
                    taken = np.resize(rows[first : first + batch_size], batch_size)
                    valid = np.arange(batch_size) < len(rows) - first
                    # What pads the last batch must not be read: its rows are made absurd.
                    image = np.where(valid[:, None, None, None], images[taken], 1e6).astype(np.float32)
                    yield {
                        "image": jnp.asarray(image),
                        "label": jnp.asarray(labels[taken], jnp.int32),
                        "valid": jnp.asarray(valid),
                        "index": jnp.asarray(taken, jnp.int32),
                    }

            return iterate

        return {"features": features}, {name: batches_of(*split) for name, split in splits.items()}, calls

    return make


@pytest.fixture
def blobs():
    """Makes `(images, labels)`: class centres with noise, as images of `num_tokens` equal tokens."""

    def make(num, *, seed, noise=0.3, num_classes=7, width=5, num_tokens=2):
        centres = np.random.default_rng(0).normal(size=(num_classes, width))
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, num_classes, num).astype(np.int32)
        rows = centres[labels] + noise * rng.normal(size=(num, width))
        return np.repeat(rows[:, None, None], num_tokens, axis=1).astype(np.float32), labels

    return make
