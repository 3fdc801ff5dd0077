"""Exact weighted k-NN on one CPU core: vfm_jax beside the exact search of scikit-learn and, where installed, faiss.

    python scripts/bench/knn.py      (50,000 x 384 train rows, k = 20, cosine, 5,000 queries)

Ours is the whole evaluator, from features on the host to ranked classes; the peers only search, on rows already
normalised. `accuracy` is that of the weighted votes, `ready` shows it for each.
"""

import argparse
import importlib.util
import os
import pathlib
import sys

CORE = os.environ.get("BENCH_CORE")
if CORE:  # a worker: before any library counts the cores
    os.sched_setaffinity(0, {int(CORE)})

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
import interleave  # noqa: E402
import numpy as np  # noqa: E402

NUM_TRAIN, NUM_TEST, WIDTH, NUM_CLASSES, K, TEMPERATURE = 50_000, 5_000, 384, 100, 20, 0.07


def work(name: str) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(NUM_CLASSES, WIDTH))
    labels = rng.integers(0, NUM_CLASSES, NUM_TRAIN + NUM_TEST).astype(np.int32)
    rows = (0.3 * centres[labels] + rng.normal(size=(len(labels), WIDTH))).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    train, test, known, right = rows[:NUM_TRAIN], rows[NUM_TRAIN:], labels[:NUM_TRAIN], labels[NUM_TRAIN:]

    if name == "vfm_jax":
        from vfm_jax.evaluators.knn import rank_classes

        fields = dict(num_neighbors=(K,), temperature=TEMPERATURE, num_classes=NUM_CLASSES)
        turn = lambda: rank_classes(train, known, test, **fields)  # noqa: E731
        guess = turn()[0, :, 0]
    else:
        if name == "faiss":
            import faiss

            index = faiss.IndexFlatIP(WIDTH)
            index.add(train)
            turn = lambda: index.search(test, K)  # noqa: E731
        else:
            from sklearn.neighbors import NearestNeighbors

            model = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(train)
            turn = lambda: model.kneighbors(test)  # noqa: E731
        which = turn()[1]
        similarity = np.einsum("td,tkd->tk", test, train[which])
        votes = np.zeros((NUM_TEST, NUM_CLASSES))
        np.add.at(votes, (np.arange(NUM_TEST)[:, None], known[which]), np.exp(similarity / TEMPERATURE))
        guess = votes.argmax(axis=1)
    interleave.serve({"accuracy": float(np.mean(guess == right))}, turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("bench_logs"))
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker)
    names = ["scikit-learn", *(["faiss"] if importlib.util.find_spec("faiss") else []), "vfm_jax"]
    environment = {"BENCH_CORE": str(args.core), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    specs = [interleave.Spec(name, [sys.executable, __file__, "--worker", name], environment) for name in names]
    interleave.compare(specs, rounds=args.rounds, items=NUM_TEST, base="scikit-learn", logs=args.logs)


if __name__ == "__main__":
    main()
