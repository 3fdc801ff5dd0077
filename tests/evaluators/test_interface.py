"""Running evaluators on one set of weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.sharding import batch_sharding, make_mesh, to_host
from vfm_jax.evaluators import EVALUATORS, Evaluator, evaluate
from vfm_jax.evaluators.interface import check_evaluator, one_behind


def test_the_encoder_runs_once_for_all_evaluators_that_pool_alike(toy, blobs):
    predict, batches, calls = toy({"train": blobs(21, seed=1), "test": blobs(9, seed=2)})
    figures = evaluate({"near": EVALUATORS["knn"](num_neighbors=3), "far": EVALUATORS["knn"]()}, predict, batches)
    assert calls == [4] * (6 + 3)
    assert {"near/accuracy", "far/accuracy"} <= set(figures)
    evaluate({"c": EVALUATORS["knn"](pool="class")}, predict, batches)
    assert calls == [4] * (6 + 3) * 2


@pytest.mark.parametrize("name", ["knn", "linear_probe"])
def test_a_missing_prediction_is_refused_before_anything_runs_naming_what_there_is(name):
    def never():
        raise AssertionError("nothing may run")

    predict = {"reconstruction": never, "attention": never}
    with pytest.raises(
        UserError, match=r"'near' needs .*'features'; this objective offers attention, reconstruction"
    ):
        evaluate({"near": EVALUATORS[name]()}, predict, {"train": never, "test": never})


def test_raw_pixels_need_no_prediction():
    assert check_evaluator(EVALUATORS["knn"](pool="pixels"), "pixels", (), ("train", "test")) is None


def test_a_missing_split_is_refused():
    with pytest.raises(UserError, match="'near' needs the split 'test'; the data offers train"):
        check_evaluator(EVALUATORS["knn"](), "near", ("features",), ("train",))


def test_an_error_carries_the_name_of_its_evaluator():
    def run(predict, batches, cache):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as caught:
        evaluate({"mine": Evaluator(run, needs=(), splits=())}, {}, {})
    assert "config.evals.mine" in caught.value.__notes__[0]


def test_an_unknown_pooling_is_refused_when_the_evaluator_is_built():
    for name in ("knn", "linear_probe"):
        with pytest.raises(UserError, match="mean_patch"):
            EVALUATORS[name](pool="mean")


def test_a_sharded_array_arrives_whole():
    array = np.arange(16, dtype=np.float32).reshape(8, 2)
    sharded = jax.device_put(jnp.asarray(array), batch_sharding(make_mesh(data=4, fsdp=2)))
    np.testing.assert_array_equal(to_host(sharded), array)


@pytest.mark.parametrize("num", [0, 1, 5])
def test_one_item_is_made_ahead_of_the_one_that_is_read_and_none_is_lost(num):
    made, read = [], []
    for item in one_behind(made.append(i) or i for i in range(num)):
        read.append(item)
        assert len(made) == min(num, len(read) + 1)
    assert read == list(range(num))
