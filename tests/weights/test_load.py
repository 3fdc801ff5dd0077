"""Files to networks: sizes, channels and heads other than the file's, and every way in which a load is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.sharding import make_mesh
from vfm_jax.nn.resample import resample_patch_kernel, resample_positions
from vfm_jax.weights.files import Spec, open_weights, save_safetensors
from vfm_jax.weights.load import FAMILIES, known_families, load_pretrained, read_weights


@pytest.fixture
def models(golden_directory):
    return golden_directory / "models"


def edited(source, folder, edit, config=None):
    """A copy of a folder of weights whose tensors and config were edited."""
    shutil.copytree(source, folder)
    with open_weights(source) as file:
        tensors = {name: np.array(file.read(name)) for name in file.shapes}
    edit(tensors)
    specs = {name: Spec(value.shape, value.dtype) for name, value in tensors.items()}
    save_safetensors(folder / "model.safetensors", specs, tensors.items())
    if config is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_the_five_lines_of_the_readme(models):
    model, variables, preprocessing, account = load_pretrained(models / "hf_vit_cls")
    images = preprocessing([np.full((50, 40, 3), 7, np.uint8)] * 2)
    features = jax.jit(model.apply)(variables, images)
    assert features.pooled.shape == (2, 48)
    assert "read as hf/vit" in str(account)


def test_another_image_size_patch_and_channels_are_adapted_and_told(models):
    path = models / "hf_dinov2_reg"  # 56 pixels in patches of 14
    base = load_pretrained(path).variables["params"]["encoder"]
    loaded = load_pretrained(path, image_size=(24, 40), patch_size=8, channels=5, adapt_channels="mean")
    found = loaded.variables["params"]["encoder"]
    np.testing.assert_allclose(
        found["positions"], resample_positions(np.asarray(base["positions"]), (3, 5), "bicubic_antialias"), atol=1e-6
    )
    kernel = np.asarray(base["patch_embedding"]["kernel"])
    mean = np.repeat(kernel.mean(axis=2, keepdims=True), 5, axis=2) * 3 / 5
    np.testing.assert_allclose(
        found["patch_embedding"]["kernel"], resample_patch_kernel(mean, (8, 8)), rtol=1e-4, atol=1e-6
    )
    account = loaded.account
    assert set(account.resampled) == {"encoder/positions", "encoder/patch_embedding/kernel"}
    assert "4 x 4 to 3 x 5" in str(account)
    assert "3 to 5 channels by mean, patches of 14 x 14 to 8 x 8 by PI-resize" in str(account)
    assert loaded.preprocessing.settings.size == (24, 40)
    assert len(loaded.preprocessing.settings.mean) == 5
    features = loaded.model.apply(loaded.variables, jnp.zeros((1, 24, 40, 5), jnp.float32))
    assert features.grid == (3, 5)


def test_fields_of_the_encoder_can_be_overridden(models):
    loaded = load_pretrained(models / "timm_vit", levels=(0, -1), dtype="bfloat16")
    features = loaded.model.apply(loaded.variables, jnp.zeros((1, *loaded.preprocessing.settings.size, 3)))
    assert len(features.levels) == 2
    assert jax.tree.leaves(loaded.variables)[0].dtype == jnp.float32


def test_leaves_go_straight_to_their_devices(models):
    mesh = make_mesh(data=1, fsdp=8)
    rules = (("patch_embedding/kernel$", (None, None, None, "fsdp")), (".*", "fsdp"))
    loaded = load_pretrained(models / "hf_vit_cls", mesh=mesh, sharding=rules)
    kernel = loaded.variables["params"]["encoder"]["patch_embedding"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(8, 8, 3, 6)}
    plain = load_pretrained(models / "hf_vit_cls").variables
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), loaded.variables, plain)


def test_a_tensor_nobody_knows_is_refused_until_asked_for(models, tmp_path):
    path = edited(models / "hf_vit_cls", tmp_path / "more", lambda t: t.update(extra=np.ones(3, np.float32)))
    with pytest.raises(UserError, match=r"1 with no place in the network: extra\.\n.*strict=False"):
        load_pretrained(path)
    loaded = load_pretrained(path, strict=False)
    assert loaded.account.unused == ["extra"]
    assert "unused: extra" in str(loaded.account)


def test_what_the_file_lacks_is_fresh_only_when_asked_for(models):
    with pytest.raises(UserError, match=r"2 not in the file: encoder/representation/bias"):
        load_pretrained(models / "hf_vit_cls", representation=8)
    loaded = load_pretrained(models / "hf_vit_cls", representation=48, strict=False)
    assert loaded.account.fresh == ["encoder/representation/bias", "encoder/representation/kernel"]
    assert float(jnp.abs(loaded.variables["params"]["encoder"]["representation"]["kernel"]).max()) > 0


def _without(name):
    return lambda tensors: tensors.pop(name)


@pytest.mark.parametrize(
    ("edit", "config", "given", "expected"),
    [
        (_without("vit.encoder.layer.1.output.dense.bias"), None, {}, "lacks 1 of its tensors"),
        (_without("vit.embeddings.cls_token"), None, {}, "cls_token"),
        (lambda t: None, {"model_type": "vitt"}, {}, "of no family known here: its config.json says 'vitt'"),
        (lambda t: None, {"hidden_act": "cubic"}, {}, "cubic"),
        (lambda t: None, None, {"family": "hf/dinov2"}, "cannot be read as hf/dinov2"),
        (lambda t: None, None, {"family": "hf/vitt"}, "Did you mean 'hf/vit'?"),
        (lambda t: None, None, {"image_size": 30}, "images of 30 x 30 pixels"),
        (lambda t: None, None, {"depht": 3}, "depht"),
        (lambda t: None, None, {"width": 24}, "encoder/"),
        (lambda t: None, None, {"dtype": "float31"}, "float31"),
        (
            lambda t: t.update({"vit.layernorm.weight": np.ones(40, np.float32)}), None, {},
            "encoder/norm/scale is 40 in the file and 48 in the network",
        ),
        (
            lambda t: t.update({"vit.encoder.layer.0.output.dense.weight": np.ones((3, 4, 5), np.float32)}), None, {},
            "cannot be made of vit.encoder.layer.0.output.dense.weight (3, 4, 5)",
        ),
    ],
)  # fmt: skip
def test_a_load_that_cannot_be_right_is_refused_in_a_few_lines(models, tmp_path, edit, config, given, expected):
    path = edited(models / "hf_vit_cls", tmp_path / "edited", edit, config)
    with pytest.raises(UserError) as error:
        load_pretrained(path, **given)
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) <= 4


def test_a_model_without_patches_has_no_patch_size(models):
    with pytest.raises(UserError, match="'resnet', has no patches"):
        load_pretrained(models / "hf_resnet", patch_size=8)


def test_a_file_with_no_config_is_told_by_its_names_and_says_what_it_assumes(models, tmp_path):
    """DINO's own file: heads are its authors', and can be given where a width is nobody's."""
    io = np.load(models / "orig_dino.npz")
    tensors = {name.removeprefix("param/"): io[name] for name in io.files if name.startswith("param/")}
    path = tmp_path / "dino.safetensors"
    save_safetensors(path, {n: Spec(v.shape, v.dtype) for n, v in tensors.items()}, tensors.items())
    with pytest.raises(UserError, match="heads"):
        read_weights(path)
    with (weights := read_weights(path, heads=2)).file:
        assert weights.family.name == "original/dino"
        assert "2 attention heads" in str(weights.account())


def test_every_family_is_in_the_line_that_messages_show():
    line = known_families()
    assert all(name.rpartition("/")[2] in line for name in FAMILIES)


def test_heads_that_the_file_contradicts_are_refused(golden_directory):
    folder = golden_directory / "models" / "hf_vit_cls"
    told = load_pretrained(folder).model.encoder.sizes[3]
    assert load_pretrained(folder, heads=told).account.loaded
    with pytest.raises(UserError, match=f"{told} attention heads"):
        load_pretrained(folder, heads=told + 1)
