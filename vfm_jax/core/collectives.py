"""What a compiled program sends between its devices, read from the compiler's own text of it (HLO)."""

import collections
import functools
import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast")  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERATION = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One kind of message, of one operation of the program.

    Attributes:
        kind: one of `KINDS`.
        group_size: devices that take part with one another; of a permutation, how many send.
        operation: that of the program which needs it, as JAX names it.
        times: how often it is sent each time that the program runs. A loop whose length the compiler does not know
            counts once, and of a condition every branch.
        num_bytes: of the whole array that is reduced, gathered or exchanged, on one device, all times together.
    """

    kind: str
    group_size: int
    operation: str
    times: int
    num_bytes: int


def collectives(hlo: str) -> list[Collective]:
    """Every collective of a program, largest first; those of one kind and operation are added up.

    Args:
        hlo: `compiled.as_text()`.
    """
    computations, entry = _computations(hlo)

    @functools.cache
    def of(name: str) -> tuple[Collective, ...]:
        found: list[Collective] = []
        for line in computations.get(name, ()):
            if (own := _collective(line)) is not None:
                found.append(own)
            trips = int(match[1]) if (match := _TRIPS.search(line)) else 1
            for called in _called(line):
                found += [
                    one._replace(times=trips * one.times, num_bytes=trips * one.num_bytes) for one in of(called)
                ]
        return tuple(found)

    totals: dict[tuple[str, int, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    for one in of(entry):
        total = totals[one.kind, one.group_size, one.operation]
        total[0], total[1] = total[0] + one.times, total[1] + one.num_bytes
    rows = [Collective(*key, *total) for key, total in totals.items()]
    return sorted(rows, key=lambda row: -row.num_bytes)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of each computation, a line each, and the name of the one that runs."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _called(line: str) -> list[str]:
    branches = [name.strip(" %") for match in _BRANCHES.finditer(line) for name in match[1].split(",")]
    return [*_CALLED.findall(line), *branches]


def _collective(line: str) -> Collective | None:
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    starts = match[2].endswith("-start")
    kind = match[2].removesuffix("-start")
    if kind not in KINDS:
        return None
    size = _group_size(line)
    num_bytes = sum(_num_bytes(array) for array in _ARRAY.finditer(match[1]))
    # What begins a gather or a permutation gives its operands too.
    if starts and kind == "all-gather":
        num_bytes = num_bytes * size // (size + 1)
    elif starts and kind == "collective-permute":
        num_bytes //= 2
    elif kind == "reduce-scatter":
        num_bytes *= size
    operation = _OPERATION.search(line)
    return Collective(kind, size, operation[1] if operation else "", 1, num_bytes)


def _num_bytes(array: re.Match[str]) -> int:
    bits = int(array[2]) if array[2] else 8
    return math.prod(int(n) for n in array[3].split(",") if n) * bits // 8


def _group_size(line: str) -> int:
    """Devices of a group, in the three ways that they are written; 0 where none of them is."""
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):  # sizes of axes; those meant
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        return math.prod(sizes.get(name, 1) for name in re.findall(r"'([^']+)'", match[2]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):  # groups, devices of each
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return len(match[1].split(","))
    if match := re.search(r"source_target_pairs=\{(\{[\d,{}]+\})\}", line):
        return match[1].count("{")
    return 0
