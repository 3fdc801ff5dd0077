"""What is watched of any method: only in steps that are logged, and equal to its definition."""

import jax
import jax.numpy as jnp
import numpy as np

from vfm_jax.metrics.representation import alignment, effective_rank
from vfm_jax.objectives.interface import Objective, carry_nothing
from vfm_jax.objectives.observe import observe_embedding, observe_shares


def test_the_embedding_is_looked_at_only_when_due():
    x = jax.random.normal(jax.random.key(0), (12, 2, 5), jnp.float32)
    look = jax.jit(observe_embedding)
    seen, unseen = look(x, True), look(x, False)
    assert set(seen) == {f"representation/{name}" for name in ("std", "effective_rank", "uniformity", "alignment")}
    np.testing.assert_allclose(seen["representation/effective_rank"], effective_rank(x[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(seen["representation/alignment"], alignment(x), rtol=1e-5)
    assert all(np.isnan(value) for value in unseen.values())
    assert "representation/alignment" not in look(x[:, :1], True)


def test_shares_are_the_norms_of_each_terms_gradient_to_the_outputs():
    def criterion(params, extra, outputs, step):
        measured = {"loss/linear": 3 * outputs["a"].sum(), "loss/square": (outputs["a"] ** 2).sum() / 2}
        loss = measured["loss/linear"] + measured["loss/square"]
        return loss, (extra, {"loss": loss, **measured})

    objective = Objective(None, None, criterion, carry_nothing, {}, False, lambda outputs: outputs["a"])
    outputs = {"a": jnp.array([[1.0, 2.0], [2.0, 0.0]]), "index": jnp.arange(2)}
    shares = observe_shares(objective, {}, {}, outputs, jnp.int32(0), True)
    # |3, 3, 3, 3| = 6 and |1, 2, 2, 0| = 3
    assert set(shares) == {"gradient_share/linear", "gradient_share/square"}
    np.testing.assert_allclose(shares["gradient_share/linear"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(shares["gradient_share/square"], 1 / 3, rtol=1e-6)
    assert np.isnan(observe_shares(objective, {}, {}, outputs, jnp.int32(0), False)["gradient_share/linear"])
