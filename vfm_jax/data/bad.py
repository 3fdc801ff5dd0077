"""Records that cannot be used: why, in one word of a fixed list, and for the reader in a sentence."""

from vfm_jax.core.errors import TrainingError

REASONS = (
    "missing",  # the file or the member is no longer there
    "empty",  # no bytes
    "not_an_image",  # another kind of file under an image's name: a web page, text, an archive
    "unsupported",  # an image of a kind that is not read: a format off the allow-list, values without a meaning
    "truncated",  # the file ends before the picture does
    "corrupt",  # damaged data inside
    "too_large",  # more pixels, or bytes, than the limit; known from the header, before decoding
    "too_small",  # fewer pixels along a side than the source asks for
    "wrong_channels",  # another number of channels, or type of values, than the source has
    "not_finite",  # NaN or infinity among the values
    "unreadable",  # the storage failed
)
"""In a batch a reason is its place in this tuple plus one; 0 is a good record."""


class BadSample(TrainingError):
    """A record that cannot be used, while the others can.

    Attributes:
        name: the record in the user's words: a file's path, a member of an archive, a row.
        reason: one of `REASONS`.
        detail: what was found and what was expected; one line.
    """

    def __init__(self, name: str, reason: str, detail: str):
        assert reason in REASONS, reason
        super().__init__(f"Cannot read {name}: {detail} ({reason})")
        self.name, self.reason, self.detail = name, reason, detail

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.name, self.reason, self.detail)  # worker processes send it back
