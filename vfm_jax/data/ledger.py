"""The ledger of records that could not be used: each once, with its reason, and a loud stop where they are too many.

A line of `bad_samples.jsonl` is `{"stage": 0, "part": "train", "index": 17, "name": "a/b.jpg", "reason": "truncated",
"detail": "...", "example": 4096}`: `part` says which of the run's sources the record is of, and `example` how many
examples the run had read before the batch in which it was first due (null in evaluation).
"""

import collections
import contextlib
import json
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vfm_jax.core.errors import TrainingError
from vfm_jax.data.bad import REASONS, BadSample
from vfm_jax.data.sources import Source

FILE = "bad_samples.jsonl"
MAX_BAD_RATIO = 0.01
_NAMED = 5  # records named in a message
_SAID = 3  # records that the terminal hears of
_LISTED = 20  # records in a summary
_JUDGED_FROM = 1000  # examples; of fewer, a share says little
_DEVIATIONS = 5.0  # of a share of them, until it counts as above the limit

Row = dict[str, Any]


class Ledger:
    """Writes down each bad record once, however often it is met, resumes included.

    Attributes:
        path: of its file, or None.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, say: Callable[[str], None] | None = None):
        """Reads what is there.

        Args:
            path: a file of JSON lines, begun with the first record; None keeps the rows in memory alone.
            say: told of the first records that this process finds.
        """
        self.path = None if path is None else pathlib.Path(path)
        self._say, self._said = say, 0
        self._lock = threading.Lock()  # training's batches are made in another thread than evaluation's
        self._rows = {_key(row): row for row in _read_rows(self.path)} if self.path else {}

    @property
    def rows(self) -> list[Row]:
        """In the order in which they were found."""
        return list(self._rows.values())

    def add(self, row: Row) -> None:
        """Writes a record down, unless it is there."""
        with self._lock:
            if _key(row) in self._rows:
                return
            self._rows[_key(row)] = row
            if self.path is not None:
                _append(self.path, row)
            if self._say is not None and self._said < _SAID:
                self._said += 1
                others = f" Others are listed in {self.path}." if self.path else " Others are not named."
                more = others if self._said == _SAID else ""
                self._say(f"Left out: {row['name']}: {row['detail']} ({row['reason']}).{more}")


class Tally:
    """Follows the batches of one source, in order: writes bad records down, and stops where they are too many.

    It stops when the distinct bad records are more than `max_bad_ratio` of the source; in training also when their
    share of what was read so far, of at least 1,000 records, lies above it by five standard deviations, since an
    epoch of a large source may take days. Each process of several judges the rows that it has read itself.

    Args:
        source: for the names, and the details, of its bad records.
        ledger: where they are written down.
        part: what the source is called there.
        stage: number of the stage.
        max_bad_ratio: in [0, 1]; 0 stops at the first.
        examples: that the run has read before the first batch; None in evaluation.
        examples_per_batch: that each batch adds.
        records_per_example: distinct records that this process reads for each of those in the first epoch: 1, less
            where it repeats them or is one of several.
    """

    def __init__(
        self,
        source: Source,
        ledger: Ledger,
        *,
        part: str,
        stage: int = 0,
        max_bad_ratio: float = MAX_BAD_RATIO,
        examples: int | None = None,
        examples_per_batch: int = 0,
        records_per_example: float = 1.0,
    ):
        self._source, self._ledger, self._part, self._stage = source, ledger, part, stage
        self._max_bad_ratio = max_bad_ratio
        self._examples, self._examples_per_batch = examples, examples_per_batch
        self._records_per_example = records_per_example
        self._met: dict[int, Row] = {}
        if examples is not None:  # what a resumed run knew at this place, so that it stops where the other would have
            for row in ledger.rows:
                if (row["stage"], row["part"]) == (stage, part) and (row["example"] or 0) < examples:
                    self._met[row["index"]] = row

    def take(self, batch: Mapping[str, np.ndarray]) -> None:
        """Reads `bad` and `wanted` of the next batch.

        Raises:
            TrainingError: too many bad records; gives counts per reason, the first names, and the next move.
        """
        for row in np.flatnonzero(batch["bad"]):
            index = int(batch["wanted"][row])
            if index not in self._met:
                self._met[index] = self._describe(index, REASONS[batch["bad"][row] - 1])
                self._ledger.add(self._met[index])
        if self._examples is not None:
            self._examples += self._examples_per_batch
        if self._met:
            self._check()

    def _describe(self, index: int, reason: str) -> Row:
        # Batches carry a number alone, across processes too; what was found is read once more. It is bad, and rare.
        try:
            self._source[index]
            detail = "it could be read the second time"
        except BadSample as error:
            detail = error.detail
        except Exception as error:  # noqa: BLE001 - a source may use any library; the reason is known already
            detail = f"{type(error).__name__}: {error}"
        return {
            "stage": self._stage,
            "part": self._part,
            "index": index,
            "name": self._source.name(index),
            "reason": reason,
            "detail": detail,
            "example": self._examples,
        }

    def _check(self) -> None:
        bad, size, ratio = len(self._met), len(self._source), self._max_bad_ratio
        read = size if self._examples is None else min(size, int(self._examples * self._records_per_example))
        spread = _DEVIATIONS * (ratio * (1 - ratio) * read) ** 0.5
        if bad > ratio * size:
            of = f"the {size:,} records"
        elif _JUDGED_FROM <= read < size and bad > ratio * read + spread:
            of = f"the {read:,} records read so far"
        else:
            return
        rows = list(self._met.values())
        counts = ", ".join(f"{count} {reason}" for reason, count in count_reasons(rows).items())
        lines = [f"\n  {row['name']}: {row['detail']} ({row['reason']})" for row in rows[:_NAMED]]
        if bad > _NAMED:
            lines.append(f"\n  and {bad - _NAMED:,} more")
        forget = f" and delete {self._ledger.path}, which remembers them" if self._ledger.path else ""
        raise TrainingError(
            f"Stopped: {bad:,} of {of} cannot be used, above config.data.max_bad_ratio={ratio:g}: {counts}."
            f"{''.join(lines)}\nRepair them{forget}, or raise config.data.max_bad_ratio."
        )


def count_reasons(rows: Iterable[Row]) -> dict[str, int]:
    """Distinct records per reason, the most frequent first; a record that two parts share counts once."""
    named = {row["name"]: row["reason"] for row in rows}
    return dict(collections.Counter(named.values()).most_common())


def bad_samples(directory: pathlib.Path) -> dict[str, Any]:
    """What the ledgers in a run's folder say, one per process: counts per reason, and the first records.

    Empty where there is none.
    """
    rows = [row for file in sorted(directory.glob(f"{pathlib.Path(FILE).stem}*.jsonl")) for row in _read_rows(file)]
    if not rows:
        return {}
    first = {row["name"]: {k: row[k] for k in ("name", "reason", "detail")} for row in reversed(rows)}
    return {"reasons": count_reasons(rows), "records": list(reversed(first.values()))[:_LISTED]}


def _key(row: Row) -> tuple[int, str, int]:
    return row["stage"], row["part"], row["index"]


def _read_rows(path: pathlib.Path) -> list[Row]:
    """The rows of a ledger; a last line that a crash has cut short is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    rows = []
    for line in whole.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a full disk cuts lines short in the middle of the file too
            rows.append(json.loads(line))
    return rows


def _append(path: pathlib.Path, row: Row) -> None:
    line = json.dumps(row).encode() + b"\n"
    with open(path, "ab", buffering=0) as file:  # one call: whole, or cut short at the end of the file
        file.write(line)
