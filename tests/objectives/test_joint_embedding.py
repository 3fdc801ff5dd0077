"""Barlow Twins, VICReg, LeJEPA, SupCon and sigmoid pairs: what is particular to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.case import Case, batch_of, projector, tiny_vit
from vfm_jax.core.errors import UserError
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES

PAIR = {"image": (2, 8, 8, 3)}


def _built(name, head, views=PAIR, **fields):
    objective = OBJECTIVES[name](tiny_vit(), head, **fields)
    batch = batch_of(Case(lambda: objective, views))
    variables = jax.jit(objective.init)(jax.random.key(0), batch)
    outputs, _ = jax.jit(objective.forward)(*variables, batch, jax.random.key(1), 0)

    def criterion(outputs=outputs, step=0, params=variables.params):
        return jax.jit(objective.criterion)(params, variables.extra, outputs, step)

    return objective, outputs, criterion


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_each_view_is_standardised_by_itself(name):
    """Another scale of the second view's features leaves nothing behind under batch norm of its own."""
    _, outputs, criterion = _built(name, projector(last_norm="none"))
    loss, (_, before) = criterion(outputs)
    scaled, (_, after) = criterion(outputs.at[:, 1].multiply(30.0))
    np.testing.assert_allclose(scaled, loss, rtol=2e-2)  # the ε of batch norm
    np.testing.assert_allclose(after["loss/invariance"], before["loss/invariance"], rtol=2e-2)


def test_slices_are_drawn_anew_in_each_step_and_again_the_same_in_the_same_step():
    _, _, criterion = _built(
        "lejepa", projector(last_norm="none"), {"global": (2, 8, 8, 3), "local": (3, 4, 4, 3)}, num_slices=4
    )
    one, again, other = (float(criterion(step=step)[1][1]["loss/sigreg"]) for step in (3, 3, 4))
    assert one == again != other


def test_views_are_predicted_from_the_mean_of_the_global_ones_alone():
    head = MODELS["projection_head"](out_dim=16, num_layers=1, last_norm="none")
    _, outputs, criterion = _built(
        "lejepa", head, {"global": (2, 8, 8, 3), "local": (3, 4, 4, 3)}, regularizer_weight=0.0, num_slices=4
    )
    params = {"encoder": {}, "projector": {"kernel_0": jnp.eye(16, dtype=jnp.float32)}}
    views = np.concatenate([outputs.whole, outputs.local], axis=1)
    expected = np.mean(np.square(views - views[:, :2].mean(axis=1, keepdims=True)))
    np.testing.assert_allclose(criterion(params=params)[0], expected, rtol=1e-4)
    alone = criterion(outputs._replace(local=None), params=params)[0]
    np.testing.assert_allclose(alone, np.mean(np.var(views[:, :2], axis=1)), rtol=1e-4)


@pytest.mark.parametrize(("name", "fields"), [("supcon", {}), ("sigclr", {"positives": "label"})])
def test_images_without_a_label_are_pairs_of_their_own(name, fields):
    _, outputs, criterion = _built(name, projector(last_norm="none"), **fields)
    b = outputs.label.shape[0]
    labelled = criterion(outputs)[0]
    unlabelled = criterion(outputs._replace(label=jnp.full(b, -1)))[0]
    distinct = criterion(outputs._replace(label=jnp.arange(b)))[0]
    assert unlabelled == distinct != labelled


def test_sigmoid_pairs_by_view_do_not_look_at_labels_and_learn_what_they_are_told_to():
    objective, outputs, criterion = _built(
        "sigclr", projector(), learn_bias=False, initial_bias=-3.0, temperature=0.5
    )
    assert criterion(outputs)[0] == criterion(outputs._replace(label=outputs.label * 0))[0]
    assert criterion()[1][1]["logit_bias"] == -3
    batch = batch_of(Case(lambda: objective, PAIR))
    assert set(jax.eval_shape(objective.init, jax.random.key(0), batch).params) == {"encoder", "projector"}
    with pytest.raises(UserError, match=r"'class' in config.objective.positives.* Known: label, view"):
        OBJECTIVES["sigclr"](tiny_vit(), projector(), positives="class")


def test_supcon_on_unit_features_does_not_see_their_length():
    head = MODELS["projection_head"](out_dim=10, num_layers=1, last_norm="none", use_bias=True)
    for normalize in (True, False):
        _, outputs, criterion = _built("supcon", head, normalize_pooled=normalize)
        longer = criterion(outputs._replace(views=outputs.views * jnp.linspace(1.0, 9.0, 8)[:, None, None]))[0]
        assert np.isclose(longer, criterion()[0], rtol=1e-5) or not normalize
