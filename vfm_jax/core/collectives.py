"""What a compiled program sends between its devices, read from the compiler's own text of it (HLO)."""

import collections
import math
import re
from typing import NamedTuple

from vfm_jax.core.hlo import Instruction, Program, executed, num_bytes

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
         "collective-broadcast")  # fmt: skip


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


def collectives(program: Program) -> list[Collective]:
    """Every collective of a program, largest first; those of one kind and operation are added up."""
    totals: dict[tuple[str, int, str], list[int]] = collections.defaultdict(lambda: [0, 0])
    for instruction, _, times in executed(program):
        if (one := _collective(instruction)) is not None:
            total = totals[one.kind, one.group_size, one.operation]
            total[0], total[1] = total[0] + int(times), total[1] + int(times) * one.num_bytes
    rows = [Collective(*key, *total) for key, total in totals.items()]
    return sorted(rows, key=lambda row: -row.num_bytes)


def _collective(instruction: Instruction) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    starts = kind != instruction.opcode
    size = _group_size(instruction.line)
    total = num_bytes(instruction.type)
    # What begins a gather, a scatter or a permutation gives its operands too.
    if starts and kind in ("all-gather", "reduce-scatter"):
        total = total * size // (size + 1)
    elif starts and kind == "collective-permute":
        total //= 2
    elif kind == "reduce-scatter":
        total *= size
    return Collective(kind, size, instruction.operation, 1, total)


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
