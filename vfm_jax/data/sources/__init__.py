"""Where images come from: random access, one reader contract.

An example is a dict of numpy values:

    image  (H, W, c)        the canvas, of one shape and type (uint8, uint16, float32 in [0, 1]) for the whole source;
                            the picture fills its top left
    size   int32 (2,)       height and width of that picture, in pixels
    label  int32 ()         class id, or -1 where there is none
    index  int32 ()         the record's place in the source

One with texts has beside them

    texts      int32 (t, l)  token ids, filled up with rows of zeros
    num_texts  int32 ()      how many of the rows are texts

of which the pipeline makes `text` (l): one drawn in each epoch in training, the first in evaluation.

One with targets for places in the image has what its attribute `fields` says, such as

    boxes       float32 (k, 4)  x0 y0 x1 y1 in pixels of the canvas
    box_labels  int32 (k,)      their classes, ids in `target_names`; -1 in rows without a box
    num_boxes   int32 ()        how many of the rows are boxes
    label_map   uint8 (H, W)    class of each pixel of the canvas, 255 for none and beyond the picture

A source whose records lie in memory may add `__getitems__(indices)`, which gives the same dict for many records at
once (the batch axis first); the pipeline then never touches single records.
"""

from typing import Protocol

import numpy as np

from vfm_jax.data.sources import (
    array_records,
    arrays,
    coco,
    compose,
    embedded,
    folder,
    pairs,
    parquet,
    segmentation,
    table,
    tars,
    tfds,
    voc,
)


class Source(Protocol):
    """What the pipeline reads from. Reading is safe from several threads, and the source can be pickled.

    Attributes:
        class_names: by class id, or None for unlabelled images.
        image_shape: height, width and channels of the canvas.
        image_dtype: of the canvas: uint8, uint16 or float32; a source without the attribute has uint8.

    A record that cannot be used raises `data.bad.BadSample`; what becomes of it is the pipeline's to say.

    A source may have besides: `fields`, name -> (shape, dtype) of what else is in an example; `labels`, class ids of
    all records (int32), where they are known without reading any; `problems`, a line about each thing that was
    dropped or passed over; `target_names`, the classes of boxes or pixels.

    A source whose records are image files may have `read(index, picture)`: the same example, with `image` and `size`
    as `picture(reading, contents, name)` makes them (`data.decode.Picture`). It is what a crop on the host and the
    cache ask for; a cache takes the name for the file's path, or for an archive's and the member's after a comma. A
    source whose examples differ from epoch to epoch has `drawn(index, epoch)`, which the pipeline then takes.

    A source with texts has two more: `text_shape`, the t and l of its texts, and their `tokenizer`.
    """

    class_names: tuple[str, ...] | None
    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...

    def name(self, index: int) -> str:
        """The record in the user's words, for messages: a file's path, or the array and the row."""
        ...


SOURCES = {
    "array_records": array_records.array_records,
    "arrays": arrays.arrays,
    "balanced": compose.balanced,
    "coco": coco.coco,
    "concat": compose.concat,
    "folder": folder.folder,
    "mixture": compose.mixture,
    "mnist5k": embedded.mnist5k,
    "pairs": pairs.pairs,
    "parquet": parquet.parquet,
    "photo_pairs": embedded.photo_pairs,
    "photos": embedded.photos,
    "repeat": compose.repeat,
    "segmentation": segmentation.segmentation,
    "subset": compose.subset,
    "table": table.table,
    "tars": tars.tars,
    "tfds": tfds.tfds,
    "voc": voc.voc,
}
