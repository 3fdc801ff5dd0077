"""A whole data set in the memory of the devices: read once, after which the host only says which records are due.

The order, the epochs, the texts and what stands in for a bad record are the pipeline's, as for any source: it reads a
`ResidentSource`, whose records have no pixels, and the step fetches those by `index`.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.data.bad import BadSample
from vfm_jax.data.pipeline import HostBatch, blank_rows, read_record, record_bytes
from vfm_jax.data.sources import Source

STORED = "stored"
"""Field of a batch that holds whole arrays of the data set, record by record, and not rows of the batch."""

_LARGE = 4096  # bytes of a record's field, from which on it is stored; smaller ones travel with the batch


class ResidentSource:
    """What stays on the host of a source: all but the pixels. See `vfm_jax.data.sources.Source`."""

    image_shape = (0, 0, 0)

    def __init__(self, source: Source, rows: HostBatch, bad: Mapping[int, BadSample]):
        """Takes the small fields of all records, and those that could not be read."""
        self.class_names = source.class_names
        self.fields = {name: (values.shape[1:], values.dtype) for name, values in rows.items()}
        self._source, self._rows, self._bad = source, rows, dict(bad)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> HostBatch:
        return {name: values[0] for name, values in self.__getitems__(np.array([index])).items()}

    def __getitems__(self, indices: np.ndarray) -> HostBatch:
        if self._bad:
            for index in indices.tolist():
                if index in self._bad:
                    raise self._bad[index]
        image = np.zeros((len(indices), *self.image_shape), np.uint8)
        return {"image": image} | {name: values[indices] for name, values in self._rows.items()}

    def name(self, index: int) -> str:
        return self._source.name(index)


def stored_bytes(source: Source) -> int:
    """What `read_whole` of a source takes in memory, without reading it."""
    return len(source) * record_bytes(source)


def stored_fields(rows: HostBatch) -> HostBatch:
    """The fields of some records that are put on the devices: their images, and what is large."""
    return {name: v for name, v in rows.items() if name == "image" or v.nbytes >= _LARGE * len(v)}


def read_whole(source: Source, *, threads: int | None = None) -> tuple[ResidentSource, HostBatch]:
    """Reads every record once: what the pipeline reads from then on, and the large fields, by record.

    A record that cannot be used stays zero, and is as bad for the pipeline as it was here.

    Args:
        source: of the data set; its examples do not depend on the epoch.
        threads: reading at a time; as many as there are cores by default.

    Raises:
        TrainingError: reading a record failed in another way; names it.
    """
    bad: dict[int, BadSample] = {}
    if (read_many := getattr(source, "__getitems__", None)) is not None:
        rows = read_many(np.arange(len(source)))
    else:
        rows = blank_rows(source, len(source))

        def read(index: int) -> None:
            try:
                example = read_record(source, index)
            except BadSample as error:
                bad[index] = error
                return
            for name, value in example.items():
                rows[name][index] = value

        with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
            for _ in pool.map(read, range(len(source))):
                pass
    large = stored_fields(rows)
    return ResidentSource(source, {name: v for name, v in rows.items() if name not in large}, bad), large


def take_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with its own rows in place of whole arrays, where it has such; inside the jitted step."""
    stored, index = batch.get(STORED, {}), batch["index"]
    rows = {name: values for name, values in batch.items() if name != STORED}
    return rows | {name: jnp.take(values, index, axis=0, mode="clip") for name, values in stored.items()}


def on_every_device(fields: HostBatch, sharding: jax.sharding.NamedSharding) -> dict[str, jax.Array]:
    """The arrays of `read_whole`, whole on each device (so that a row is never fetched from another)."""
    return {
        name: jax.make_array_from_callback(values.shape, sharding, lambda where, values=values: values[where])
        for name, values in fields.items()
    }
