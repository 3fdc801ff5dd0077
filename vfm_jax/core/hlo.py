"""A compiled program read from the compiler's own text of it (HLO): its instructions, and how often each one runs."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_LOOPED = re.compile(r"\b(?:body|condition)=%?([\w.\-]+)")
_CALLED = re.compile(r"\b(?:to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CALLS = re.compile(r"\bcalls=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERATION = re.compile(r'op_name="([^"]*)"')
_ALLOCATION = 'custom_call_target="AllocateBuffer"'
_BY_NVIDIA = 'custom_call_target="__cu'
_WORKSPACE = re.compile(r", [su]8\[\d+\](\{[^}]*\})?\)$")
_NO_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "opt-barrier", "custom-call-start",
}  # fmt: skip


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
        name: its own.
        type: of its result, as written: "f32[8,512]{1,0}".
        opcode: what it does: "fusion", "all-reduce-start", ...
        operands: names of what it takes.
        line: all of it.
    """

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    line: str

    @property
    def operation(self) -> str:
        """What needs it, as JAX names it; "" where that is not known."""
        found = _OPERATION.search(self.line)
        return found[1] if found else ""


class Program(NamedTuple):
    """Instructions of every computation by name, and which of them runs first."""

    computations: Mapping[str, Sequence[Instruction]]
    entry: str


def parse(hlo: str) -> Program:
    """The program that `compiled.as_text()` writes down."""
    computations: dict[str, list[Instruction]] = {}
    entry, own = "", []
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            own = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif match := _INSTRUCTION.match(line):
            name, result, opcode, rest = match.groups()
            operands = tuple(_OPERAND.findall(_inside(rest)))
            own.append(Instruction(name, result, opcode, operands, line))
    return Program(computations, entry)


def _inside(rest: str) -> str:
    """What stands before the parenthesis that closes the operands."""
    depth = 1
    for place, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            return rest[:place]
    return rest


def executed(
    program: Program, *, every_branch: bool = True
) -> Iterator[tuple[Instruction, Mapping[str, Instruction], float]]:
    """Every instruction that runs, those of its own computation by name, and how often it runs.

    Inside of a fusion nothing is told: it is one instruction. A loop whose length is not known counts once.

    Args:
        program: see `parse`.
        every_branch: of a condition every branch counts as one that runs; otherwise its share, as if each were as
            likely as the others.
    """

    def walk(name: str, times: float) -> Iterator[tuple[Instruction, Mapping[str, Instruction], float]]:
        own = {one.name: one for one in program.computations.get(name, ())}
        for one in own.values():
            yield one, own, times
            if one.opcode == "while":
                inner = times * _trips(program, one)
                for called in _LOOPED.findall(one.line):
                    yield from walk(called, inner)
            elif one.opcode in ("call", "conditional", "async-start"):
                branches = [n.strip(" %") for m in _BRANCHES.finditer(one.line) for n in m[1].split(",")]
                started = _CALLS.findall(one.line) if one.opcode == "async-start" else []
                all_called = (*_CALLED.findall(one.line), *branches, *started)
                share = 1 if every_branch or one.opcode != "conditional" else 1 / len(all_called)
                for called in all_called:
                    yield from walk(called, times * share)

    yield from walk(program.entry, 1)


def _trips(program: Program, loop: Instruction) -> int:
    """How often a loop runs: as the compiler says, or from `i < n` where its condition is no more than that.

    That i begins at 0 and goes up by one is not looked up: so are the loops that JAX makes of a scan.
    """
    if match := _TRIPS.search(loop.line):
        return int(match[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.line)
    own = program.computations.get(condition[1], ()) if condition else ()
    limits = [m[1] for one in own if (m := re.search(r" s32\[\]\S* constant\((\d+)\)", one.line))]
    compares = [one for one in own if "direction=LT" in one.line]
    return int(limits[0]) if len(limits) == len(compares) == 1 else 1


def num_bytes(type_: str, *, in_fast_memory: bool = True) -> int:
    """Bytes of all arrays of a type.

    Args:
        type_: as HLO writes it, of one array or a tuple of them.
        in_fast_memory: counts those that a TPU keeps beside its units ("S(1)" in their layout) too.
    """
    return sum(
        math.prod(int(n) for n in array[3].split(",") if n) * (int(array[2]) if array[2] else 8) // 8
        for array in _ARRAY.finditer(type_)
        if in_fast_memory or "S(" not in (array[4] or "")
    )


def memory_traffic(program: Program) -> float:
    """Bytes that a run of the program reads from and writes to a device's main memory.

    Every instruction reads its operands and writes its result once, of what it only slices or updates in place no
    more than that part; of a condition each branch counts as one of so many. What a TPU's compiler has placed in the
    memory beside the units is not counted, and a copy between the two is counted on one side; nor is what cuBLAS and
    cuDNN may use beside their results.
    """
    return sum(times * _traffic(program, one, own) for one, own, times in executed(program, every_branch=False))


def _traffic(program: Program, one: Instruction, own: Mapping[str, Instruction]) -> int:
    if one.opcode in _NO_TRAFFIC or one.opcode.endswith(("-done", "-update")) or _ALLOCATION in one.line:
        return 0
    operands = [own[name] for name in one.operands if name in own]
    if one.opcode in ("copy-start", "slice-start"):  # from one memory to another, or within the main one
        moved = num_bytes(one.type) - sum(num_bytes(operand.type) for operand in operands)
        read = sum(map(_in_memory, operands))
        return moved * ((read > 0) + (_in_memory(one) > read))
    if one.opcode.endswith("-start"):  # its type holds the operands too
        return max(_in_memory(one), sum(map(_in_memory, operands)))
    if one.opcode == "fusion":
        return sum(_read(program, one, place, operand) for place, operand in enumerate(operands)) + _written(
            program, one
        )
    if one.opcode == "dynamic-update-slice":
        return 2 * _in_memory(operands[1])
    if one.opcode in ("dynamic-slice", "slice"):
        return 2 * _in_memory(one)
    if _BY_NVIDIA in one.line:  # the last result is what it may use as it likes
        one = one._replace(type=_WORKSPACE.sub(")", one.type))
    return sum(map(_in_memory, operands)) + _in_memory(one)


def _in_memory(one: Instruction) -> int:
    return num_bytes(one.type, in_fast_memory=False)


def _within(program: Program, fusion: Instruction) -> Sequence[Instruction]:
    called = _CALLS.search(fusion.line)
    return program.computations.get(called[1], ()) if called else ()


def _read(program: Program, fusion: Instruction, place: int, operand: Instruction) -> int:
    """Bytes that a fusion reads of its operand at `place`."""
    inside, whole = _within(program, fusion), _in_memory(operand)
    names = {one.name for one in inside if one.opcode == "parameter" and f" parameter({place})" in one.line}
    if not names:  # a program cut short
        return whole
    read = 0
    for user in inside:  # in the order in which they are computed
        if names.isdisjoint(user.operands):
            continue
        if user.opcode == "bitcast":
            names.add(user.name)
        elif user.opcode in ("dynamic-slice", "slice"):
            read += num_bytes(user.type)
        elif user.opcode == "fusion":
            read += sum(
                _read(program, user, inner, operand) for inner, name in enumerate(user.operands) if name in names
            )
        elif user.opcode != "dynamic-update-slice" or user.operands[0] not in names:
            return whole
    return min(read, whole)


def _written(program: Program, fusion: Instruction) -> int:
    """Bytes that a fusion writes: of what it updates in place, the update."""
    written = _in_memory(fusion)
    return max(written - _not_updated(program, fusion), 0) if written else 0


def _not_updated(program: Program, fusion: Instruction) -> int:
    inside = {one.name: one for one in _within(program, fusion)}
    rest = 0
    for one in inside.values():
        if one.opcode == "dynamic-update-slice" and len(one.operands) > 1 and one.operands[1] in inside:
            rest += num_bytes(one.type) - num_bytes(inside[one.operands[1]].type)
        elif one.opcode == "fusion":
            rest += _not_updated(program, one)
    return rest
