"""Pictures that occur more than once: the same pixels, or nearly the same look, within a split and across splits."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from vfm_jax.data.index import Index

MAX_DISTANCE = 8  # differing bits of 64
MIN_LIKENESS = 0.98  # correlation of the two thumbnails
_MIN_CONTRAST = 16  # gray levels between the darkest and the brightest pixel of a thumbnail that shows something
_MAX_COMPARED = 2048  # others of the same band that a picture is compared with
_MAX_LISTED = 100


class Repeat(NamedTuple):
    """Two records that show the same.

    Attributes:
        first: its place in the source of the first split.
        second: the other's, in the source of the second split.
        likeness: correlation of the two thumbnails; 1 for the same pixels.
        labels: class ids of both.
    """

    first: int
    second: int
    likeness: float
    labels: tuple[int, int]


class Repeats(NamedTuple):
    """What of the second split is in the first too; within one split, what came before.

    Attributes:
        num_same: records of the second split with the pixels of one in the first.
        same: the first of them, each with the first record of these pixels.
        num_near: further records of the second split that look like one in the first.
        near: the most alike of those pairs.
        num_relabelled: pairs of the same pixels and different labels.
    """

    num_same: int
    same: list[Repeat]
    num_near: int
    near: list[Repeat]
    num_relabelled: int


def find_repeats(
    splits: Mapping[str, Index], name: Callable[[str, int], str] = lambda split, row: f"{split} {row}"
) -> dict[tuple[str, str], Repeats]:
    """For each split with itself, and with each that comes later. Records that cannot be read take no part.

    The same pixels are found by their hash. Near repeats (another size, another compression, slightly other colours)
    are found by a difference hash of 64 bits (Krawetz, Kind of Like That, 2013): the same in one of its four bands of
    16 bits, at most `MAX_DISTANCE` bits apart in all, and with thumbnails (9 x 8) whose correlation is at least
    `MIN_LIKENESS`. They are candidates for a look: pictures of one make, such as X-rays or digits, can be as alike
    without being the same. Pictures without contrast are not compared.

    Of 400 photographs of 224 pixels it finds the copies at half the size and at JPEG's quality 75 all, at quality 40
    99 %, 20 % brighter 97 %, in gray 91 %, without a rim of 4 pixels 76 %, mirrored none; and no two of 1,500
    different ones.

    Args:
        splits: by name.
        name: of a record of a split: a source that gives one record twice, on purpose, calls it the same.
    """
    kinds = {name: _first_of_each(index) for name, index in splits.items()}
    positions = [np.array(list(firsts.values()), np.int64) for firsts in kinds.values()]
    split = np.repeat(np.arange(len(splits)), [len(own) for own in positions])
    position = np.concatenate(positions) if positions else np.zeros(0, np.int64)
    thumbs = [index.thumb[own] for index, own in zip(splits.values(), positions, strict=True)]
    pairs, likeness = look_alikes(np.concatenate(thumbs)) if thumbs else (np.zeros((0, 2), np.int64), np.zeros(0))

    found = {}
    for i, (one, first) in enumerate(splits.items()):
        for j, (other, second) in list(enumerate(splits.items()))[i:]:
            same = _same(first, second, kinds[one], kinds[other], within=i == j)
            if i == j:
                same = [(a, b) for a, b in same if name(one, int(first.rows[a])) != name(one, int(first.rows[b]))]
            apart = {b for _, b in same}
            here = (split[pairs[:, 0]] == i) & (split[pairs[:, 1]] == j)
            near = [
                (int(position[a]), int(position[b]), float(like))
                for (a, b), like in zip(pairs[here], likeness[here], strict=True)
                if int(position[b]) not in apart
            ]
            near.sort(key=lambda pair: -pair[2])
            relabelled = sum(bool(first.label[a] != second.label[b]) for a, b in same)
            found[one, other] = Repeats(
                len(same),
                [_repeat(first, second, a, b, 1.0) for a, b in same[:_MAX_LISTED]],
                len({b for _, b, _ in near}),
                [_repeat(first, second, *pair) for pair in near[:_MAX_LISTED]],
                relabelled,
            )
    return found


def _first_of_each(index: Index) -> dict[bytes, int]:
    """Position of the first good record of each content."""
    firsts: dict[bytes, int] = {}
    for i in np.flatnonzero(index.good):
        firsts.setdefault(index.digest[i].tobytes(), int(i))
    return firsts


def _same(
    first: Index, second: Index, of_first: dict[bytes, int], of_second: dict[bytes, int], *, within: bool
) -> list[tuple[int, int]]:
    """Positions of a record of the first split and of each of the second that has its pixels."""
    if not within and not of_first.keys() & of_second.keys():
        return []
    pairs = []
    for i in np.flatnonzero(second.good):
        before = of_first.get(second.digest[i].tobytes())
        if before is not None and not (within and before == i):
            pairs.append((before, int(i)))
    return pairs


def _repeat(first: Index, second: Index, a: int, b: int, likeness: float) -> Repeat:
    return Repeat(int(first.rows[a]), int(second.rows[b]), likeness, (int(first.label[a]), int(second.label[b])))


def difference_hash(thumbs: UInt8[np.ndarray, "n 8 9"]) -> UInt8[np.ndarray, "n 8"]:
    """64 bits of each thumbnail: which pixels are darker than the one to their right."""
    return np.packbits(thumbs[:, :, :-1] < thumbs[:, :, 1:], axis=-1).reshape(len(thumbs), 8)


def look_alikes(
    thumbs: UInt8[np.ndarray, "n 8 9"],
) -> tuple[Int[np.ndarray, "m 2"], Float[np.ndarray, " m"]]:
    """Pairs (smaller number first) of thumbnails that look alike, and their correlation.

    Work grows with the number of pictures and with how many share a band of bits, of which each is compared with
    2,048 at most: among very many that are nearly the same, some pairs are passed over.
    """
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    shown = np.flatnonzero(np.ptp(flat, axis=1) >= _MIN_CONTRAST)
    centred = flat[shown] - flat[shown].mean(axis=1, keepdims=True)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    hashes = difference_hash(thumbs[shown])
    words, bands = hashes.view(np.uint64)[:, 0], hashes.view(np.uint16)
    found: list[np.ndarray] = []
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        key = band[order]
        active = np.arange(len(order))
        for step in range(1, _MAX_COMPARED + 1):
            active = active[active + step < len(order)]
            active = active[key[active] == key[active + step]]
            if not len(active):
                break
            a, b = order[active], order[active + step]
            near = np.bitwise_count(words[a] ^ words[b]) <= MAX_DISTANCE
            found.append(np.stack([np.minimum(a[near], b[near]), np.maximum(a[near], b[near])], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 2), np.int64)
    likeness = np.einsum("md,md->m", centred[pairs[:, 0]], centred[pairs[:, 1]])
    alike = likeness >= MIN_LIKENESS
    return shown[pairs[alike]], likeness[alike].astype(np.float64)
