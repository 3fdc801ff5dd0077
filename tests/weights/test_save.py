"""What is written when a model is exported: the same bits back, equal forms elsewhere, and nothing after a failure.

That transformers and timm take these folders is tested in test_parity.py.
"""

import errno
import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vfm_jax.core.errors import UserError
from vfm_jax.export.weights import export_weights
from vfm_jax.weights import save
from vfm_jax.weights.family import Preprocessing
from vfm_jax.weights.load import abstract_leaves, load_pretrained, make_model, read_weights
from vfm_jax.weights.rules import Bundle
from vfm_jax.weights.save import export, unread

HERE = pathlib.Path(__file__).parent.parent
KEPT = HERE / "golden" / "models"
SHARED = HERE.parent.parent / "shared" / "golden" / "models"
HOME = SHARED if SHARED.is_dir() else KEPT
FOLDERS = sorted(path.parent.name for path in HOME.glob("*/io.npz"))
MADE_UP = {  # goldens of sizes that their own library has under no name
    "timm_bit": "8 groups",
    "timm_mixer": "2 blocks of width 20",
    "vgg16": "depths and widths other than the paper's",
}
VIT = {"name": "vit", "variant": "B/4", "width": 24, "depth": 2, "mlp_dim": 48, "heads": 3}
SETTINGS = Preprocessing((16, 16), (0.5,) * 3, (0.25,) * 3)


def leaves_of(networks, size=(16, 16), channels=3, value=0.5):
    shapes = abstract_leaves(make_model(networks), Bundle(networks, size, channels))
    return {leaf: np.full(shape.shape, value, np.float32) for leaf, shape in shapes.items()}


def exported(out, format, networks, *, size=(16, 16), channels=3, **kwargs):
    settings = SETTINGS._replace(size=size, mean=(0.5,) * channels, std=(0.25,) * channels)
    leaves = kwargs.pop("leaves", None) or leaves_of(networks, size, channels)
    return export(out, format, Bundle(networks, size, channels), leaves, settings, **kwargs)


# ------------------------------------------------------------------------------------------------------- back again


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_goes_back_equal_in_every_bit(name, tmp_path):
    source, format = HOME / name, "hf" if name.startswith("hf") else "timm"
    if name in MADE_UP:
        with pytest.raises(UserError, match=MADE_UP[name]):
            export_weights(source, format, tmp_path / "out")
        return
    before, after = (
        load_file(source / "model.safetensors"),
        load_file(export_weights(source, format, tmp_path / "out").folder / "model.safetensors"),
    )
    assert after.keys() == before.keys()
    for tensor, value in before.items():
        assert after[tensor].dtype == value.dtype, tensor
        np.testing.assert_array_equal(after[tensor], value, err_msg=tensor)
    config = json.loads((source / "config.json").read_text())
    again = json.loads((tmp_path / "out" / "config.json").read_text())
    for field in ("model_type", "architectures"):
        assert again.get(field) == config.get(field)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_tensors_keep_the_dtype_of_the_file_they_came_from(dtype, tmp_path):
    source = shutil.copytree(KEPT / "hf_resnet", tmp_path / "source")
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    tensors = load_file(source / "model.safetensors")
    tensors = {name: v.astype(kind) if v.dtype == np.float32 else v for name, v in tensors.items()}
    save_file(tensors, source / "model.safetensors")
    made = export_weights(source, "hf", tmp_path / "out")
    after = load_file(made.folder / "model.safetensors")
    for name, value in tensors.items():
        assert after[name].dtype == value.dtype
        assert after[name].tobytes() == value.tobytes()


def test_leaves_of_a_file_are_read_one_at_a_time(monkeypatch):
    weights = read_weights(KEPT / "hf_vit_cls")
    read = []
    monkeypatch.setattr(type(weights), "read", lambda self, leaf: read.append(leaf) or np.zeros(3, np.float32))
    with weights.file:
        leaves = unread(weights)
        assert not read
        assert leaves["params", "encoder/class_token"].dtype == np.float32
        np.asarray(leaves["params", "encoder/class_token"])
    assert read == [("params", "encoder/class_token")]


# ------------------------------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_tensors_are_rounded_to_the_dtype_asked_for(dtype, tmp_path):
    leaves = leaves_of({"encoder": VIT}, value=1 / 3)
    made = exported(tmp_path / "out", "timm", {"encoder": VIT}, leaves=leaves, dtype=dtype)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for value in load_file(made.folder / "model.safetensors").values():
        assert value.dtype == kind
        assert set(value.reshape(-1).astype(np.float32).tolist()) <= {0.0, float(np.float32(1 / 3).astype(kind))}


def test_a_number_that_the_dtype_does_not_reach_is_refused_and_nothing_is_left(tmp_path):
    leaves = leaves_of({"encoder": VIT}, value=7e4)
    with pytest.raises(UserError, match=r"7e\+04, too large for float16. Take bfloat16"):
        exported(tmp_path / "out", "timm", {"encoder": VIT}, leaves=leaves, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_another_dtype_is_refused(tmp_path):
    with pytest.raises(UserError, match="float8"):
        exported(tmp_path / "out", "timm", {"encoder": VIT}, dtype="float8")


# ------------------------------------------------------------------------------------------------------- equal forms


NAMED = {
    "positions": ({"encoder": VIT | {"positions": "sincos2d"}}, "timm", "fixed positions are written as a table"),
    "prefix": ({"encoder": VIT, "head": {"name": "linear_head", "num_classes": 2}}, "hf", "are written as zero"),
    "scales": ({"encoder": VIT}, "hf", "layer scales, all one"),
    "mask": ({"encoder": VIT | {"mask_token": True}}, "timm", "mask token is left out"),
    "no_mask": ({"encoder": VIT | {"registers": 2}}, "hf", "mask token of zeros"),
    "projector": (
        {"encoder": VIT, "projector": {"name": "projection_head", "hidden_dim": 8, "out_dim": 4, "num_layers": 2}},
        "timm",
        "left out, as they served training alone: projector",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_a_library_has_in_other_words_is_written_in_them_and_said(name, tmp_path):
    networks, format, note = NAMED[name]
    kept = {role: spec for role, spec in networks.items() if role != "projector"}
    made = exported(tmp_path / "out", format, networks, leaves=leaves_of(kept))
    assert any(note in line for line in made.notes)
    assert not load_pretrained(made.folder).account.fresh


def test_nothing_is_said_where_nothing_is_changed(tmp_path):
    assert exported(tmp_path / "out", "timm", {"encoder": VIT}).notes == []


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "resnet", "variant": "18"},
        {"name": "resnet", "block": "basic", "depths": [2, 2, 2, 2], "norm_momentum": 0.5, "zero_init": False},
        {"name": "convnext", "depths": (2, 2, 6, 2), "widths": (40, 80, 160, 320)},
        {"name": "swin", "width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": (1, 1, 1, 1)},
    ],
)
@pytest.mark.parametrize("format", ["hf", "timm"])
def test_sizes_may_be_written_in_any_way(spec, format, tmp_path):
    made = exported(tmp_path / "out", format, {"encoder": spec}, size=(32, 32))
    assert made.family == f"{format}/{spec['name']}"


# --------------------------------------------------------------------------------------------------------- refusals

SWIN = {"name": "swin", "width": 12, "depths": (1, 1), "heads": (2, 3), "window": 2}
REFUSED = {  # name: networks, format, size, what is said
    "epsilon": ({"encoder": VIT | {"norm_epsilon": 1e-12}}, "timm", (16, 16), "norm_epsilon is 1e-12, there 1e-06"),
    "activation": ({"encoder": SWIN | {"activation": "relu"}}, "timm", (16, 16), "'relu', there 'gelu'"),
    "not_square": ({"encoder": VIT | {"layer_scale": 1.0}}, "hf", (16, 8), "positions of square images"),
    "norm_order": ({"encoder": VIT | {"norm_order": "post"}}, "hf", (16, 16), "norm_order is 'post', there 'pre'"),
    "stem": ({"encoder": {"name": "resnet", "variant": "18", "stem": "cifar"}}, "timm", (16, 16), "the stem 'cifar'"),
    "mixer": ({"encoder": {"name": "mixer", "variant": "S/16"}}, "hf", (32, 32), "holds encoder 'mixer'"),
    "mlp": (
        {"encoder": VIT | {"mlp_dim": 50, "layer_scale": 1.0}}, "hf", (16, 16), "a whole multiple of the width 24",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_library_cannot_hold_is_refused_with_the_reason(name, tmp_path):
    networks, format, size, reason = REFUSED[name]
    with pytest.raises(UserError) as refused:
        exported(tmp_path / "out", format, networks, size=size)
    assert reason in str(refused.value)
    assert "--format=vfm" in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 5
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_full_disk_is_taken_away_again(monkeypatch, tmp_path):
    def full(folder, *args, **kwargs):
        (folder / "model.safetensors").write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save, "save_shards", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        exported(tmp_path / "out", "timm", {"encoder": VIT})
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match="cannot be written"):
        exported(tmp_path / "file" / "out", "timm", {"encoder": VIT})


def test_an_unknown_format_and_a_family_of_another_are_refused(tmp_path):
    with pytest.raises(UserError, match="formats are hf, timm, vfm"):
        exported(tmp_path / "out", "onnx", {"encoder": VIT})
    with pytest.raises(UserError, match="hf/vit"):
        exported(tmp_path / "out", "timm", {"encoder": VIT}, family="hf/vit")


# ------------------------------------------------------------------------------------------------- the other files


def test_large_weights_are_sharded_with_an_index(tmp_path):
    whole = exported(tmp_path / "whole", "timm", {"encoder": VIT})
    made = exported(tmp_path / "out", "timm", {"encoder": VIT}, max_shard_bytes=20_000)
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert index["weight_map"].keys() == load_file(whole.folder / "model.safetensors").keys()
    assert not load_pretrained(made.folder).account.fresh


@pytest.mark.parametrize("format", ["hf", "timm", "vfm"])
@pytest.mark.parametrize("ratio", [1.0, 0.8])
def test_what_the_model_expects_of_an_image_is_read_back(format, ratio, tmp_path):
    settings = SETTINGS._replace(interpolation="bilinear", crop_ratio=ratio)
    networks = {"encoder": VIT}
    made = export(tmp_path / "out", format, Bundle(networks, (16, 16), 3), leaves_of(networks), settings)
    assert load_pretrained(made.folder).preprocessing.settings == settings


def test_the_card_is_told_the_family_and_what_was_changed(tmp_path):
    networks = {"encoder": VIT | {"mask_token": True}}
    made = exported(tmp_path / "out", "timm", networks, card=lambda family, notes: f"{family}: {', '.join(notes)}")
    assert (made.folder / "README.md").read_text() == f"timm/vit: {made.notes[0]}"
