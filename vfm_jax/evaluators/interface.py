"""What an evaluator is, and running several of them on one set of weights.

Evaluators know no config, data set or objective: they are handed what the network predicts, and batches.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import Int

from vfm_jax.core.errors import UserError
from vfm_jax.core.types import Batch


class Extracted(NamedTuple):
    """The frozen representation of one split, on the host, in the order of the records.

    Attributes:
        features: float32, one row per valid example.
        labels: class of each row; -1 where there is none.
        index: record number of each row in its source.
    """

    features: np.ndarray
    labels: np.ndarray
    index: np.ndarray


Predict = Mapping[str, Callable[[Batch], Any]]  # what the objective predicts, bound to its variables, jitted
Batches = Mapping[str, Callable[[], Iterable[Batch]]]  # split -> a fresh pass: image, label, valid, index on devices
Run = Callable[..., dict[str, float]]
Item = TypeVar("Item")


class Kept(Protocol):
    """Features of one split and one pooling that outlive the process; `feature_cache.KeptFeatures`.

    Attributes:
        found: the rows that are there.
    """

    found: Extracted

    def missing(self) -> Iterable[Batch]:
        """Batches that hold all other records, and none of those."""
        ...

    def keep(self, rows: Extracted) -> None:
        """Takes in features of `missing`."""
        ...


class Cache(dict[tuple[str, str], Extracted]):
    """(pool, split) -> features, for one set of weights.

    Attributes:
        kept: (pool, split) -> where an encoder's features lie from before and are kept; None where nowhere.
    """

    def __init__(self, kept: Callable[[str, str], Kept] | None = None):
        super().__init__()
        self.kept = kept


class Evaluator(NamedTuple):
    """A way to judge a network.

    Attributes:
        run: `(predict, batches, cache=None)` -> named figures; accuracies are in [0, 1]. With a cache, features
            that an evaluator before it has extracted are used again: give the same one only for the same weights.
        needs: the entries of `predict` it asks for.
        splits: the entries of `batches` it reads.
    """

    run: Run
    needs: tuple[str, ...]
    splits: tuple[str, ...] = ("train", "test")


def check_evaluator(evaluator: Evaluator, name: str, predictions: Iterable[str], splits: Iterable[str]) -> None:
    """Refuses an evaluator that asks for what this network or this data does not offer; costs nothing.

    Args:
        evaluator: to be run later.
        name: of its config dict, for the message.
        predictions: names the objective predicts.
        splits: names of the splits there are.

    Raises:
        UserError: naming what is missing and what there is.
    """
    for kind, asked, offered in (
        ("the prediction", evaluator.needs, sorted(predictions)),
        ("the split", evaluator.splits, sorted(splits)),
    ):
        for missing in (item for item in asked if item not in offered):
            owner = "this objective" if kind == "the prediction" else "the data"
            raise UserError(
                f"The evaluator {name!r} needs {kind} {missing!r}; {owner} offers {', '.join(offered) or 'none'}.\n"
                f"Take config.evals.{name} out of the recipe, or add what it needs."
            )


def evaluate(
    evaluators: Mapping[str, Evaluator], predict: Predict, batches: Batches, cache: Cache | None = None
) -> dict[str, float]:
    """Runs every evaluator on one set of weights; figures are named `evaluator/figure`.

    The encoder runs once per split and pooling, however many evaluators ask for it.

    Args:
        evaluators: by name.
        predict: what the network predicts.
        batches: passes over the splits.
        cache: of these weights; a fresh one by default.

    Raises:
        UserError: an evaluator lacks a prediction, a split or labels.
    """
    for name, evaluator in evaluators.items():
        check_evaluator(evaluator, name, predict, batches)
    cache = Cache() if cache is None else cache
    figures: dict[str, float] = {}
    for name, evaluator in evaluators.items():
        try:
            found = evaluator.run(predict, batches, cache)
        except Exception as error:
            error.add_note(f"This happened in the evaluator {name!r} (config.evals.{name}).")
            raise
        figures.update({f"{name}/{figure}": value for figure, value in found.items()})
    return figures


def one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """The items, each once the next has been asked for: the device works ahead of the host by one batch, not more."""
    items = iter(items)
    for before in items:
        for item in items:
            yield before
            before = item
        yield before


def empty_split(split: str) -> UserError:
    """The error to raise for a split without a valid image."""
    return UserError(f"The {split!r} split has no images to evaluate. Look at config.eval_data.")


def check_labels(labels: Int[np.ndarray, " n"], index: Int[np.ndarray, " n"], split: str, who: str) -> None:
    """Refuses unlabelled examples.

    Raises:
        UserError: naming the first record without a label.
    """
    unlabelled = np.flatnonzero(labels < 0)
    if unlabelled.size:
        raise UserError(
            f"{who} needs labels; the {split!r} split has none for record {index[unlabelled[0]]} (label -1).\n"
            "Give the source labels (one folder per class, or an array of labels), or take the evaluator out."
        )
