"""A plan for people, and for another program."""

import sys
from typing import Any

from vfm_jax.plan import PlannedStage, StagePlan, Target
from vfm_jax.plan.fit import Change
from vfm_jax.plan.stage import REACHED
from vfm_jax.report.numbers import format_percent
from vfm_jax.report.tables import print_table


def tell(planned: PlannedStage, target: Target) -> None:
    """Prints a stage's plan, and then what else is asked of it as it comes."""
    plan = planned.plan
    mesh = ", ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    print_table(rows(plan), title=f"{plan.stage} on {target.name}: {target.num_chips} chips, {mesh}")
    for note in notes(planned, target):
        print(note)
    tried = []
    for change in planned.changes():
        tried.append(change_row(change))
        print(f"tried {' '.join(change.settings)}", file=sys.stderr)
    if tried:
        print()
        print_table(tried, title="To make it fit, what was tried, the cheapest first")
    if plan.memory_bytes is not None:
        print("looking for the largest batch that fits", file=sys.stderr)
        print(batch_words(planned.largest()))
    print()


def rows(plan: StagePlan) -> list[dict[str, Any]]:
    """The figures, as a table of two columns and a remark."""
    found: list[tuple[str, str, str]] = [
        ("parameters trained", f"{plan.num_parameters:,}", ""),
        ("model FLOPs per image", f"{plan.model_flops / 1e9:,.1f} G", "forward and backward; products alone"),
        ("batch", f"{plan.batch_size:,}", ""),
        ("steps", f"{plan.total_steps:,}", f"{plan.total_steps * plan.batch_size / 1e6:,.1f} million images"),
    ]
    found += [(f"memory: {row['kind']}", _gb(row["bytes per device"]), _split(row)) for row in plan.kinds]
    if plan.temporary_bytes is not None:
        found.append(("memory: activations and others", _gb(plan.temporary_bytes), "what lives within a step"))
    if plan.memory_bytes is None:
        verdict = ""
    else:
        verdict = f"{'fits' if plan.fits else 'does NOT fit'} in {_gb(plan.memory_bytes)}"
    found.append(("memory: peak per device", _gb(plan.peak_bytes), verdict))
    if plan.traffic_bytes is not None:
        sent = sum(message.num_bytes for message in plan.messages)
        times = sum(message.times for message in plan.messages)
        found += [
            ("compiled in", f"{plan.compile_seconds:,.0f} s", "on this machine"),
            ("memory traffic per step", _gb(plan.traffic_bytes), "of a device"),
            ("messages per step", _gb(sent), f"{times:,} between devices, of whole arrays"),
        ]
    found += _time_rows(plan)
    found.append(("a checkpoint", _gb(plan.checkpoint_bytes), ""))
    return [{"": name, "value": value, "remark": remark} for name, value, remark in found]


def _time_rows(plan: StagePlan) -> list[tuple[str, str, str]]:
    time, mfu = plan.time, plan.mfu
    if time is None or mfu is None:
        return []
    hours = [seconds * plan.total_steps / 3600 for seconds in (time.best, time.worst)]
    parts = f"arithmetic {_ms(time.arithmetic)}, memory {_ms(time.memory)}, messages {_ms(time.messages)}"
    rate = plan.batch_size / time.best
    return [
        ("a step", f"{_ms(time.best)} to {_ms(time.worst)}", f"limited by {time.limit}: {parts}"),
        ("MFU", f"{format_percent(mfu[0])} to {format_percent(mfu[1])}", "of these two ends"),
        ("hours", f"{hours[0]:,.1f} to {hours[1]:,.1f}", ""),
        ("chip-hours", f"{hours[0] * plan.num_chips:,.0f} to {hours[1] * plan.num_chips:,.0f}", ""),
        (
            "images per second",
            f"{rate:,.0f}",
            f"at most; {rate / plan.num_hosts:,.0f} on each of {plan.num_hosts} hosts",
        ),
    ]


def notes(planned: PlannedStage, target: Target) -> list[str]:
    """What the figures rest on."""
    found = []
    if target.estimated:
        found.append(f"Estimates: {target.estimated}.")
    if planned.data:
        found.append(f"Of the data: {planned.data}.")
    if target.memory_share < 1:
        found.append(
            f"Memory: JAX takes {target.memory_share:.0%} of a GPU's, which is what is told here. "
            "XLA_CLIENT_MEM_FRACTION=0.92 before vfm plan and vfm train lets it take more."
        )
    if planned.plan.time is not None:
        found.append(
            "Time: from the chip's data sheet. At best all overlaps, and the longest of arithmetic, memory and "
            f"messages is the step; at worst they follow one another, products reach {REACHED:.0%} of the peak, and "
            "messages use one direction of the torus. Nothing was measured on such a device."
        )
    elif planned.plan.traffic_bytes is None:
        found.append("No time: the compiler gave up where the memory ended.")
    elif target.chip is None:
        found.append("No time: no data sheet is kept of processors.")
    return found


def change_row(change: Change) -> dict[str, Any]:
    """A row of what was tried."""
    plan = change.plan
    step = None if plan.time is None else f"{_ms(plan.time.best)} to {_ms(plan.time.worst)}"
    return {
        "settings": " ".join(change.settings),
        "peak": _gb(plan.peak_bytes),
        "fits": plan.fits,
        "a step": step,
    }


def batch_words(plan: StagePlan | None) -> str:
    """The largest batch that was found to fit."""
    if plan is None:
        return "No batch of these settings was found to fit."
    return f"Largest batch found to fit: {plan.batch_size:,} (peak {_gb(plan.peak_bytes)} of a device)."


def as_json(planned: PlannedStage) -> dict[str, Any]:
    """All figures, unrounded, with the changes that were tried and the largest batch."""
    largest = planned.largest()
    return _plain(planned.plan) | {
        "data": planned.data,
        "changes": [{"settings": list(change.settings), "plan": _plain(change.plan)} for change in planned.changes()],
        "largest_batch": None if largest is None else largest.batch_size,
    }


def _plain(plan: StagePlan) -> dict[str, Any]:
    return plan._asdict() | {
        "fits": plan.fits,
        "messages": [message._asdict() for message in plan.messages],
        "time": None if plan.time is None else plan.time._asdict() | {"limit": plan.time.limit},
    }


def _split(row: dict[str, Any] | Any) -> str:
    return f"{row['split']} of {row['leaves']} leaves split over devices" if row["split"] else "on every device"


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"
