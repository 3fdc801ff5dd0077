"""Mean and spread of each channel over the pictures of a source, in the units that `normalize` takes: [0, 1].

Only the pixels of the picture count, never the padding of its canvas. Pictures are measured one by one and merged by
the pairwise formula, so the result is exact to float64's rounding on any number of them, in any order.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


class Moments(NamedTuple):
    """What is kept of one picture, or (with an axis more in front) of many; for each channel.

    Attributes:
        count: finite values.
        mean: of them; in [0, 1] for whole numbers, as they are for floats.
        square: sum of the squared deviations from that mean.
        low: the smallest.
        high: the largest.
        not_finite: values that are NaN or infinite.
    """

    count: Int[np.ndarray, "... c"]
    mean: Float[np.ndarray, "... c"]
    square: Float[np.ndarray, "... c"]
    low: Float[np.ndarray, "... c"]
    high: Float[np.ndarray, "... c"]
    not_finite: Int[np.ndarray, "... c"]


MOMENTS = {
    "count": np.int64,
    "mean": np.float64,
    "square": np.float64,
    "low": np.float64,
    "high": np.float64,
    "not_finite": np.int64,
}
"""The type of each field of `Moments`."""


class Statistics(NamedTuple):
    """Of all values of a channel over all pictures; a tuple has one number a channel.

    Attributes:
        num_images: pictures measured.
        num_pixels: of them, values that are not finite left out.
        mean: in [0, 1].
        std: likewise; of the population, dividing by the number of values.
        low: the smallest value.
        high: the largest value.
        not_finite_ratio: share of the values that are NaN or infinite, in [0, 1].
    """

    num_images: int
    num_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    not_finite_ratio: tuple[float, ...]


def moments(picture: Shaped[np.ndarray, "h w c"]) -> Moments:
    """Measures the values of one picture (uint8, uint16 or float32)."""
    channels = picture.shape[-1]
    if picture.dtype == np.uint8:  # from the counts of the 256 values: five times as fast, and exact
        counts = np.stack([np.bincount(picture[..., c].ravel(), minlength=256) for c in range(channels)])
        return _of_counts(counts)
    values = np.ascontiguousarray(picture.reshape(-1, channels).T, np.float64)  # c n
    if np.issubdtype(picture.dtype, np.integer):
        values /= np.iinfo(picture.dtype).max
    return stacked([_of_values(channel) for channel in values])


def _of_counts(counts: Int[np.ndarray, "c 256"]) -> Moments:
    levels = np.arange(256)
    number = counts.sum(axis=1)
    mean = counts @ levels / number
    square = (counts * (levels - mean[:, None]) ** 2).sum(axis=1)
    seen = counts > 0
    low, high = seen.argmax(axis=1), 255 - seen[:, ::-1].argmax(axis=1)
    return Moments(number, mean / 255, square / 255**2, low / 255, high / 255, np.zeros_like(number))


def _of_values(values: Float[np.ndarray, " n"]) -> tuple[float, ...]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0, 0.0, 0.0, np.inf, -np.inf, values.size
    deviation = finite - finite.mean()
    return finite.size, finite.mean(), deviation @ deviation, finite.min(), finite.max(), values.size - finite.size


def no_moments(channels: int) -> Moments:
    """Those of a picture that could not be read."""
    return stacked([(0, 0.0, 0.0, np.inf, -np.inf, 0)] * channels)


def stacked(parts: Sequence[Sequence[Any]]) -> Moments:
    """Of channels, those of a picture; of pictures, those of all, each field with that axis in front."""
    columns = zip(*parts, strict=True)
    return Moments(*(np.array(column, kind) for column, kind in zip(columns, MOMENTS.values(), strict=True)))


def merge(measured: Moments) -> Statistics:
    """The statistics of all pictures (n c) together.

    M2 = Σ_i M2_i + Σ_i n_i (mean_i − mean)², as in Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm
    for computing sample variances, 1979.
    """
    count = measured.count.sum(axis=0)
    number = np.maximum(count, 1)
    mean = (measured.count * measured.mean).sum(axis=0) / number
    square = measured.square.sum(axis=0) + (measured.count * (measured.mean - mean) ** 2).sum(axis=0)
    seen, lost = count > 0, measured.not_finite.sum(axis=0)
    low, high = measured.low.min(axis=0, initial=np.inf), measured.high.max(axis=0, initial=-np.inf)
    std = np.where(low == high, 0.0, np.sqrt(square / number))  # rounding would leave a trace of a constant
    columns = (np.where(seen, values, np.nan) for values in (mean, std, low, high))
    ratio = lost / np.maximum(count + lost, 1)
    return Statistics(len(measured.count), int(count.max(initial=0)), *map(_tuple, columns), _tuple(ratio))


def _tuple(values: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
