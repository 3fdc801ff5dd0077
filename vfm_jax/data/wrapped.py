"""Sources that read another source's image files in a way of their own."""

from typing import Any, Protocol

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.data.decode import Picture

_KEPT = ("class_names", "labels", "problems", "text_shape", "tokenizer")


class FileSource(Protocol):
    """A source that leaves it to its caller how an image file becomes a picture; see `sources.Source`."""

    class_names: tuple[str, ...] | None
    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def read(self, index: int, picture: Picture) -> dict[str, np.ndarray]: ...


class WrappedSource:
    """The same records in the same order; what their images are is for a subclass to say."""

    def __init__(self, source: FileSource, field: str, instead: str):
        """Takes what a source knows of its records.

        Args:
            source: of image files.
            field: of `config.data`, that asks for this.
            instead: what to do where the source has no image files, a sentence.

        Raises:
            UserError: it has none.
        """
        if not hasattr(source, "read"):
            raise UserError(
                f"config.data.{field} is for pictures in image files, and this source has none, or gives boxes or "
                f"label maps with them. {instead}"
            )
        for name in _KEPT:
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))
        self.class_names = source.class_names
        self.image_shape = source.image_shape
        self.image_dtype = getattr(source, "image_dtype", np.uint8)
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)


def unwrapped(source: Any) -> Any:
    """The source whose whole pictures a wrapped one reads; any other as it is."""
    return source._source if isinstance(source, WrappedSource) else source
