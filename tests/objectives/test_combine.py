"""A weighted sum of methods: weights, starts, shared networks, one teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.objectives.combine import Member, combine
from vfm_jax.objectives.interface import Objective, Variables
from vfm_jax.objectives.teacher import move_teacher, start_teacher


def _method(factor, momentum):
    """Learns to say `factor`; its teacher follows, and it counts its steps."""

    def init(key, batch):
        params = {"encoder": {"w": jnp.float32(factor)}, "head": {"w": jnp.float32(10 * factor)}}
        return Variables(params, {"encoder": {}, "teacher": start_teacher(params), "seen": jnp.int32(0)})

    def forward(params, extra, batch, key, step):
        return batch["image"] * params["encoder"]["w"], {**extra, "seen": extra["seen"] + 1}

    def criterion(params, extra, outputs, step):
        loss = jnp.mean(outputs) + params["head"]["w"]
        return loss, (extra, {"loss": loss})

    def after_update(params, extra, step):
        return {**extra, "teacher": move_teacher(extra["teacher"], params, momentum)}

    predict = {"features": lambda variables, batch: variables.result.params["encoder"]["w"]}
    return Objective(init, forward, criterion, after_update, predict, True, lambda outputs: outputs[:, None, None])


BATCH = {"image": jnp.array([1.0, 3.0]), "other": jnp.array([10.0, 30.0])}


@pytest.fixture
def both():
    second = Member(
        _method(2.0, 0.5), "b", weight=3.0, start_steps=4, fields={"image": "other"}, networks={"head": "second_head"}
    )
    return combine(members=(Member(_method(1.0, 0.75), "a"), second))


def test_shared_networks_are_one_and_others_keep_their_own_names(both):
    params, extra = both.init(jax.random.key(0), BATCH)
    assert {name: float(net["w"]) for name, net in params.items()} == {"encoder": 1, "head": 10, "second_head": 20}
    assert extra["a"] == {"seen": 0} and extra["b"] == {"seen": 0}
    assert float(extra["teacher"]["encoder"]["w"]) == 1


@pytest.mark.parametrize(("step", "expected"), [(3, 2 + 10), (4, 2 + 10 + 3 * (20 + 20))])
def test_each_member_reads_its_own_fields_with_its_own_weight_from_its_start(both, step, expected):
    params, extra = both.init(jax.random.key(0), BATCH)
    outputs, extra = both.forward(params, extra, BATCH, jax.random.key(1), step)
    loss, (extra, measured) = both.criterion(params, extra, outputs, step)
    assert loss == expected == measured["loss/a"] + measured["loss/b"]
    assert measured["b/loss"] == 40
    assert extra["a"]["seen"] == 1 and extra["b"]["seen"] == 1


def test_the_one_teacher_moves_once_by_the_first_members_momentum(both):
    params, extra = both.init(jax.random.key(0), BATCH)
    moved = jax.tree.map(lambda leaf: leaf + 4, params)
    extra = both.after_update(moved, extra, 0)
    np.testing.assert_allclose(extra["teacher"]["encoder"]["w"], 0.75 * 1 + 0.25 * 5)
    assert both.predict["features"](Variables(moved, extra), BATCH) == 2


def test_labels_and_fields_that_cannot_be_are_refused(both):
    with pytest.raises(UserError, match="give each a `label` of its own"):
        combine(members=(Member(_method(1.0, 0.5), "a"), Member(_method(1.0, 0.5), "a")))
    params, extra = both.init(jax.random.key(0), BATCH)
    with pytest.raises(UserError, match=r"reads 'other'; the batch has image\. Set config\.views\.other"):
        both.forward(params, extra, {"image": BATCH["image"]}, jax.random.key(0), 0)
