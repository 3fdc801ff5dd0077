"""What reading a file of weights gives: named tensors, each made when it is asked for."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import nearest

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MAX_DIMENSIONS = 32


class Tensor(NamedTuple):
    """One tensor of a file; `load` gives it, read-only where it is a view of the file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]


class Contents(NamedTuple):
    """What the reader of one format gives.

    Attributes:
        tensors: by name, in the order of the file.
        metadata: words that the file carries beside the tensors.
        note: what the reader decided and the user should know; "" for nothing.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = {}
    note: str = ""


class WeightsFile:
    """The tensors of a file or folder of weights; each is read when it is asked for.

    Attributes:
        path: as opened.
        format: "safetensors", "torch" or "npz".
        shapes: by name, in the order of the file.
        dtypes: numpy's; bfloat16 is that of `ml_dtypes`.
        metadata: words in the file itself.
        config: of `config.json`; None where there is none.
        preprocessor: of `preprocessor_config.json`; None where there is none.
        note: what was taken of several files, and under which names; "" for nothing to say.
        size_bytes: of the files that hold the tensors.
    """

    def __init__(
        self,
        path: pathlib.Path,
        format: str,
        contents: Contents,
        *,
        size_bytes: int,
        close: Callable[[], None],
        config: Mapping[str, Any] | None = None,
        preprocessor: Mapping[str, Any] | None = None,
    ):
        self.path = path
        self.format = format
        self.shapes = {name: tensor.shape for name, tensor in contents.tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in contents.tensors.items()}
        self.metadata = dict(contents.metadata)
        self.config = None if config is None else dict(config)
        self.preprocessor = None if preprocessor is None else dict(preprocessor)
        self.note = contents.note
        self.size_bytes = size_bytes
        self._tensors = contents.tensors
        self._close = close

    def read(self, name: str) -> np.ndarray:
        """The tensor in the dtype of the file; possibly a read-only view of it, which outlives `close`.

        Raises:
            UserError: no such tensor, or its bytes are damaged.
        """
        if name not in self._tensors:
            raise UserError(f"{self.path} holds no tensor {name!r}.{nearest(name, self._tensors)}")
        return self._tensors[name].load()

    def close(self) -> None:
        """Lets go of the files; nothing can be read after it."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
