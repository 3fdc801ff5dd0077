"""Which record stands where: a pure function of seed, stage, epoch and the example's place in the run.

Nothing is stored and nothing has to run first, so a position in the data is the number of the step alone. Grain's
`index_shuffle` is such a function too, at 4 to 10 µs an index in a Python loop; this one shuffles a batch of 256 in
about 0.1 ms, which matters where a whole step takes 30 ms.
"""

import dataclasses

import numpy as np

_ROUNDS = 4
_TRIES = 100  # records tried in the place of one that cannot be used


def permuted(position: np.ndarray, length: int, key: tuple[int, ...]) -> np.ndarray:
    """The image of each position under the permutation of range(length) that `key` names (int64).

    A Feistel network on Z_a × Z_b, a·b ≥ length, with modular addition in place of xor; what falls outside the
    range is sent through again until it falls inside (Black & Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """
    b = max(1, int(np.ceil(np.sqrt(length))))
    a = -(-length // b)
    keys = np.random.SeedSequence(key).generate_state(2 * _ROUNDS, np.uint64)

    def once(value: np.ndarray) -> np.ndarray:
        x, y = value // np.uint64(b), value % np.uint64(b)
        for r in range(_ROUNDS):
            x = (x + _mix(y ^ keys[2 * r]) % np.uint64(a)) % np.uint64(a)
            y = (y + _mix(x ^ keys[2 * r + 1]) % np.uint64(b)) % np.uint64(b)
        return x * np.uint64(b) + y

    value = once(np.asarray(position, np.uint64))
    while (outside := value >= np.uint64(length)).any():
        value[outside] = once(value[outside])
    return value.astype(np.int64)


def _mix(value: np.ndarray) -> np.ndarray:
    # The finalizer of SplitMix64 (Steele et al., 2014): every output bit depends on every input bit.
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class TrainingOrder:
    """Every record once an epoch, each epoch in another order, without end; a batch may span epochs.

    Nothing is dropped and nothing filled up: where the batch does not divide the epoch, its last rows are the first
    ones of the next epoch.

    With `repeats` each record stands so often in a row. One pass of the order is then `repeats` times as long as the
    source; what a recipe calls an epoch stays as many examples as the source has records, of which `repeats`-th are
    different ones, as in DeiT (Touvron et al., 2021, arXiv:2012.12877; its samplers cut each epoch to that length).

    Attributes:
        num_examples: records of the source.
        seed: the run's seed.
        stage: number of the stage in the run; each has its own order.
        repeats: how often each record is taken at once (repeated augmentation; Hoffer et al., arXiv:1901.09335).
    """

    num_examples: int
    seed: int
    stage: int = 0
    repeats: int = 1

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Index (int64), draw (int32) and validity (bool) of the run's examples number `start` to `stop`.

        The draw says how often the record was taken before: the epoch, where nothing is repeated. With the index it
        names all that is random about an example.
        """
        place, repeat = np.divmod(np.arange(start, stop, dtype=np.int64), self.repeats)
        epoch, position = np.divmod(place, self.num_examples)
        index = np.empty_like(position)
        for one in np.unique(epoch):
            here = epoch == one
            index[here] = permuted(position[here], self.num_examples, (self.seed, self.stage, int(one)))
        return index, (epoch * self.repeats + repeat).astype(np.int32), np.ones(len(index), np.bool_)

    def substitutes(self, index: int) -> np.ndarray:
        """The records to try, one after the other, in the place of one that cannot be used (int64).

        The first places of a permutation of its own, the same whenever and wherever the record is due.
        """
        places = np.arange(min(_TRIES + 1, self.num_examples))
        # A fourth number tells it from the key of an epoch (numpy takes a missing one for 0).
        others = permuted(places, self.num_examples, (self.seed, self.stage, index, 1))
        return others[others != index][:_TRIES]

    def choose(self, index: np.ndarray, epoch: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Which of `count` texts a record has in an epoch (int64): each with the same probability."""
        keys = np.random.SeedSequence((self.seed, self.stage, 1)).generate_state(2, np.uint64)
        drawn = _mix(_mix(np.asarray(index, np.uint64) ^ keys[0]) + np.asarray(epoch, np.uint64) ^ keys[1])
        return (drawn % np.asarray(count, np.uint64)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class EvaluationOrder:
    """Every record once, in the order of the source; or `limit` of them, evenly spaced; or those of `records`.

    Evenly spaced, because the first ones of a source sorted by class are all of one class.
    """

    num_examples: int
    limit: int | None = None
    records: tuple[int, ...] | None = None

    def __len__(self) -> int:
        if self.records is not None:
            return len(self.records)
        return self.num_examples if self.limit is None else min(self.limit, self.num_examples)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Index (int64), epoch (int32) and validity (bool); rows past the end are not valid, and have index 0."""
        position = np.arange(start, stop, dtype=np.int64)
        valid = position < len(self)
        if self.records is None:
            index = np.where(valid, position * self.num_examples // len(self), 0)
        else:
            index = np.zeros(len(position), np.int64)
            index[valid] = self.records[start : start + int(valid.sum())]
        return index, np.zeros(len(index), np.int32), valid

    def choose(self, index: np.ndarray, epoch: np.ndarray, count: np.ndarray) -> np.ndarray:
        """The first text of every record."""
        del epoch, count
        return np.zeros(len(index), np.int64)
