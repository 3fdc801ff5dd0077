"""Data known by their size alone, for plans: as many examples, of the same shapes, and nothing in them."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.data.decode import canvas_shape

# Training examples of TFDS's "train" split.
SIZES = {
    "imagenet2012": 1_281_167,
    "imagenet2012_subset/1pct": 12_811,
    "imagenet2012_subset/10pct": 128_116,
    "imagenet21k": 13_153_500,
    "imagenette": 9_469,
    "cifar10": 50_000,
    "cifar100": 50_000,
}
VOCABULARIES = {"clip": 49_408, "sentencepiece": 32_000}  # of SigLIP's file; another says so itself


class BlankSource:
    """See `vfm_jax.data.sources.Source`; without records, so that whoever reads one is told so."""

    def __init__(self, fields: Mapping[str, Any], num_examples: int, num_classes: int):
        """Takes the shapes from `config.data`.

        Args:
            fields: its fields, as those of the sources are called: `canvas_size`, `channels`, `tokenizer`, ...
            num_examples: how many there are.
            num_classes: of the labels; 0 for none.
        """
        canvas = canvas_shape(fields.get("canvas_size") or 256)
        self.image_shape = (*canvas, fields.get("channels") or 3)
        self.image_dtype = np.dtype(fields.get("image_dtype") or np.uint8)
        self.class_names = tuple(f"class {i}" for i in range(num_classes)) or None
        if tokenizer := fields.get("tokenizer"):
            self.text_shape = (1, fields.get("text_length") or 64)
            self.tokenizer = _BlankTokenizer(tokenizer)
        self._num_examples = num_examples

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        raise UserError(f"There is no record {index}: these data are known by their size alone.")

    def name(self, index: int) -> str:
        return f"record {index}"


class _BlankTokenizer:
    def __init__(self, spec: Any):
        spec = spec if isinstance(spec, Mapping) else {"name": spec}
        self.vocabulary_size = spec.get("vocabulary") or VOCABULARIES.get(spec.get("name"), 1)


def size_of(fields: Mapping[str, Any]) -> int | None:
    """How many examples a TFDS data set and split have, of those that are well known; None for others."""
    name = re.sub(r"(:[\d.]+|/\d+px.*)$", "", str(fields.get("dataset", "")))
    if fields.get("name") != "tfds" or name not in SIZES:
        return None
    whole = SIZES[name]
    split = re.fullmatch(r"train(?:\[(\d*)(%?):(\d*)(%?)\])?", fields.get("split") or "train")
    if split is None:
        return None
    unit = whole / 100 if "%" in (split[2] or "") + (split[4] or "") else 1
    first, last = (round(float(n) * unit) if n else None for n in (split[1], split[3]))
    return min(whole, last if last is not None else whole) - (first or 0)
