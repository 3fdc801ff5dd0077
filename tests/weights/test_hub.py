"""Public checkpoints by name: a folder of the user's first, then the hub's cache; and what is said without either."""

import builtins
import json
import pathlib
import sys

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.weights import hub
from vfm_jax.weights.files import Spec, open_weights, save_safetensors
from vfm_jax.weights.hub import CHECKPOINTS, folder_of, resolve


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The user's folder of weights."""
    monkeypatch.setenv("VFM_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


@pytest.fixture
def without_client(monkeypatch):
    """The hub's client is not installed."""
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.split(".")[0] == "huggingface_hub":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A function that puts files into the hub's cache as its client lays it out; the client works offline."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for module in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, module)  # it reads its settings when it is imported
    pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")

    def put(repository, files, revision="main"):
        home = tmp_path / "hf" / "hub" / f"models--{repository.replace('/', '--')}"
        commit = "0123456789abcdef0123456789abcdef01234567"
        for part in ("blobs", f"snapshots/{commit}", "refs"):
            (home / part).mkdir(parents=True, exist_ok=True)
        (home / "refs" / revision).write_text(commit)
        for i, (name, content) in enumerate(files.items()):
            (home / "blobs" / f"{i:064x}").write_bytes(content)
            (home / "snapshots" / commit / name).symlink_to(f"../../blobs/{i:064x}")
        return home / "snapshots" / commit

    return put


def weights(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save_safetensors(tmp_path / "made.safetensors", {"w": Spec(array.shape, array.dtype)}, [("w", array)])
    return (tmp_path / "made.safetensors").read_bytes()


def test_every_entry_of_the_table_is_whole():
    for name, checkpoint in CHECKPOINTS.items():
        assert "/" not in name  # it is the name of a folder
        assert (checkpoint.repository is None) == bool(checkpoint.url)
        assert checkpoint.repository is None or checkpoint.repository.count("/") == 1
        assert bool(checkpoint.figures) == bool(checkpoint.source)
        assert set(checkpoint.figures) <= {"top1", "knn", "linear", "fine_tuned"}
        assert all(50 < figure < 95 for figure in checkpoint.figures.values())
        assert checkpoint.files
        if checkpoint.preprocessing is not None:
            assert len(checkpoint.preprocessing.mean) == len(checkpoint.preprocessing.std) == 3
            assert checkpoint.preprocessing.size[0] % 2 == 0
            assert checkpoint.preprocessing.interpolation in ("bicubic", "bilinear")
            assert 0.8 < checkpoint.preprocessing.crop_ratio <= 1


def test_figures_are_those_of_the_authors():
    assert CHECKPOINTS["dinov2-with-registers-large"].figures == {"knn": 83.8, "linear": 86.7}
    assert CHECKPOINTS["vit_base_patch8_224.dino"].figures == {"knn": 77.4, "linear": 80.1}
    assert CHECKPOINTS["vit_base_patch16_224.augreg_in21k_ft_in1k"].figures == {"top1": 84.534}


def test_dinov3_is_gated_at_its_authors_and_not_at_timm():
    assert CHECKPOINTS["dinov3-vitb16-pretrain-lvd1689m"].gated
    assert not CHECKPOINTS["vit_base_patch16_dinov3.lvd1689m"].gated


def test_a_path_that_exists_stays_as_it_is(tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    pathlib.Path("dinov2-base").mkdir()
    assert resolve("dinov2-base") == pathlib.Path("dinov2-base")


def test_what_the_user_has_put_into_the_folder_is_taken_first(folder, tmp_path, without_client):
    assert folder_of("dinov2-base") == folder / "dinov2-base"
    (folder / "dinov2-base").mkdir(parents=True)
    (folder / "dinov2-base" / "model.safetensors").write_bytes(weights(tmp_path))
    assert resolve("dinov2-base") == folder / "dinov2-base"
    (folder / "mae_pretrain_vit_base").mkdir()
    (folder / "mae_pretrain_vit_base" / "mae_pretrain_vit_base.pth").write_bytes(b"")
    assert resolve("mae_pretrain_vit_base") == folder / "mae_pretrain_vit_base"
    (folder / "owner" / "name").mkdir(parents=True)
    (folder / "owner" / "name" / "model.safetensors").write_bytes(weights(tmp_path))
    assert resolve("hf:owner/name") == folder / "owner" / "name"


def test_a_folder_without_weights_is_passed_by(folder, without_client):
    (folder / "dinov2-base").mkdir(parents=True)
    (folder / "dinov2-base" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be had"):
        resolve("dinov2-base")


def test_without_the_variable_the_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("VFM_WEIGHTS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert folder_of("a") == tmp_path / ".cache" / "vfm_jax" / "weights" / "a"


def test_without_the_client_the_extra_and_the_way_by_hand_are_said(folder, without_client):
    with pytest.raises(UserError) as found:
        resolve("dinov2-base")
    message = str(found.value)
    assert 'pip install "vfm-jax[hub]"' in message
    assert "download model.safetensors" in message and "config.json" in message
    assert "https://huggingface.co/facebook/dinov2-base/tree/main" in message
    assert str(folder / "dinov2-base") in message
    assert len(message.splitlines()) <= 5


def test_weights_that_only_their_authors_have_are_said_with_their_address(folder):
    with pytest.raises(UserError, match=r"mae_pretrain_vit_base\.pth into .*weights/mae_pretrain_vit_base"):
        resolve("mae_pretrain_vit_base")


def test_a_name_in_the_cache_is_found_offline(cache, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": weights(tmp_path), "README.md": b""}
    snapshot = cache("facebook/dinov2-base", files)
    assert resolve("dinov2-base") == snapshot
    with open_weights(resolve("dinov2-base")) as opened:
        assert opened.shapes == {"w": (2, 3)}
        assert opened.config == {}


def test_any_repository_is_found_and_a_file_of_it(cache, tmp_path, golden_directory):
    made = (golden_directory / "weights_files" / "views.pt").read_bytes()
    snapshot = cache("some/one.v2", {"pytorch_model.bin": made, "other.pth": made})
    assert resolve("hf:some/one.v2") == snapshot
    assert resolve("hf:some/one.v2/other.pth") == snapshot / "other.pth"
    cache("some/two", {"model.safetensors": weights(tmp_path)}, revision="v1.0")
    assert resolve("hf:some/two@v1.0").is_dir()
    with pytest.raises(UserError, match="nor can the hub be reached"):
        resolve("hf:some/two")


def test_all_shards_are_asked_for(cache, tmp_path):
    index = json.dumps(
        {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}}
    )
    files = {"model.safetensors.index.json": index.encode(), "model-00001-of-00002.safetensors": weights(tmp_path)}
    cache("some/one", files)
    with pytest.raises(UserError, match="a part of it is missing"):
        resolve("hf:some/one")
    cache("some/other", {**files, "model-00002-of-00002.safetensors": weights(tmp_path)})
    assert resolve("hf:some/other").is_dir()


def test_what_is_not_in_the_cache_is_said_offline(cache, folder):
    with pytest.raises(UserError) as found:
        resolve("dinov3-vitb16-pretrain-lvd1689m")
    message = str(found.value)
    assert "neither in the cache nor can the hub be reached" in message
    assert "Ask for access" in message
    assert str(folder / "dinov3-vitb16-pretrain-lvd1689m") in message


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "not granted access"),
        ("RepositoryNotFoundError", "no such repository"),
        ("EntryNotFoundError", "the repository has none of model.safetensors"),
        ("LocalEntryNotFoundError", "nor can the hub be reached"),
        ("OSError", "no space left"),
    ],
)
def test_every_answer_of_the_hub_becomes_a_next_move(error, says, monkeypatch):
    """With a stand-in for the client, whose errors are those of huggingface_hub 1 and 2."""
    client, errors = type(sys)("huggingface_hub"), type(sys)("huggingface_hub.errors")
    http = type("HfHubHTTPError", (OSError,), {})
    errors.RepositoryNotFoundError = type("RepositoryNotFoundError", (http,), {})
    errors.GatedRepoError = type("GatedRepoError", (errors.RepositoryNotFoundError,), {})
    errors.EntryNotFoundError = type("EntryNotFoundError", (Exception,), {})
    errors.LocalEntryNotFoundError = type("LocalEntryNotFoundError", (errors.EntryNotFoundError, ValueError), {})
    errors.OSError = OSError

    def fail(repository, file, revision=None):
        raise getattr(errors, error)("no space left on device")

    client.errors, client.hf_hub_download = errors, fail
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    with pytest.raises(UserError, match=says) as found:
        resolve("siglip2-base-patch16-224")
    assert "https://huggingface.co/google/siglip2-base-patch16-224/tree/main" in str(found.value)


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(UserError, match=r"Did you mean 'dinov2-base'"):
        resolve("dinov2-bse")
    with pytest.raises(UserError, match=r"write 'hf:facebook/dinov2-base'"):
        resolve("facebook/dinov2-base")
    with pytest.raises(UserError, match=r"nothing at runs/a/model\.safetensors"):
        resolve("runs/a/model.safetensors")
    for wrong in ("hf:", "hf:dinov2", "hf:a/b/../c", "hf:../b", "hf:a/b@"):
        with pytest.raises(UserError, match="names no repository"):
            resolve(wrong)


def test_the_client_is_not_imported_before_it_is_needed():
    assert "huggingface_hub" not in vars(hub)


def test_every_checkpoint_is_of_a_family_that_can_be_read():
    from vfm_jax.weights.load import FAMILIES

    assert {checkpoint.family for checkpoint in CHECKPOINTS.values()} <= set(FAMILIES)
