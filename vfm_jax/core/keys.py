"""Named random streams: every random number follows from one seed and the name of its use.

Nothing depends on the number of devices, hosts or data workers, or on what ran before.
"""

import zlib

import jax
from jaxtyping import Array, Int, Key


def key_for(seed: int, step: int | jax.Array, name: str, stage: int = 0) -> jax.Array:
    """The key of stream `name` at `step` of `stage`.

    Streams are told apart by the name's CRC-32, so adding one never changes another.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(jax.random.fold_in(key, stage), step)


def stream(key: jax.Array, name: str) -> jax.Array:
    """A sub-stream of `key`, told apart by name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def example_keys(key: jax.Array, epoch: Int[Array, " b"], index: Int[Array, " b"]) -> Key[Array, " b"]:
    """One key per example, from the record's index in its source and the epoch it is drawn in.

    An example keeps its random numbers wherever it stands in whichever batch: on any number of devices, and in
    any micro-batch of an accumulated one.
    """
    return jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(key, e), i))(epoch, index)
