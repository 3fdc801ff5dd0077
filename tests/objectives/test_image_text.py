"""CLIP and SigLIP: what is particular to learning from pairs; the losses are held to the authors' in tests/losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.objectives.case import batch_of, tiny_vit
from tests.objectives.cases_image_text import CASES, text_encoder
from vfm_jax.core.errors import UserError
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.train.state import init_state
from vfm_jax.train.step import make_step


@pytest.mark.parametrize(("start", "kept"), [(99.9, 100.0), (1.0, 1.0)])
def test_the_scale_of_clip_stays_between_one_and_its_limit(start, kept):
    """At a rate that would throw it far out, to either side."""
    objective = OBJECTIVES["clip"](tiny_vit(projection=12), text_encoder(), initial_scale=start)
    batch = batch_of(CASES["clip"])
    state = init_state(objective, optax.sgd(0.0), batch, jax.random.key(0), with_ema=False)
    away = optax.stateless(
        lambda updates, params: jax.tree.map(lambda p: jnp.full_like(p, np.sign(start - 50)), updates)
    )
    step = make_step(objective, away, lambda key, batch: batch, seed=0, schedule=lambda s: jnp.float32(1.0))
    after, measured = jax.jit(step)(state.replace(opt_state=away.init(state.params)), batch)
    np.testing.assert_allclose(jnp.exp(after.params["logit_scale"]), kept, rtol=1e-5)
    np.testing.assert_allclose(measured["temperature"], 1 / start, rtol=1e-5)


def test_the_ring_is_the_plain_loss_in_training_too():
    batch = batch_of(CASES["siglip"])
    found = []
    for name in ("siglip", "siglip blocks"):
        objective = CASES[name].make()
        variables = objective.init(jax.random.key(0), batch)

        def loss(params, objective=objective, variables=variables):
            outputs, extra = objective.forward(params, variables.extra, batch, jax.random.key(1), 0)
            return objective.criterion(params, extra, outputs, 0)[0]

        found.append(jax.jit(jax.value_and_grad(loss))(variables.params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


def test_features_of_texts_can_be_asked_for():
    objective, batch = CASES["clip"].make(), batch_of(CASES["clip"])
    variables = objective.init(jax.random.key(0), batch)
    features = objective.predict["text_features"](variables, {"text": batch["text"]})
    assert features.pooled.shape == (8, 12)


@pytest.mark.parametrize("method", ["clip", "siglip"])
def test_data_without_texts_and_towers_of_other_widths_are_refused(method):
    batch = batch_of(CASES["clip"])
    objective = OBJECTIVES[method](tiny_vit(projection=9), text_encoder())
    with pytest.raises(UserError, match=r"text_encoder\.projection=9"):
        objective.init(jax.random.key(0), batch)
    with pytest.raises(UserError, match='name="pairs"'):
        objective.init(jax.random.key(0), {k: v for k, v in batch.items() if k != "text"})


def test_blocks_that_do_not_divide_the_batch_are_refused():
    batch = batch_of(CASES["siglip"])
    objective = OBJECTIVES["siglip"](tiny_vit(projection=12), text_encoder(), num_blocks=3)
    variables = objective.init(jax.random.key(0), batch)
    outputs, extra = objective.forward(variables.params, variables.extra, batch, jax.random.key(1), 0)
    with pytest.raises(UserError, match="num_blocks is 3"):
        objective.criterion(variables.params, extra, outputs, 0)
