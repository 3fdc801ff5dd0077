"""Evaluators run on a state, its baselines, and the arrays for the report's pictures."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vfm_jax.core.keys import key_for
from vfm_jax.core.sharding import replicated, traced_over
from vfm_jax.core.types import Batch
from vfm_jax.experiment import Experiment, Ledger, Variables

PICTURES = 8  # images per row of the report
QUERIES, NEIGHBORS = 6, 5
EMBEDDED = 600  # points of the map of embeddings
SEARCHED_BYTES = 2**28  # of training images held at once, to show the nearest: all digits, 1,700 photographs of 224


class Judge:
    """Evaluates any variables of one experiment; what it compiles is kept from one evaluation to the next."""

    def __init__(self, experiment: Experiment, ledger: Ledger):
        """Takes what to judge, and where records that cannot be used are written down."""
        self._experiment, self._ledger = experiment, ledger
        self._predict = {
            name: jax.jit(traced_over(experiment.mesh, function))
            for name, function in experiment.objective.predict.items()
        }
        views = experiment.eval_views
        assert views is not None  # an experiment with evaluators has them
        self._views = jax.jit(lambda batch: views(key_for(experiment.seed, 0, "eval_views"), batch))

    def evaluate(self, variables: Variables, names: Iterable[str]) -> dict[str, float]:
        """Figures of the named evaluators, as `evaluator/figure`."""
        chosen = {name: self._experiment.evaluations[name].evaluator for name in names}
        kept = self._kept(variables)
        return self._experiment.run_evaluators(chosen, self._bind(variables), self._passes(), kept)

    def baselines(self, fresh: Callable[[], Variables]) -> dict[str, dict[str, float]]:
        """Figures of what the result is compared with.

        Args:
            fresh: gives the variables at random initialisation.
        """
        figures = {}
        for name, evaluators in self._experiment.baselines.items():
            predict, kept = {}, None
            if name == "random_init":
                variables = fresh()
                predict, kept = self._bind(variables), self._kept(variables)
            figures[name] = self._experiment.run_evaluators(evaluators, predict, self._passes(), kept)
        return figures

    def pictures(self, variables: Variables) -> dict[str, np.ndarray]:
        """Arrays for the page: views, reconstructions, attention, patch tokens, embeddings, neighbours."""
        experiment, predict = self._experiment, self._bind(variables)
        shown = self._show(next(self._pass("test", PICTURES)), predict)
        searched = SEARCHED_BYTES // int(np.prod(shown["images"].shape[1:]))
        test, train = self._embed("test", EMBEDDED, predict), self._embed("train", searched, predict)
        shown |= {"embedding/features": test["features"]}
        near = _cosine(test["features"][:QUERIES], train["features"]).argsort(axis=1)[:, ::-1][:, :NEIGHBORS]
        shown |= {"neighbors/query": test["image"][:QUERIES], "neighbors/images": train["image"][near]}
        if (test["label"] >= 0).all() and (train["label"] >= 0).all():
            shown |= {"embedding/labels": test["label"], "neighbors/query_label": test["label"][:QUERIES]}
            shown |= {"neighbors/labels": train["label"][near]}
        names = experiment.eval_sources["test"].class_names
        return shown | ({"class_names": np.array(names)} if names else {})

    def _bind(self, variables: Variables) -> dict[str, Callable[[Batch], Any]]:
        return {
            name: lambda batch, function=function: function(variables, batch)
            for name, function in self._predict.items()
        }

    def _kept(self, variables: Variables) -> Any:
        return self._experiment.kept_features(variables, self._predict, self._views, self._ledger)

    def _passes(self) -> Mapping[str, Callable[[], Iterator[Batch]]]:
        return {split: lambda split=split: self._pass(split) for split in self._experiment.eval_sources}

    def _pass(self, split: str, limit: int | None = None) -> Iterator[Batch]:
        return map(self._views, self._experiment.eval_batches(split, limit, self._ledger))

    def _show(self, batch: Batch, predict: Mapping[str, Callable[[Batch], Any]]) -> dict[str, np.ndarray]:
        rows = np.flatnonzero(self._host(batch["valid"]))[:PICTURES]  # without fillers and bad records
        images = self._experiment.denormalize(self._host(batch["image"])[rows])
        shown = {"images": images}
        if "reconstruction" in predict:
            made = {name: self._host(value)[rows] for name, value in predict["reconstruction"](batch).items()}
            original, painted = (self._experiment.denormalize(made[name]) for name in ("original", "reconstructed"))
            shown |= {"reconstruction/original": original, "reconstruction/reconstructed": painted}
            shown["reconstruction/masked"] = np.where(made["hidden"] > 0, np.float32(0.5), original)
        if "attention" in predict:
            maps = self._host(predict["attention"](batch))[rows]
            shown |= {"attention/image": images, "attention/maps": maps}
        features = predict["features"](batch)
        tokens = self._host(features.patch_tokens)[rows]
        return shown | {
            "patches/image": images,
            "patches/tokens": tokens.reshape(len(tokens), *features.grid, -1),
        }

    def _embed(self, split: str, limit: int, predict: Mapping[str, Callable]) -> dict[str, np.ndarray]:
        rows: dict[str, list[np.ndarray]] = {"features": [], "image": [], "label": []}
        for batch in self._pass(split, limit):
            valid = self._host(batch["valid"])
            rows["features"].append(self._host(predict["features"](batch).pooled)[valid])
            image = self._experiment.denormalize(self._host(batch["image"])[valid])
            rows["image"].append(np.round(255 * image).astype(np.uint8))
            rows["label"].append(self._host(batch["label"])[valid])
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def _host(self, array: jax.Array) -> np.ndarray:
        return np.asarray(jax.device_put(array, replicated(self._experiment.mesh)))


def _cosine(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    query, rows = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (query, rows))
    return query @ rows.T
