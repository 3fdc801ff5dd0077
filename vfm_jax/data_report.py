"""What a data set holds, what is wrong with it, how fast it is read: facts for a program, pictures for a reader."""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vfm_jax.core.errors import TrainingError, UserError
from vfm_jax.core.keys import key_for
from vfm_jax.core.tables import build
from vfm_jax.core.types import Batch
from vfm_jax.data.bad import REASONS
from vfm_jax.data.crop import Crop
from vfm_jax.data.index import Index, make_index
from vfm_jax.data.pipeline import eval_batches, train_batches
from vfm_jax.data.repeats import Repeats, find_repeats
from vfm_jax.data.sources import SOURCES, Source, detect
from vfm_jax.data.statistics import Moments, Statistics, merge
from vfm_jax.data.timing import Stopwatch
from vfm_jax.data.wrapped import unwrapped
from vfm_jax.experiment import PROBED, Experiment, from_recipe, source_specs
from vfm_jax.report.data_page import Pictures, Tile
from vfm_jax.train.stages import read_stages

_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
_MAX_LISTED = 200  # bad records, and problems of a source, in the facts
_RAW_TILES, _VIEW_EXAMPLES, _TEST_EXAMPLES, _PAIR_TILES = 48, 6, 2, 12
_RATE_SECONDS, _RATE_IMAGES = 2.0, 256
_VIEWED_IMAGES, _VIEWED_TIMES = 32, 3  # of which the views are timed, on a CPU
_WORTH = 1.1  # times as fast: what is worth a change of the recipe
_STEP_SECONDS = (0.1, 0.3, 1.0, 3.0)  # shown where nobody says how long a step takes


class Split(NamedTuple):
    """A part of a data set.

    Attributes:
        source: what reads it.
        described: its name in `SOURCES` and its keywords.
    """

    source: Source
    described: dict[str, Any]


class DataReport(NamedTuple):
    """What was found.

    Attributes:
        facts: nothing but what JSON holds; `report.data_page` says it in words.
        pictures: for the page.
    """

    facts: dict[str, Any]
    pictures: Pictures


def splits_at(spec: Mapping[str, Any]) -> dict[str, Split]:
    """The source of a spec; where that is one of several parts by the usual names, the others too.

    Raises:
        UserError: as the source.
    """
    name = str(spec.get("split") or "all")
    splits = {name: Split(build(SOURCES, spec, "config.data"), dict(spec))}
    for other in _SPLITS if name in _SPLITS else ():
        if other == name:
            continue
        try:
            splits[other] = Split(build(SOURCES, {**spec, "split": other}, "config.data"), {**spec, "split": other})
        except UserError:  # no such part
            continue
    return splits


def spec_at(path: str) -> dict[str, Any]:
    """How what lies at a path is read.

    Raises:
        UserError: nothing there, or nothing that a source reads.
    """
    return detect.detect(path)


def splits_of(recipe: Mapping[str, Any]) -> tuple[Experiment, dict[str, Split]]:
    """The first stage of a recipe, built, and its data: what it trains on, and what it is evaluated on.

    Raises:
        UserError: as `experiment.from_recipe`.
    """
    fields = read_stages(recipe)[0].recipe
    experiment = from_recipe(fields)
    splits = {}
    for name, spec in source_specs(fields).items():
        own = {"train": experiment.source, PROBED: experiment.eval_sources.get("train")}
        source = unwrapped(own.get(name, experiment.eval_sources.get(name)))  # whole pictures, not crops of them
        splits[name] = Split(build(SOURCES, spec, "config.eval_data") if source is None else source, spec)
    return experiment, splits


def measure(
    splits: Mapping[str, Split],
    *,
    limit: int | None = None,
    progress: Callable[[str], Callable[[int, int], None]],
    say: Callable[[str], None] = print,
) -> dict[str, Index]:
    """The index of each split.

    Args:
        splits: by name.
        limit: at most so many records of each, evenly spaced.
        progress: name of a split -> what takes the number of records done, and of all.
        say: takes a line about the cache.
    """
    return {
        name: make_index(split.source, split.described, limit=limit, on_progress=progress(name), say=say)
        for name, split in splits.items()
    }


def statistics_of(index: Index) -> Statistics:
    """Mean, spread and range of each channel over the good records."""
    return merge(Moments(*(field[index.good] for field in index.moments)))


def normalize_line(statistics: Statistics) -> str:
    """The operation of a recipe, as it is written there; "" where nothing was measured."""
    mean, std = rounded(statistics)
    return f'dict(name="normalize", mean={_written(mean)}, std={_written(std)})' if mean else ""


def rounded(statistics: Statistics) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std to four digits, for a recipe; a channel that never changes has std 1. Empty for no images."""
    if not statistics.num_images or not np.isfinite(statistics.mean).all():
        return (), ()
    mean = tuple(float(f"{value:.4g}") for value in statistics.mean)
    return mean, tuple(float(f"{value:.4g}") or 1.0 for value in statistics.std)


def _written(values: Sequence[float]) -> str:
    return f"({', '.join(map(repr, values))}{',' if len(values) == 1 else ''})"


def report(
    title: str,
    splits: Mapping[str, Split],
    indexes: Mapping[str, Index],
    *,
    experiment: Experiment | None = None,
    step_seconds: float | None = None,
    step_from: str = "",
) -> DataReport:
    """All facts and pictures of a data set.

    Args:
        title: heads the page.
        splits: by name, the one that is trained on first.
        indexes: of them, from `measure`.
        experiment: a recipe's, for its views and what it needs.
        step_seconds: how long one of its steps takes.
        step_from: who says so.
    """
    first = next(iter(splits))
    repeats = find_repeats(indexes, lambda split, row: splits[split].source.name(row))
    repeats.pop(("train", PROBED), None)  # a probe may well learn from what was trained on
    rate = _rate(splits[first].source, indexes[first])
    views, views_note = _views(experiment, splits) if experiment else ([], "")
    source = splits[first].source
    facts = {
        "title": title,
        "splits": {name: _split_facts(split, indexes[name]) for name, split in splits.items()},
        "repeats": [_repeat_facts(splits, *pair, found) for pair, found in repeats.items()],
        "normalize": normalize_line(statistics_of(indexes[first])),
        "rate": rate,
        "needs": _needs(experiment.batch_size, rate, step_seconds, step_from) if experiment and rate else None,
        "crop": _crop_place(experiment, source, indexes[first], rate) if experiment and rate else None,
        "views_note": views_note,
    }
    dtype = np.dtype(getattr(source, "image_dtype", np.uint8))
    pictures = Pictures(
        raw=_raw_tiles(splits[first].source, indexes[first]),
        views=views,
        repeats={i: _pair_tiles(splits, *pair, found) for i, (pair, found) in enumerate(repeats.items())},
        stretch=dtype != np.uint8 or source.image_shape[2] > 3,
    )
    return DataReport(facts, pictures)


def _split_facts(split: Split, index: Index) -> dict[str, Any]:
    source, good = split.source, index.good
    names = source.class_names
    labels = Counter(index.label[good].tolist())
    reasons = Counter(REASONS[reason - 1] for reason in index.reason[~good])
    problems = [str(line) for line in getattr(source, "problems", ())]
    height, width, channels = source.image_shape
    bad = [
        {"name": source.name(int(index.rows[i])), "reason": REASONS[index.reason[i] - 1], "detail": index.details[i]}
        for i in np.flatnonzero(~good)[:_MAX_LISTED]
    ]
    return {
        "described": {name: _plain(value) for name, value in split.described.items()},
        "num_records": len(source),
        "num_read": len(index.rows),
        "num_good": int(good.sum()),
        "num_bad": int((~good).sum()),
        "num_from_cache": len(index.rows) - index.num_read,
        "bad": dict(reasons.most_common()),
        "bad_records": bad,
        "classes": {name: labels.get(i, 0) for i, name in enumerate(names)} if names else {},
        "num_unlabelled": sum(count for label, count in labels.items() if label < 0),
        "size": _sizes(index),
        "canvas": f"{height} × {width}",
        "channels": channels,
        "dtype": np.dtype(getattr(source, "image_dtype", np.uint8)).name,
        "statistics": statistics_of(index)._asdict(),
        "targets": sorted(getattr(source, "fields", {})),
        "target_names": list(getattr(source, "target_names", ()) or ()),
        "problems": problems[:_MAX_LISTED],
        "num_problems": len(problems),
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)[:200]


def _sizes(index: Index) -> dict[str, Any]:
    """Of the good records, in pixels: of the files where all are files, else on the canvas."""
    good = index.good
    sizes = index.file_size[good] if good.any() and index.file_size[good].all() else index.size[good]
    if not len(sizes):
        return {}
    ends = {
        side: {
            "min": int(values.min()),
            "median": int(np.median(values)),
            "max": int(values.max()),
        }
        for side, values in (("height", sizes[:, 0]), ("width", sizes[:, 1]))
    }
    return ends | {"shorter_side": _histogram(sizes.min(axis=1))}


def _histogram(values: np.ndarray, bins: int = 10) -> dict[str, int]:
    """Counts by range, in whole numbers; one range where all are the same."""
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // bins))
    counts = Counter(((values - low) // width).tolist())
    ends = ((low + i * width, min(high, low + (i + 1) * width - 1)) for i in range(max(counts) + 1))
    return {f"{a}" if a == b else f"{a} to {b}": counts.get(i, 0) for i, (a, b) in enumerate(ends)}


def _repeat_facts(splits: Mapping[str, Split], one: str, other: str, found: Repeats) -> dict[str, Any]:
    pairs = [
        {
            "first": splits[one].source.name(pair.first),
            "second": splits[other].source.name(pair.second),
            "how": "the same pixels" if pair.likeness == 1 else f"{100 * pair.likeness:.1f} % alike",
            "labels": list(pair.labels),
        }
        for pair in (*found.same, *found.near)
    ]
    return {
        "splits": [one, other],
        "num_same": found.num_same,
        "num_relabelled": found.num_relabelled,
        "num_near": found.num_near,
        "pairs": pairs,
    }


def _rate(source: Source, index: Index) -> dict[str, Any] | None:
    """Images a second that one core reads, decodes and puts on the canvas; None where none can be read."""
    rows = index.rows[index.good]
    rows = (
        rows[np.linspace(0, len(rows) - 1, min(len(rows), _RATE_IMAGES)).round().astype(int)] if len(rows) else rows
    )
    if not len(rows):
        return None
    many = getattr(source, "__getitems__", None)
    step = 64 if many else 1
    source[int(rows[0])]  # what is done once is not counted
    began, count = time.process_time(), 0
    with Stopwatch() as watch:
        while True:
            for start in range(0, len(rows), step):
                chosen = rows[start : start + step]
                many(chosen) if many else source[int(chosen[0])]
                count += len(chosen)
                seconds = time.process_time() - began
                if seconds > _RATE_SECONDS:
                    break
            if seconds > 0.2:  # a clock of 10 ms is then exact to a twentieth
                break
    total = sum(watch.seconds.values()) or 1.0
    return {
        "images_per_core_second": count / seconds,
        "num_images": count,
        "seconds": seconds,
        "num_cores": os.cpu_count(),
        "shares": {part: spent / total for part, spent in watch.seconds.items() if part != "other"},
    }


def _needs(
    batch_size: int, rate: Mapping[str, Any], step_seconds: float | None, step_from: str
) -> dict[str, Any] | None:
    """What a step time asks of the data."""
    cores, per_core = rate["num_cores"], rate["images_per_core_second"]
    rows = []
    for seconds in (step_seconds,) if step_seconds else _STEP_SECONDS:
        needed = batch_size / seconds
        waits = needed > cores * per_core
        verdict = f"waits for data: {100 * cores * per_core / needed:.0f} % of its speed" if waits else "fed"
        rows.append(
            {"step_seconds": seconds, "images_per_second": needed, "cores": needed / per_core, "verdict": verdict}
        )
    fastest = batch_size / (cores * per_core)
    said = f"Batches of {batch_size:,}. {cores} cores that do nothing else feed one every {fastest:.3g} s. " + (
        f"The step time is from {step_from}." if step_seconds else "Say how long a step takes with --step-seconds=N."
    )
    return {"rows": rows, "batch_size": batch_size, "fastest_step_seconds": fastest, "said": said}


def _crop_place(
    experiment: Experiment, source: Source, index: Index, rate: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Seconds of one core that an image costs, with its random crop on the device and on the host.

    On a CPU the views are counted, since host and device are the same cores. An accelerator makes them beside the
    host, and only what the host does is. None for a recipe of which the host cannot make the crop, or does.
    """
    if experiment.host_crop is None:
        return None
    crop, num_operations, cropped, other_views = experiment.host_crop
    cropped_rate = _rate(cropped, index)
    assert cropped_rate is not None  # what can be put on a canvas can be cropped
    seconds = {
        "device": 1 / rate["images_per_core_second"],
        "host": 1 / cropped_rate["images_per_core_second"],
    }
    backend = jax.default_backend()
    if backend == "cpu":
        rows = index.rows[index.good]
        seconds["device"] += _view_seconds(experiment.views, source, rows, ("image", "size"))
        seconds["host"] += _view_seconds(other_views, cropped, rows, ("image",))  # a crop fills its canvas
    return {
        "backend": backend,
        "core_seconds_per_image": seconds,
        "said": _crop_advice(seconds, backend, crop, num_operations),
    }


def _view_seconds(
    views: Callable[[jax.Array, Batch], Batch], source: Source, rows: np.ndarray, fields: Sequence[str]
) -> float:
    """CPU seconds that the views of an image take on the device, which is a CPU."""
    examples = [source[int(row)] for row in np.resize(rows, _VIEWED_IMAGES)]
    batch = {name: np.stack([example[name] for example in examples]) for name in (*fields, "label", "index")}
    batch |= {"epoch": np.zeros(_VIEWED_IMAGES, np.int32), "valid": np.ones(_VIEWED_IMAGES, np.bool_)}
    compiled = jax.jit(views).lower(key := jax.random.key(0), batch).compile()
    jax.block_until_ready(compiled(key, batch))
    began = time.process_time()
    for _ in range(_VIEWED_TIMES):
        jax.block_until_ready(compiled(key, batch))
    return (time.process_time() - began) / (_VIEWED_TIMES * _VIEWED_IMAGES)


def _crop_advice(seconds: Mapping[str, float], backend: str, crop: Crop, num_operations: int) -> str:
    """What was measured of the two places of a crop, and what to write where the host is the better one."""
    device, host = 1e3 * seconds["device"], 1e3 * seconds["host"]
    counted = "reading and views" if backend == "cpu" else f"reading, without what the {backend} does"
    measured = (
        f"An image costs a core {device:.3g} ms with its random crop on the device, {host:.3g} ms with it on the "
        f"host ({counted})."
    )
    if device < _WORTH * host:
        return f"{measured} The recipe's own place, the device, is as good."
    taken = f"first {num_operations} operations" if num_operations > 1 else "first operation"
    fields = f"size={crop.size}, scale={tuple(crop.scale)}, ratio={tuple(map(_short_number, crop.ratio))}"
    return (
        f"{measured} For the host write config.data.crop=dict({fields}, flip={crop.flip}) and take the {taken} out "
        "of config.views. Crops have the same distribution, and other draws: decide before a run, not within it."
    )


def _short_number(value: float) -> float:
    return float(f"{value:.4g}")


def _label(source: Source, label: int) -> str:
    names = source.class_names
    return names[label] if names and 0 <= label < len(names) else ""


def _tile(source: Source, row: int) -> Tile:
    example = source[row]
    height, width = example["size"]
    own = _label(source, int(example["label"])) if np.ndim(example["label"]) == 0 else ""
    below = " · ".join(word for word in (own, _short(source.name(row))) if word)
    targets = {}
    if "boxes" in example:
        count = int(example["num_boxes"])
        targets = {"boxes": example["boxes"][:count], "box_labels": example["box_labels"][:count]}
    if "label_map" in example:
        targets["label_map"] = example["label_map"][:height, :width]
    return Tile(example["image"][:height, :width], below, source.name(row), **targets)


def _short(name: str) -> str:
    """Of `FOLDER/FILE` the file, of `FILE, member` or row that alone."""
    return os.path.basename(name.rpartition(", ")[2])


def _raw_tiles(source: Source, index: Index) -> list[Tile]:
    """Good records, spread over the classes."""
    order = np.flatnonzero(index.good)
    order = order[np.argsort(index.label[order], kind="stable")]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), _RAW_TILES)).round().astype(int))]
    return [_tile(source, int(index.rows[i])) for i in chosen]


def _pair_tiles(splits: Mapping[str, Split], one: str, other: str, found: Repeats) -> list[tuple[Tile, Tile]]:
    pairs = (*found.same[:_PAIR_TILES], *found.near[: max(0, _PAIR_TILES - len(found.same))])
    return [(_tile(splits[one].source, p.first), _tile(splits[other].source, p.second)) for p in pairs]


def _views(experiment: Experiment, splits: Mapping[str, Split]) -> tuple[list[tuple[str, list[Tile]]], str]:
    """The first examples of the run's first batch, and of the test set, as the network gets them."""
    size = min(_VIEW_EXAMPLES, experiment.batch_size)
    loader: dict[str, Any] = {
        **experiment.loader,
        "workers": 0,
        "max_bad_ratio": 1.0,
    }  # what is bad is told elsewhere on the page
    try:
        with train_batches(
            experiment.source, batch_size=size, seed=experiment.seed, stage=experiment.stage, **loader
        ) as batches:
            batch = next(batches)
        key = key_for(experiment.seed, 0, "views", experiment.stage)
        shown = _shown_views(experiment, experiment.source, batch, experiment.views, key, "train")
        if experiment.eval_views and "test" in splits:
            source, size = splits["test"].source, _TEST_EXAMPLES
            with eval_batches(source, batch_size=size, limit=size, max_bad_ratio=1.0) as batches:
                batch = next(batches)
            key = key_for(experiment.seed, 0, "eval_views")
            shown += _shown_views(experiment, source, batch, experiment.eval_views, key, "test")
    except TrainingError as error:
        return [], f"The views cannot be shown: {error}"
    note = (
        "The first examples of the first batch, made by the recipe's own views on the device, with the same random "
        "numbers as in training; normalization is taken back for the eye. First in each row: the canvas that the "
        "host hands over."
    )
    mixed = " Images are mixed within the batch: here within these few." if experiment.mixes else ""
    return shown, note + mixed


def _shown_views(
    experiment: Experiment, source: Source, batch: Mapping[str, np.ndarray], views: Any, key: jax.Array, split: str
) -> list[tuple[str, list[Tile]]]:
    host = {name: batch[name] for name in batch if name in experiment.sample}
    made = jax.device_get(jax.jit(views)(key, host))
    undo = experiment.denormalizers[split]
    rows = []
    for i in np.flatnonzero(batch["valid"]):
        row = int(batch["index"][i])
        height, width = host["image"].shape[1:3]
        tiles = [Tile(host["image"][i], f"canvas · {height} × {width}", source.name(row))]
        for field in undo:
            of_field = made[field][i][None] if made[field].ndim == 4 else made[field][i]
            for number, view in enumerate(of_field, 1):
                label = f"{field}{f' {number}' if len(of_field) > 1 else ''} · {view.shape[0]} × {view.shape[1]}"
                tiles.append(Tile(undo[field](view), label, f"{field} view {number} of {source.name(row)}"))
        own = _label(source, int(batch["label"][i])) if batch["label"].ndim == 1 else ""
        rows.append((" · ".join(word for word in (split, own, _short(source.name(row))) if word), tiles))
    return rows
