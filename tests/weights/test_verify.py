"""Two sets of weights are compared layer by layer, and the first that differs is found."""

import numpy as np
import pytest

from vfm_jax import cli
from vfm_jax.core.errors import UserError
from vfm_jax.weights.describe import import_weights
from vfm_jax.weights.files import Spec, open_weights, save_safetensors
from vfm_jax.weights.verify import verify

IMAGES = list(np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8))


@pytest.fixture
def source(golden_directory):
    return golden_directory / "models" / "hf_vit_cls"


def changed(source, folder, name, by):
    """A folder of ours with one leaf of the source changed."""
    import_weights(source, folder)
    with open_weights(folder) as file:
        tensors = {n: np.array(file.read(n)) for n in file.shapes}
    tensors[name] = tensors[name] + np.float32(by)
    specs = {n: Spec(value.shape, value.dtype) for n, value in tensors.items()}
    save_safetensors(folder / "model.safetensors", specs, tensors.items())
    return folder


def test_the_same_weights_in_two_formats_agree_in_every_layer(source, tmp_path):
    import_weights(source, tmp_path / "ours")
    rows = verify(source, tmp_path / "ours", IMAGES)
    assert [row.name for row in rows] == ["level 0", "level 1", "tokens", "pooled", "logits"]
    assert all(row.agrees and row.difference == 0 and row.scale > 0 for row in rows)


@pytest.mark.parametrize(
    ("leaf", "first"),
    [
        ("encoder/class_token", "level 0"),
        ("encoder/transformer/block_1/mlp/up/bias", "level 1"),
        ("encoder/norm/bias", "tokens"),
        ("head/logits/bias", "logits"),
    ],
)
def test_the_first_layer_that_differs_is_found(source, tmp_path, leaf, first):
    rows = verify(source, changed(source, tmp_path / "ours", f"params/{leaf}", 0.5), IMAGES)
    assert next(row.name for row in rows if not row.agrees) == first


def test_other_architectures_are_refused_in_words(source, golden_directory):
    models = golden_directory / "models"
    with pytest.raises(UserError, match=r"of 32 x 32 pixels.*does not take these"):
        verify(source, models / "hf_dinov2_reg", IMAGES)
    with pytest.raises(UserError, match="other layers"):
        verify(models / "hf_dinov2_reg", models / "hf_resnet", IMAGES)


def test_the_command_says_where_and_ends_with_1(source, tmp_path, capsys):
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    other = changed(source, tmp_path / "ours", "params/encoder/transformer/block_1/mlp/up/bias", 0.5)
    words = ["weights", "verify", str(source), str(other), f"--images={tmp_path / 'images'}"]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert "from level 1 on" in err
    assert "level 0" in out
    assert cli.main([*words[:3], str(source), words[4], "--count=1"]) == 0
    assert cli.main([*words, "--rtol=0", "--atol=1e9"]) == 0
