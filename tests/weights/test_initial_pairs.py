"""A two-tower file as the start of an image-text method: both towers, and the temperature between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.tables import build
from vfm_jax.core.trees import named_leaves
from vfm_jax.models import MODELS
from vfm_jax.objectives import OBJECTIVES
from vfm_jax.weights.initial import InitialWeights


@pytest.mark.parametrize("times", [1, 2])
def test_clip_goes_on_from_both_towers_of_a_file(golden_directory, times):
    """Also at twice the pixels: its positions are resampled, and nothing else is fresh."""
    path = str(golden_directory / "models" / "hf_clip")
    start = InitialWeights(weights=path, head="keep")
    networks = start.networks({"encoder": {"name": "pretrained"}, "text_encoder": {"name": "pretrained"}})
    objective = OBJECTIVES["clip"](*(build(MODELS, spec, role) for role, spec in networks.items()))
    with np.load(golden_directory / "models" / "hf_clip" / "io.npz") as io:
        size = times * io["pixel_values"].shape[2]
    batch = {"image": jnp.zeros((2, size, size, 3), jnp.float32), "text": jnp.ones((2, 7), jnp.int32)}
    params, extra = objective.init(jax.random.key(0), batch)
    before = named_leaves(params)
    params, extra, account = start.load(params, extra, networks)
    assert not account.fresh
    assert len(account.resampled) == (times == 2)
    changed = {name for name, leaf in named_leaves(params).items() if np.any(leaf != before[name])}
    assert {"logit_scale", "text_encoder/token_embedding", "encoder/class_token"} <= changed
