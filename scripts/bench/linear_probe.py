"""The linear probe's L-BFGS on one CPU core beside scikit-learn's, equally many iterations; `ready` shows the losses.

python scripts/bench/linear_probe.py      (50,000 x 384, 100 classes, l2 1e-4, 30 iterations)
"""

import argparse
import os
import pathlib
import sys
import warnings

CORE = os.environ.get("BENCH_CORE")
if CORE:  # a worker: before any library counts the cores
    os.sched_setaffinity(0, {int(CORE)})

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
import interleave  # noqa: E402
import numpy as np  # noqa: E402

NUM, WIDTH, NUM_CLASSES, L2, ITERATIONS = 50_000, 384, 100, 1e-4, 30


def work(name: str) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(NUM_CLASSES, WIDTH))
    labels = rng.integers(0, NUM_CLASSES, NUM).astype(np.int32)
    rows = (0.15 * centres[labels] + rng.normal(size=(NUM, WIDTH))).astype(np.float32)
    x = np.concatenate([rows, np.ones((NUM, 1), np.float32)], axis=1)

    if name == "vfm_jax":
        import jax
        import jax.numpy as jnp

        from vfm_jax.evaluators.linear_probe import minimize_logistic

        def turn():
            start = jnp.zeros((WIDTH + 1, NUM_CLASSES))
            arrays = (jnp.asarray(x), jnp.asarray(labels), jnp.ones(NUM), jnp.float32(L2), start)
            return jax.device_get(minimize_logistic(*arrays, NUM_CLASSES, max_iterations=ITERATIONS, tolerance=0.0))
    else:
        from sklearn.linear_model import LogisticRegression

        warnings.filterwarnings("ignore", module="sklearn")  # that it has not converged

        def turn():
            model = LogisticRegression(C=1 / (L2 * NUM), max_iter=ITERATIONS, tol=0.0).fit(rows, labels)
            return np.concatenate([model.coef_.T, model.intercept_[None]]), model.n_iter_[0]

    matrix, num_iterations = turn()
    logits = x @ matrix
    largest = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - largest).sum(axis=1)) + largest[:, 0]
    loss = (log_sum - logits[np.arange(NUM), labels]).mean() + 0.5 * L2 * np.square(matrix[:-1]).sum()
    interleave.serve({"loss": round(float(loss), 5), "iterations": int(num_iterations)}, turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("bench_logs"))
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker)
    environment = {"BENCH_CORE": str(args.core), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    specs = [
        interleave.Spec(name, [sys.executable, __file__, "--worker", name], environment)
        for name in ("scikit-learn", "vfm_jax")
    ]
    interleave.compare(specs, rounds=args.rounds, items=ITERATIONS, base="scikit-learn", logs=args.logs)


if __name__ == "__main__":
    main()
