"""What a representation is worth: k-NN, a linear probe, classification, retrieval of texts.

A new evaluator is one file and one line of this table.
"""

from vfm_jax.evaluators.classification import classification
from vfm_jax.evaluators.interface import Evaluator, evaluate
from vfm_jax.evaluators.knn import knn
from vfm_jax.evaluators.linear_probe import linear_probe
from vfm_jax.evaluators.retrieval import retrieval

EVALUATORS = {"classification": classification, "knn": knn, "linear_probe": linear_probe, "retrieval": retrieval}

__all__ = ["EVALUATORS", "Evaluator", "evaluate"]
