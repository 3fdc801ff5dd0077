"""TensorFlow Datasets by name, read through `data_source`: random access, and no TensorFlow."""

from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest
from vfm_jax.data.decode import canvas_shape, fit_canvas


class TfdsSource:
    """Records of one split of a prepared data set. See `vfm_jax.data.sources.Source`."""

    def __init__(
        self,
        records: Any,
        described: str,
        image_key: str,
        label_key: str | None,
        class_names: tuple[str, ...] | None,
        image_shape: tuple[int, int, int],
    ):
        """Takes what `as_data_source` gives, and the names of the fields to read from it."""
        self._records = records
        self._described = described
        self._image_key = image_key
        self._label_key = label_key
        self.class_names = class_names
        self.image_shape = image_shape

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        record = self._records[index]
        image, size = fit_canvas(record[self._image_key], self.image_shape[:2])
        label = -1 if self._label_key is None else record[self._label_key]
        return {
            "image": image,
            "size": size,
            "label": np.asarray(label, np.int32),
            "index": np.asarray(index, np.int32),
        }

    def name(self, index: int) -> str:
        return f"{self._described}, record {index}"


def tfds(
    dataset: str,
    *,
    split: str = "train",
    data_dir: str | None = None,
    image_key: str = "image",
    label_key: str = "label",
    canvas_size: int | tuple[int, int] | None = None,
) -> TfdsSource:
    """One split of a data set that TFDS has prepared as array_record or parquet.

    Args:
        dataset: its TFDS name, with a configuration or version where wanted ("imagenet2012", "mnist:3.0.1").
        split: as TFDS writes it: "train", "train[:90%]", "all".
        data_dir: where it was prepared; TFDS's own folder by default.
        image_key: the field of the images, uint8.
        label_key: the field of the classes; images are unlabelled where the data set has no such field.
        canvas_size: pixels, one number or (height, width); larger images are scaled down to fit. By default the
            images' own size where all have the same, else 256.

    Raises:
        UserError: the package, the data set, its files, the split or the field is not there.
    """
    library = _library()
    builder = _builder(library, dataset, data_dir)
    features = builder.info.features
    if image_key not in features:
        known = ", ".join(features)
        raise UserError(f"TFDS data set {dataset!r} has no field image_key={image_key!r}. It has: {known}.")
    height, width, channels = features[image_key].shape
    if features[image_key].np_dtype != np.uint8 or channels is None:
        found = f"{features[image_key].np_dtype.__name__} {features[image_key].shape}"
        raise UserError(f"TFDS data set {dataset!r}: field {image_key!r} is {found}; expected uint8 images.")
    if canvas_size is not None:
        canvas = canvas_shape(canvas_size)
    else:
        canvas = (height, width) if height and width else (256, 256)
    records = _records(builder, dataset, split, data_dir)
    labelled = label_key in features and isinstance(features[label_key], library.features.ClassLabel)
    class_names = tuple(features[label_key].names) if labelled else None
    return TfdsSource(
        records,
        f"TFDS {dataset}, split {split}",
        image_key,
        label_key if labelled else None,
        class_names,
        (*canvas, channels),
    )


def _library() -> Any:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"The source 'tfds' needs the package tensorflow-datasets, which cannot be imported ({error}).\n"
            "Install it with: pip install tensorflow-datasets"
        ) from error
    return tensorflow_datasets


def _builder(library: Any, dataset: str, data_dir: str | None) -> Any:
    try:
        return library.builder(dataset, data_dir=data_dir)
    except library.core.registered.DatasetNotFoundError as error:
        near = nearest(dataset, library.list_builders(with_community_datasets=False))
        where = f", nor prepared in data_dir={data_dir!r}" if data_dir else ""
        raise UserError(
            f"config.data.dataset is {dataset!r}, which TFDS does not know{where}.{near}\n"
            "All names: https://www.tensorflow.org/datasets/catalog"
        ) from error


def _records(builder: Any, dataset: str, split: str, data_dir: str | None) -> Any:
    prepare = f"tfds.data_source({dataset!r}{f', data_dir={data_dir!r}' if data_dir else ''})"
    next_move = f'Prepare it once with: python -c "import tensorflow_datasets as tfds; {prepare}"'
    # TFDS asks for the format before it looks for files: a data set that is not there at all ends in the same error.
    try:
        records = builder.as_data_source(split=split)
    except NotImplementedError as error:
        if builder.info.splits:
            raise UserError(
                f"TFDS data set {dataset!r} in {builder.data_path} is prepared as TFRecord, "
                "which has no random access.\n"
                f"{next_move.replace('once', 'again, after moving that folder away,')}"
            ) from error
        raise UserError(f"TFDS data set {dataset!r} is not prepared in {builder.data_path}.\n{next_move}") from error
    except AssertionError as error:
        raise UserError(f"TFDS data set {dataset!r} is not prepared in {builder.data_path}.\n{next_move}") from error
    except ValueError as error:
        known = [name for name in builder.info.splits if name != "all"]
        near = nearest(split, known)
        raise UserError(
            f"TFDS data set {dataset!r} has no split {split!r}.{near} It has: {', '.join(known)}."
        ) from error
    if not len(records):
        raise UserError(f"split {split!r} of TFDS data set {dataset!r} is empty. Choose a larger part.")
    return records
