"""Runs with networks from files of their own that never train: filled at the start, the same at the end."""

import pathlib

import jax
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import keywords
from vfm_jax.core.trees import named_leaves
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.arrays import ArraySource
from vfm_jax.experiment import build_experiment, complete, from_recipe
from vfm_jax.train.checkpoint import restore_params
from vfm_jax.train.loop import train
from vfm_jax.weights.frozen import fill_frozen
from vfm_jax.weights.load import load_pretrained

VIT = str(pathlib.Path(__file__).parents[1] / "golden" / "models" / "hf_vit_cls")
SMALL = dict(name="vit", variant="mu/8", width=16, mlp_dim=24, pooling="mean")


@pytest.fixture(autouse=True)
def _noise(monkeypatch):
    """A labelled source that needs no file."""

    def noise(*, split="train"):
        images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
        return ArraySource(images, np.arange(32) % 5, class_names=tuple("abcde"), described=f"noise {split}")

    monkeypatch.setitem(SOURCES, "noise", noise)


def recipe(**changes):
    base = dict(
        total_steps=2,
        data=dict(name="noise", batch_size=8),
        views=dict(image=dict(ops=(dict(name="normalize", mean=0.5, std=0.25),))),
        networks=dict(
            encoder=SMALL,
            head=dict(name="linear_head", num_classes=5),
            teacher=dict(name="pretrained", weights=VIT),
            teacher_head=dict(name="pretrained", weights=VIT, part="head"),
        ),
        objective=dict(name="distillation"),
        optimizer=dict(name="adamw"),
        schedule=dict(name="constant", base=1e-2),
    )
    return base | changes


def _assert_is_the_file(extra, **roles):
    public = load_pretrained(VIT).variables["params"]
    for role, part in roles.items():
        found, expected = named_leaves(extra["frozen"][role]), named_leaves(public[part])
        assert found.keys() == expected.keys()
        for name, leaf in expected.items():
            np.testing.assert_array_equal(found[name], leaf, err_msg=f"{role}/{name}")


def test_teachers_are_those_of_the_file_and_stay_so_and_the_account_is_printed(tmp_path, capsys):
    train(recipe(), tmp_path / "run")
    saved = restore_params(tmp_path / "run")
    _assert_is_the_file(saved.extra, teacher="encoder", teacher_head="head")
    assert "config.networks.teacher, frozen:" in capsys.readouterr().out
    assert set(saved.params) == {"encoder", "head"}


def test_a_stage_that_starts_from_another_run_has_its_teachers_too(tmp_path):
    head = dict(name="linear_head", num_classes=5)
    train(recipe(networks=dict(encoder=SMALL, head=head), objective=dict(name="supervised")), tmp_path / "before")
    train(recipe(start_from=str(tmp_path / "before")), tmp_path / "run")
    _assert_is_the_file(restore_params(tmp_path / "run").extra, teacher="encoder", teacher_head="head")


def test_several_teachers_by_name(tmp_path):
    width = load_pretrained(VIT).variables["params"]["encoder"]["class_token"].shape[0]
    mlp = dict(name="projection_head", out_dim=width, last_norm="none")
    networks = dict(
        encoder=SMALL,
        teachers=dict(one=dict(name="pretrained", weights=VIT), other=dict(name="pretrained", weights=VIT)),
        projectors=dict(one=mlp, other=mlp),
    )
    train(recipe(networks=networks, objective=dict(name="feature_distillation")), tmp_path / "run")
    _assert_is_the_file(restore_params(tmp_path / "run").extra, one="encoder", other="encoder")


def test_the_completed_recipe_says_which_network_the_file_holds_and_builds_the_same():
    full = complete(recipe())
    assert full["networks"]["teacher"]["name"] == "vit"
    assert full["networks"]["teacher"]["weights"] == VIT
    fields = keywords(build_experiment)
    one, other = (from_recipe({k: v for k, v in r.items() if k in fields}).abstract_params for r in (recipe(), full))
    assert jax.tree.structure(one) == jax.tree.structure(other)


def test_a_network_that_trains_is_not_filled_by_a_file_of_its_own():
    networks = {"encoder": {**SMALL, "weights": VIT}}
    with pytest.raises(UserError, match=r"config\.networks\.encoder\.weights fills a network that never trains"):
        fill_frozen({"encoder": {}}, networks)
