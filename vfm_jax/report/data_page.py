"""The page of a data set: what is in it, how it looks, what is wrong with it, and whether it is read fast enough.

It is made of the facts that `vfm data --json` prints too, and of pictures. The file asks the network for nothing,
needs no JavaScript, and every name in it is escaped.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.report import markup
from vfm_jax.report.numbers import format_duration, format_percent, format_value
from vfm_jax.report.plots import CLASS_COLORS
from vfm_jax.report.redaction import redact
from vfm_jax.report.targets import with_boxes, with_label_map

_IGNORED = 255  # class of pixels without one
_MAX_CLASSES, _MAX_NAMES, _MAX_PAIRS = 30, 20, 12  # rows shown; the rest is counted


class Tile(NamedTuple):
    """A picture and what stands below it.

    Attributes:
        pixels: h w c, uint8, uint16, or floats in [0, 1].
        label: text, or "" for none.
        title: text for who cannot see it, or points at it.
        boxes: outlined on it: x0 y0 x1 y1 in its pixels, (k, 4).
        box_labels: their classes, (k,).
        label_map: tints it: the class of each pixel, (h, w); 255, or -1, is none.
    """

    pixels: np.ndarray
    label: str
    title: str = ""
    boxes: np.ndarray | None = None
    box_labels: np.ndarray | None = None
    label_map: np.ndarray | None = None


class Pictures(NamedTuple):
    """All pictures of the page.

    Attributes:
        raw: records as the source gives them.
        views: of each example shown, its name and its views.
        repeats: by index in `facts["repeats"]`, pairs of records.
        stretch: whether each channel is stretched between its 2nd and 98th percentile, to be seen at all.
    """

    raw: Sequence[Tile]
    views: Sequence[tuple[str, Sequence[Tile]]]
    repeats: Mapping[int, Sequence[tuple[Tile, Tile]]]
    stretch: bool


def shown(pixels: np.ndarray, *, stretch: bool = False) -> np.ndarray:
    """Pixels of any type and number of channels as RGB in [0, 1]; one or two channels as gray of the first."""
    scale = np.iinfo(pixels.dtype).max if np.issubdtype(pixels.dtype, np.integer) else 1
    image = np.nan_to_num(pixels.astype(np.float32) / np.float32(scale), posinf=0.0, neginf=0.0)
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if stretch and image.size:
        low, high = np.percentile(image, [2, 98], axis=(0, 1))
        image = (image - low) / np.maximum(high - low, 1e-6)
    return np.clip(image, 0, 1).astype(np.float32)


def channels_note(channels: int, stretch: bool) -> str:
    """How pictures that are no RGB are shown, in a sentence; "" for those that are."""
    what = "in gray" if channels == 1 else "the first of two channels" if channels == 2 else ""
    what = f"the first three of {channels} channels, as red, green and blue" if channels > 3 else what
    stretched = "each channel is stretched between its 2nd and 98th percentile in each picture" if stretch else ""
    parts = [part for part in (what, stretched) if part]
    return f" Shown: {'; '.join(parts)}." if parts else ""


def write_page(out: str | os.PathLike[str], facts: Mapping[str, Any], pictures: Pictures) -> pathlib.Path:
    """Writes the page, replacing an older one, and returns its path."""
    facts = redact(facts)
    splits = facts["splits"]
    channels = next(iter(splits.values()))["channels"] if splits else 3
    note = channels_note(channels, pictures.stretch)
    sections = [
        ("What is there", "overview", _overview(splits)),
        ("The images", "images", _sheet(pictures, note, _legend(splits))),
        ("As the network sees them", "views", _views(pictures, facts.get("views_note", ""), note)),
        ("Classes", "classes", _classes(splits)),
        ("Sizes", "sizes", _sizes(splits)),
        ("Values", "values", _values(facts)),
        ("Found twice", "repeats", _repeats(facts["repeats"], pictures)),
        ("Records that cannot be used", "bad", _bad(splits)),
        ("What the source reports", "problems", _problems(splits)),
        ("Speed", "speed", _speed(facts)),
        ("How it was read", "read", _read_as(facts)),
    ]
    title = markup.text(facts["title"])
    page = markup.document(title, "<span class=badge>data</span>", _lead(splits), _warnings(facts), sections)
    path = pathlib.Path(out)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def findings(facts: Mapping[str, Any]) -> list[str]:
    """What is wrong, or may be, the worst first; a sentence each, for the terminal and the head of the page."""
    leaks, twice, labels, alike = [], [], [], []
    for repeat in facts["repeats"]:
        one, other = repeat["splits"]
        where = f"{one} and {other}" if one != other else one
        same = f"{repeat['num_same']:,} of {facts['splits'][other]['num_good']:,} pictures of {other}"
        if one != other and repeat["num_same"]:
            leaks.append(f"Leak: {same} are in {one} too, pixel for pixel.")
        elif repeat["num_same"]:
            twice.append(f"Duplicates: {same} repeat an earlier one, pixel for pixel.")
        if repeat["num_relabelled"]:
            labels.append(f"Labels: {repeat['num_relabelled']:,} of the repeats in {where} have another label.")
        if repeat["num_near"]:
            those = f"others of {one}" if one == other else f"some of {one}"
            alike.append(f"Look-alikes: {repeat['num_near']:,} more of the pictures of {other} look like {those}.")
    found = leaks + labels
    for name, split in facts["splits"].items():
        if split["num_bad"]:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in split["bad"].items())
            share = format_percent(split["num_bad"] / split["num_read"], 2)
            found.append(
                f"Bad: {split['num_bad']:,} of {split['num_read']:,} records of {name} ({share}): {reasons}."
            )
        if split["num_problems"]:
            found.append(
                f"Problems that the source of {name} reports: {split['num_problems']:,}. {split['problems'][0]}"
            )
        if any(split["statistics"]["not_finite_ratio"]):
            most = max(split["statistics"]["not_finite_ratio"])
            found.append(f"Values: up to {format_percent(most, 2)} of a channel of {name} are NaN or infinite.")
    return found + twice + alike


def _lead(splits: Mapping[str, Any]) -> str:
    parts = [f"{name}: {_counted(split['num_records'], 'image')}" for name, split in splits.items()]
    first = next(iter(splits.values()), None)
    about = ""
    if first is not None:
        classes = _counted(len(first["classes"]), "class", "classes") if first["classes"] else "no classes"
        about = (
            f" {classes.capitalize()}; read as {first['canvas']} {first['dtype']}, {_channels(first['channels'])}."
        )
    return f"<p class=lead>{markup.text('; '.join(parts))}.{markup.text(about)}</p>"


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def _channels(count: int) -> str:
    return "one channel" if count == 1 else f"{count} channels"


def _warnings(facts: Mapping[str, Any]) -> str:
    found = findings(facts)
    return f"<div class=warn>{''.join(f'<div>{markup.text(line)}</div>' for line in found)}</div>" if found else ""


def _overview(splits: Mapping[str, Any]) -> str:
    rows = [
        [
            markup.text(name),
            markup.text(split["num_records"]),
            markup.text(split["num_read"]) if split["num_read"] < split["num_records"] else "all",
            markup.text(split["num_bad"]),
            markup.text(sum(1 for count in split["classes"].values() if count)) if split["classes"] else "–",
            markup.text(split["num_unlabelled"]) if split["classes"] else "–",
            markup.text(_extent(split["size"])),
            markup.text(split["canvas"]),
            markup.text(f"{split['channels']} × {split['dtype']}"),
        ]
        for name, split in splits.items()
    ]
    head = ["Split", "Records", "Looked at", "Bad", "Classes", "Unlabelled", "Height × width", "Canvas", "Channels"]
    note = (
        "Height and width are those of the files, where each record is one; elsewhere of the picture on its canvas."
    )
    return markup.table(head, rows) + f"<p class=note>{note}</p>"


def _extent(size: Mapping[str, Any]) -> str:
    """Sizes in pixels: one, or from the smallest to the largest."""
    if not size:
        return "–"
    ends = [f"{size['height'][end]} × {size['width'][end]}" for end in ("min", "max")]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _tile(tile: Tile, stretch: bool, kind: str = "") -> str:
    pixels = shown(tile.pixels, stretch=stretch)
    if tile.label_map is not None:
        pixels = with_label_map(pixels, tile.label_map.astype(np.int32), _IGNORED)
    if tile.boxes is not None and tile.box_labels is not None:
        pixels = with_boxes(pixels, tile.boxes, tile.box_labels)
    picture = markup.image(pixels, tile.title or tile.label)
    label = f"<small>{markup.text(tile.label)}</small>"
    return f'<div class="cell {kind}" title="{markup.text(tile.title)}">{picture}{label}</div>'


def _sheet(pictures: Pictures, note: str, legend: str) -> str:
    if not pictures.raw:
        return ""
    tiles = "".join(_tile(tile, pictures.stretch) for tile in pictures.raw)
    caption = "Some records as the source gives them, spread over the classes; point at one for its whole name."
    if any(tile.boxes is not None for tile in pictures.raw):
        caption += " Outlined: their boxes, coloured by class."
    if any(tile.label_map is not None for tile in pictures.raw):
        caption += " Tinted: the class of each pixel."
    return markup.figure(f"<div class=sheet>{tiles}</div>", caption + markup.text(note) + legend)


def _legend(splits: Mapping[str, Any]) -> str:
    """The classes of boxes or pixels in their colours, as far as those tell them apart."""
    names = next((split["target_names"] for split in splits.values()), ())
    shown = [
        f'<span class=value><i class=dot style="background:{CLASS_COLORS[i]}"></i>{markup.text(name)}</span>'
        for i, name in enumerate(names[: len(CLASS_COLORS)])
    ]
    more = f" and {len(names) - len(shown):,} more, in the same colours again" if len(names) > len(shown) else ""
    return f" {' '.join(shown)}{more}" if shown else ""


def _views(pictures: Pictures, how: str, note: str) -> str:
    if not pictures.views:
        return f"<p class=note>{markup.text(how)}</p>" if how else ""
    rows = []
    for name, tiles in pictures.views:
        cells = "".join(_tile(tile, pictures.stretch, "query" if i == 0 else "") for i, tile in enumerate(tiles))
        rows.append(f"<h3>{markup.text(name)}</h3><div class=sheet>{cells}</div>")
    return markup.figure("".join(rows), markup.text(how + note))


def _bars(rows: Iterable[tuple[str, Sequence[int]]], head: Sequence[str]) -> str:
    rows = list(rows)
    most = max((max(counts) for _, counts in rows), default=1) or 1

    def bar(count: int) -> str:
        line = f"<span class='bar main'><i style='width:{100 * count / most:.1f}%'></i></span>"
        return f"<span class=value>{count:,}</span>{line}"

    return markup.table(
        [markup.text(word) for word in head], [[markup.text(name), *map(bar, counts)] for name, counts in rows]
    )


def _classes(splits: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for split in splits.values() for name in split["classes"]))
    if not names:
        return ""
    labelled = {split: facts for split, facts in splits.items() if facts["classes"]}
    counts = [(name, [facts["classes"].get(name, 0) for facts in labelled.values()]) for name in names]
    counts.sort(key=lambda row: -sum(row[1]))
    head = ["Class", *labelled]
    first, rest = counts[:_MAX_CLASSES], counts[_MAX_CLASSES:]
    more = f"<details><summary>{len(rest):,} more classes</summary>{_bars(rest, head)}</details>" if rest else ""
    empty = [name for name, number in counts if not sum(number)]
    note = f"<p class=note>Without any image: {markup.text(', '.join(empty[:_MAX_NAMES]))}.</p>" if empty else ""
    return _bars(first, head) + more + note


def _sizes(splits: Mapping[str, Any]) -> str:
    parts = []
    for name, split in splits.items():
        if not split["size"]:
            continue
        rows = [
            [side.capitalize(), *(markup.text(split["size"][side][word]) for word in ("min", "median", "max"))]
            for side in ("height", "width")
        ]
        table = markup.table(["Pixels", "Smallest", "Median", "Largest"], rows)
        histogram = split["size"]["shorter_side"]
        bars = _bars([(label, [count]) for label, count in histogram.items()], ["Shorter side", "Images"])
        parts.append(f"<div><h3>{markup.text(name)}</h3>{table}{bars if len(histogram) > 1 else ''}</div>")
    return f"<div class=cols>{''.join(parts)}</div>" if parts else ""


def _values(facts: Mapping[str, Any]) -> str:
    measured = {name: split["statistics"] for name, split in facts["splits"].items()}
    measured = {name: found for name, found in measured.items() if found["num_images"]}
    if not measured:
        return ""
    lost = any(any(found["not_finite_ratio"]) for found in measured.values())
    rows = [
        [markup.text(name), markup.text(c), *(markup.text(found[w][c]) for w in ("mean", "std", "low", "high"))]
        + ([format_percent(found["not_finite_ratio"][c], 2)] if lost else [])
        for name, found in measured.items()
        for c in range(len(found["mean"]))
    ]
    head = ["Split", "Channel", "Mean", "Std", "Smallest", "Largest", *(["Not finite"] if lost else [])]
    caption = "<p class=note>In units of [0, 1], over all pixels of the pictures, the canvas's padding left out.</p>"
    line = f"<p class=note>For a recipe: <code>{markup.text(facts['normalize'])}</code></p>"
    return markup.table(head, rows) + caption + (line if facts["normalize"] else "")


def _repeats(repeats: Sequence[Mapping[str, Any]], pictures: Pictures) -> str:
    rows, details = [], []
    for i, repeat in enumerate(repeats):
        one, other = repeat["splits"]
        where = f"within {one}" if one == other else f"{other}, found in {one}"
        counts = (repeat[word] for word in ("num_same", "num_relabelled", "num_near"))
        rows.append([markup.text(where), *(markup.text(count) for count in counts)])
        pairs = "".join(
            f"<div class=pair>{_tile(a, pictures.stretch)}{_tile(b, pictures.stretch)}</div>"
            for a, b in pictures.repeats.get(i, ())
        )
        names = [
            [markup.text(pair["first"]), markup.text(pair["second"]), markup.text(pair["how"])]
            for pair in repeat["pairs"][:_MAX_NAMES]
        ]
        if names:
            table = markup.table(["One", "The other", "How alike"], names)
            details.append(
                f"<h3>{markup.text(where.capitalize())}</h3><div class=pairs>{pairs}</div>"
                f"<details><summary>names of {len(names)} pairs</summary>{table}</details>"
            )
    if not rows:
        return ""
    caption = (
        "<p class=note>The same: pixel for pixel as the source gives them. Look-alikes: candidates for a look; the "
        "same picture at another size or compression, or merely two of one kind (digits, X-rays).</p>"
    )
    head = ["Where", "The same", "of these with two labels", "Look-alikes"]
    return markup.table(head, rows) + caption + "".join(details)


def _bad(splits: Mapping[str, Any]) -> str:
    parts = []
    for name, split in splits.items():
        for reason, count in split["bad"].items():
            those = [row for row in split["bad_records"] if row["reason"] == reason]
            rows = [[markup.text(row["name"]), markup.text(row["detail"])] for row in those[:_MAX_NAMES]]
            more = f"<p class=note>and {count - len(rows):,} more</p>" if count > len(rows) else ""
            title = markup.text(f"{name}: {reason.replace('_', ' ')} ({count:,})")
            parts.append(f"<h3>{title}</h3>{markup.table(['Record', 'What was found'], rows)}{more}")
    return "".join(parts)


def _problems(splits: Mapping[str, Any]) -> str:
    parts = []
    for name, split in splits.items():
        if split["problems"]:
            rows = "".join(f"<li>{markup.text(line)}</li>" for line in split["problems"])
            more = split["num_problems"] - len(split["problems"])
            said = f"<p class=note>and {more:,} more</p>" if more else ""
            parts.append(f"<h3>{markup.text(name)}</h3><ul>{rows}</ul>{said}")
    return "".join(parts)


def _speed(facts: Mapping[str, Any]) -> str:
    rate = facts["rate"]
    if not rate:
        return ""
    shares = [(f"of it {part}", format_percent(share, 0)) for part, share in rate["shares"].items() if share >= 0.005]
    measured = markup.facts(
        [
            ("Images a second of one core", rate["images_per_core_second"]),
            *shares,
            ("Measured on", f"{rate['num_images']:,} images, {format_duration(rate['seconds'])}"),
            ("Cores of this machine", rate["num_cores"]),
        ]
    )
    table = ""
    if facts["needs"]:
        rows = [
            [
                markup.text(f"{need['step_seconds']:g} s"),
                markup.text(need["images_per_second"]),
                markup.text(need["cores"]),
                markup.text(need["verdict"]),
            ]
            for need in facts["needs"]["rows"]
        ]
        said = f"<p class=note>{markup.text(facts['needs']['said'])}</p>"
        table = markup.table(["A step takes", "Images/s needed", "Cores needed", "On this machine"], rows) + said
    place = f"<p class=note>{markup.text(facts['crop']['said'])}</p>" if facts["crop"] else ""
    return f"<div class=cols><div>{measured}{place}</div><div>{table}</div></div>"


def _read_as(facts: Mapping[str, Any]) -> str:
    return "".join(
        f"<h3>{markup.text(name)}</h3>"
        + markup.facts((field, format_value(value)) for field, value in split["described"].items())
        for name, split in facts["splits"].items()
    )
