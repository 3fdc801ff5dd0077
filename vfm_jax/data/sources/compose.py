"""Sources made of sources: mixtures, concatenation, subsets, class-balanced sampling, repetition.

Each is a fixed map from its places to records of its members; the order in which places are visited stays the
pipeline's. A member is a dict as a recipe's `data`: `dict(name="folder", path=...)`.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build, keywords, lookup
from vfm_jax.data.decode import Picture
from vfm_jax.data.sources.location import existing

_FILL = {"label_map": 255, "box_labels": -1}  # of a field's rows and pixels beyond a smaller member's


class Run(NamedTuple):
    """Places in a row that stand for records of one member, each as often as the others, or once more.

    Attributes:
        member: its number.
        rows: the records; None for all.
        count: of places.
    """

    member: int
    rows: np.ndarray | None
    count: int


class ComposedSource:
    """Records of other sources, by a fixed map. See `vfm_jax.data.sources.Source`.

    The canvas is as large as the largest member's; a picture fills the top left of it as before.
    """

    def __init__(
        self,
        members: Sequence[Any],
        runs: Sequence[Run],
        label_maps: Sequence[np.ndarray | None],
        names: tuple[str, ...] | None,
    ):
        """Takes the members, which place is which record, and how each member's class ids become those of `names`."""
        self._members, self._runs, self._label_maps = list(members), list(runs), list(label_maps)
        self.class_names = names
        self._ends = np.cumsum([run.count for run in runs])
        self.image_shape = tuple(np.max([member.image_shape for member in members], axis=0).tolist())
        self.image_dtype = _dtype(members[0])
        self.problems = tuple(line for member in members for line in getattr(member, "problems", ()))
        self.fields = {
            name: (tuple(np.max([getattr(m, "fields", {})[name][0] for m in members], axis=0).tolist()), dtype)
            for name, (_, dtype) in getattr(members[0], "fields", {}).items()
        }
        if hasattr(members[0], "tokenizer"):
            self.tokenizer = members[0].tokenizer
            self.text_shape = tuple(np.max([member.text_shape for member in members], axis=0).tolist())
        if hasattr(members[0], "target_names"):
            self.target_names = members[0].target_names
        if all(hasattr(member, "read") for member in members):
            self.read = self._read
        if all(hasattr(member, "__getitems__") for member in members):
            self.__getitems__ = self._read_many

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        number, row = self._place(index)
        return self._example(index, number, self._members[number][row])

    def _read(self, index: int, picture: Picture) -> dict[str, np.ndarray]:
        """The record, its picture made as the caller says."""
        number, row = self._place(index)
        return self._example(index, number, self._members[number].read(row, picture))

    def _read_many(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The records at several places, the batch axis first."""
        indices = np.asarray(indices, np.int64)
        runs = np.searchsorted(self._ends, indices, side="right")
        member = np.array([run.member for run in self._runs])[runs]
        rows = np.empty_like(indices)
        for number in np.unique(runs):
            here, run = runs == number, self._runs[number]
            rows[here] = self._rows(run, indices[here] - (self._ends[number] - run.count))
        out: dict[str, np.ndarray] = {}
        for number in np.unique(member):
            here = member == number
            examples = self._example(indices[here], number, self._members[number].__getitems__(rows[here]))
            for name, values in examples.items():
                out.setdefault(name, np.empty((len(indices), *values.shape[1:]), values.dtype))[here] = values
        return out

    def _example(
        self, index: int | np.ndarray, number: int, example: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A member's example as this source's own; or several, the batch axis first."""
        shapes = {name: shape for name, (shape, _) in self.fields.items()}
        if example["image"].shape[-3:] == self._members[number].image_shape:  # on its canvas, and no crop
            shapes["image"] = self.image_shape
        if hasattr(self, "text_shape"):
            shapes["texts"] = self.text_shape
        larger = {name: _enlarged(example[name], shape, _FILL.get(name, 0)) for name, shape in shapes.items()}
        label = self._renamed(number, np.asarray(example["label"]))
        return {**example, **larger, "label": label, "index": np.asarray(index, np.int32)}

    @property
    def labels(self) -> np.ndarray:
        """Class ids of all places (int32)."""
        known = [labels_of(member) for member in self._members]
        return np.concatenate(
            [
                self._renamed(run.member, known[run.member][self._rows(run, np.arange(run.count))])
                for run in self._runs
            ]
        )

    def name(self, index: int) -> str:
        number, row = self._place(index)
        return self._members[number].name(row)

    def _renamed(self, number: int, labels: np.ndarray) -> np.ndarray:
        if self.class_names is None:
            return np.full_like(labels, -1)
        mapped = self._label_maps[number]
        return labels if mapped is None else np.where(labels < 0, labels, mapped[labels]).astype(np.int32)

    def _place(self, index: int) -> tuple[int, int]:
        """Member and record of a place."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        run = self._runs[number]
        inside = int(index) - int(self._ends[number] - run.count)
        return run.member, int(self._rows(run, np.array(inside)))

    def _rows(self, run: Run, inside: np.ndarray) -> np.ndarray:
        """Records of places in a run; what comes more than once is spread evenly over the records."""
        size = len(self._members[run.member]) if run.rows is None else len(run.rows)
        rows = inside.astype(np.int64) * size // run.count
        return rows if run.rows is None else run.rows[rows]


def _enlarged(value: np.ndarray, shape: Sequence[int], fill: int) -> np.ndarray:
    """The value in the first corner of its last axes, which become as long as `shape` says."""
    whole = (*value.shape[: value.ndim - len(shape)], *shape)
    if value.shape == whole:
        return value
    out = np.full(whole, fill, value.dtype)
    out[tuple(slice(size) for size in value.shape)] = value
    return out


def _dtype(source: Any) -> np.dtype:
    return np.dtype(getattr(source, "image_dtype", np.uint8))


def labels_of(source: Any) -> np.ndarray:
    """Class ids of all records (int32): those that a source knows, or of records read one by one.

    Raises:
        UserError: the source has no classes.
    """
    if source.class_names is None:
        raise UserError("config.data: the images have no classes, which choosing by class needs.")
    known = getattr(source, "labels", None)
    if known is not None:
        return np.asarray(known, np.int32)
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda index: int(source[index]["label"]), range(len(source)))
        return np.fromiter(found, np.int32, len(source))


def _built(members: Sequence[Mapping[str, Any]], where: str) -> list[Any]:
    """The sources that the dicts describe; a vocabulary learned by the first serves all."""
    if isinstance(members, Mapping | str) or not members:
        raise UserError(f"{where} is {members!r}; expected dicts, each as config.data: (dict(name=...), ...).")
    built: list[Any] = []
    for number, spec in enumerate(members):
        built.append(_build_one(spec, f"{where}[{number}]", getattr(built[0], "tokenizer", None) if built else None))
    return built


def _build_one(spec: Mapping[str, Any], where: str, tokenizer: Any = None) -> Any:
    from vfm_jax.data.sources import SOURCES  # whose entries these functions are

    if isinstance(spec, str | Sequence):
        raise UserError(f"{where} is {spec!r}; expected a dict as config.data: dict(name=...).")
    fields = dict(spec)
    takes_texts = "tokenizer" in keywords(lookup(SOURCES, fields.get("name"), f"{where}.name"))
    if takes_texts and tokenizer is not None:
        fields = {"tokenizer": tokenizer} | fields
    return build(SOURCES, fields, where)


def _check_alike(members: Sequence[Any], where: str) -> None:
    """Refuses members whose examples cannot stand in one batch."""
    questions: dict[str, Callable[[Any], Any]] = {
        "channels": lambda one: one.image_shape[2],
        "type of images": lambda one: _dtype(one).name,
        "fields": lambda one: {name: dtype for name, (_, dtype) in getattr(one, "fields", {}).items()},
        "classes of their targets": lambda one: getattr(one, "target_names", None),
        "length of texts": lambda one: getattr(one, "text_shape", (0, None))[1],
        "tokenizers": lambda one: getattr(one, "tokenizer", None),
    }
    for what, ask in questions.items():
        for number, one in enumerate(members):
            if ask(one) != ask(members[0]):
                raise UserError(
                    f"{where}[0] and {where}[{number}] have other {what}: {str(ask(members[0]))[:80]} and "
                    f"{str(ask(one))[:80]}. Members of one source must have the same."
                )


def _classes(
    members: Sequence[Any], merge_classes: bool, where: str
) -> tuple[tuple[str, ...] | None, list[np.ndarray | None]]:
    """Class names of all, and how each member's ids become theirs; None where a member has no classes."""
    names = [member.class_names for member in members]
    if any(one is None for one in names) or all(one == names[0] for one in names):
        unlabelled = any(one is None for one in names)
        return (None if unlabelled else names[0]), [None] * len(members)
    if not merge_classes:
        number = next(number for number, one in enumerate(names) if one != names[0])
        raise UserError(
            f"{where}[0] has the classes {_few(names[0])} and {where}[{number}] {_few(names[number])}. Set "
            "merge_classes=True to count classes of the same name as one, or give every member the same class_names."
        )
    merged = tuple(dict.fromkeys(name for one in names for name in one))
    ids = {name: number for number, name in enumerate(merged)}
    return merged, [np.array([ids[name] for name in one], np.int32) for one in names]


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} ({len(names)})"


def _composed(members: Sequence[Any], runs: Sequence[Run], where: str, merge_classes: bool = False) -> ComposedSource:
    _check_alike(members, where)
    names, label_maps = _classes(members, merge_classes, where)
    if sum(run.count for run in runs) == 0:
        raise UserError(f"{where}: no record is left.")
    return ComposedSource(members, [run for run in runs if run.count], label_maps, names)


def concat(members: tuple[Mapping[str, Any], ...], *, merge_classes: bool = False) -> ComposedSource:
    """The records of all members, one after the other.

    Args:
        members: dicts as config.data.
        merge_classes: classes of the same name are one; without it all members must have the same classes. Where a
            member has none, the whole has none.

    Raises:
        UserError: members whose examples are not alike; or as a member's own.
    """
    built = _built(members, "config.data.members")
    runs = [Run(number, None, len(one)) for number, one in enumerate(built)]
    return _composed(built, runs, "config.data.members", merge_classes)


def mixture(members: tuple[Mapping[str, Any], ...], *, merge_classes: bool = False) -> ComposedSource:
    """The records of all members, each member a share of the places.

    An epoch is as long as it must be for every record to come at least once: the member with the most records for
    its weight comes once, the others repeat.

    Args:
        members: dicts as config.data, each with `weight`: any number above 0; the shares are those of their sum.
        merge_classes: as for `concat`.

    Raises:
        UserError: no weight, members whose examples are not alike; or as a member's own.
    """
    where = "config.data.members"
    specs = [dict(spec) for spec in members] if not isinstance(members, Mapping) else members
    if isinstance(specs, Mapping) or not specs:
        raise UserError(f"{where} is {members!r}; expected dicts, each as config.data with a weight.")
    weights = []
    for number, spec in enumerate(specs):
        weight = spec.pop("weight", None)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise UserError(f"{where}[{number}].weight is {weight!r}; expected a number above 0.")
        weights.append(weight)
    built = _built(specs, where)
    shares = [weight / sum(weights) for weight in weights]
    length = max(len(one) / share for one, share in zip(built, shares, strict=True))
    if length > 2**31:
        raise UserError(f"{where}: these weights make an epoch of {length:.2g} records; expected fewer than 2**31.")
    runs = [
        Run(number, None, max(len(one), round(length * share)))
        for number, (one, share) in enumerate(zip(built, shares, strict=True))
    ]
    return _composed(built, runs, where, merge_classes)


def repeat(source: Mapping[str, Any], *, times: int) -> ComposedSource:
    """The records of a source several times in an epoch.

    Args:
        source: a dict as config.data.
        times: how often each record comes.

    Raises:
        UserError: `times` is no whole number of one or more; or as the source's own.
    """
    if isinstance(times, bool) or not isinstance(times, int) or times < 1:
        raise UserError(f"config.data.times is {times!r}; expected a whole number, one or more.")
    built = _build_one(source, "config.data.source")
    return _composed([built], [Run(0, None, len(built) * times)], "config.data.source")


def balanced(source: Mapping[str, Any]) -> ComposedSource:
    """The records of a source, every class as often as the largest: those of the others repeat.

    Args:
        source: a dict as config.data.

    Raises:
        UserError: there are no classes; or as the source's own.
    """
    built = _build_one(source, "config.data.source")
    classes = _by_class(labels_of(built))
    most = max(map(len, classes))
    return _composed([built], [Run(0, rows, most) for rows in classes], "config.data.source")


def subset(
    source: Mapping[str, Any],
    *,
    indices: str | tuple[int, ...] | None = None,
    per_class: int | None = None,
    ratio: float | None = None,
    seed: int = 0,
) -> ComposedSource:
    """Some of the records of a source, in its order: those listed, so many of each class, or a share.

    With one seed smaller draws lie inside larger ones. A share of a source with classes is drawn in each of them, and
    none is left without a record: `ratio=0.01` of ImageNet is 1 % of the labels.

    Args:
        source: a dict as config.data.
        indices: places in the source, or a text file of them, one a line.
        per_class: records of each class; all where a class has fewer.
        ratio: share of the records, in (0, 1].
        seed: of the draw.

    Raises:
        UserError: not one of `indices`, `per_class` and `ratio`, or a value that cannot be; or as the source's own.
    """
    given = [name for name, one in dict(indices=indices, per_class=per_class, ratio=ratio).items() if one is not None]
    if len(given) != 1:
        raise UserError(
            f"config.data: a subset is by indices, per_class or ratio; {' and '.join(given) or 'none'} is given."
        )
    if per_class is not None and (isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1):
        raise UserError(f"config.data.per_class is {per_class!r}; expected a whole number, one or more.")
    if ratio is not None and not (isinstance(ratio, int | float) and 0 < ratio <= 1):
        raise UserError(f"config.data.ratio is {ratio!r}; expected a share in (0, 1], such as 0.01.")
    built = _build_one(source, "config.data.source")
    if indices is not None:
        rows = _listed(indices, len(built))
    else:
        labelled = per_class is not None or built.class_names is not None
        classes = _by_class(labels_of(built)) if labelled else [np.arange(len(built))]
        # The legacy generator, whose numbers never change from one version of numpy to another.
        random = np.random.RandomState(seed)
        drawn = []
        for members in classes:
            number = per_class if per_class is not None else max(1, round(len(members) * (ratio or 0)))
            drawn.append(members[random.permutation(len(members))[:number]])
        rows = np.sort(np.concatenate(drawn))
    return _composed([built], [Run(0, rows, len(rows))], "config.data.source")


def _by_class(labels: np.ndarray) -> list[np.ndarray]:
    """The records of each class that has any, ascending; those without a class are in none."""
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    groups = np.split(order, starts[1:])
    return [group for name, group in zip(classes, groups, strict=True) if name >= 0]


def _listed(indices: str | Sequence[int], length: int) -> np.ndarray:
    described = "config.data.indices"
    if isinstance(indices, str):
        file = existing(indices, described)
        described = os.fspath(file)
        try:
            indices = [int(word) for word in file.read_text().split()]
        except ValueError as error:
            raise UserError(f"Cannot read {file}: {error}. Expected places in the source, one a line.") from error
    rows = np.array(list(indices), np.int64)
    if not rows.size or rows.min() < 0 or rows.max() >= length or len(np.unique(rows)) < len(rows):
        found = f"{len(rows)} places from {rows.min()} to {rows.max()}" if rows.size else "none"
        raise UserError(f"{described} has {found}; expected different places from 0 to {length - 1}.")
    return rows
