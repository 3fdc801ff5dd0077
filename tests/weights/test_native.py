"""A folder of ours holds every network, leaf and statistic, bit for bit."""

import json

import jax
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.weights.describe import import_weights
from vfm_jax.weights.load import load_pretrained


@pytest.mark.parametrize("name", ["hf_vit_cls", "hf_resnet", "hf_vitmae", "hf_clip"])
def test_a_folder_of_ours_is_bit_equal_to_what_it_was_made_of(golden_directory, tmp_path, name):
    source = golden_directory / "models" / name
    import_weights(source, tmp_path / "ours")
    before, after = load_pretrained(source), load_pretrained(tmp_path / "ours")
    assert jax.tree.structure(before.variables) == jax.tree.structure(after.variables)
    jax.tree.map(np.testing.assert_array_equal, before.variables, after.variables)
    assert before.model == after.model


def test_a_folder_of_ours_whose_config_was_broken_says_so(golden_directory, tmp_path):
    import_weights(golden_directory / "models" / "timm_vit", tmp_path / "ours")
    path = tmp_path / "ours" / "config.json"
    config = json.loads(path.read_text())
    del config["image_size"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"cannot be read as vfm_jax.*image_size"):
        load_pretrained(tmp_path / "ours")
