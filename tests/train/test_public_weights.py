"""Runs that start from public weights: what is loaded, what waits, what goes along, and what is refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from vfm_jax import cli
from vfm_jax.cli import load_recipe
from vfm_jax.core.errors import UserError
from vfm_jax.core.trees import named_leaves
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.arrays import ArraySource
from vfm_jax.experiment import complete
from vfm_jax.export.weights import read_run
from vfm_jax.train.checkpoint import restore_params
from vfm_jax.train.loop import evaluate, train
from vfm_jax.weights.load import load_pretrained

ROOT = pathlib.Path(__file__).parents[2]
MODELS = ROOT / "tests" / "golden" / "models"
VIT = MODELS / "hf_vit_cls"
HEAD = dict(name="linear_head", num_classes=5)


@pytest.fixture(autouse=True)
def _noise(monkeypatch):
    """A labelled source that needs no file."""

    def noise(*, split="train", size=32, channels=3):
        images = np.random.default_rng(0).integers(0, 256, (32, size, size, channels), np.uint8)
        return ArraySource(images, np.arange(32) % 5, class_names=tuple("abcde"), described=f"noise {split}")

    monkeypatch.setitem(SOURCES, "noise", noise)


def recipe(weights=VIT, size=32, channels=3, **changes):
    normalize = dict(name="normalize", mean=0.5, std=0.25)
    base = dict(
        seed=0,
        total_steps=2,
        log_every_steps=1,
        data=dict(name="noise", size=size, channels=channels, batch_size=8),
        views=dict(image=dict(ops=(normalize,))),
        networks=dict(encoder=dict(name="pretrained"), head=HEAD),
        init=dict(weights=str(weights)),
        objective=dict(name="supervised"),
        optimizer=dict(name="adamw"),
        schedule=dict(name="constant", base=1e-2),
        checkpoints=dict(every_steps=1, keep_last=9),
    )
    return base | changes


def params_at(workdir, step):
    return named_leaves(restore_params(workdir / "checkpoints" / "train" / str(step)).params)


def given(path=VIT):
    return named_leaves(load_pretrained(path).variables["params"])


def test_the_encoder_waits_for_its_steps_and_then_moves_and_the_account_is_printed(tmp_path, capsys):
    train(recipe(init=dict(weights=str(VIT), freeze_steps=1), ema=dict(momentum=0.5)), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "read as hf/vit" in printed
    assert "fresh: head/logits/bias, head/logits/kernel" in printed
    assert 'left in the file, as config.init.head is "fresh": head' in printed
    first, second, public = params_at(tmp_path / "run", 1), params_at(tmp_path / "run", 2), given()
    for name in public:
        if name.startswith("encoder/"):
            np.testing.assert_array_equal(first[name], public[name], err_msg=name)
    kernel = "encoder/transformer/block_0/mlp/up/kernel"
    assert np.abs(second[kernel] - public[kernel]).max() > 1e-3
    assert np.abs(first["head/logits/kernel"] - public["head/logits/kernel"]).max() > 1e-3
    # the average began at the public weights, not at the fresh ones
    average = named_leaves(restore_params(tmp_path / "run" / "checkpoints" / "train" / "1").ema)
    np.testing.assert_allclose(average[kernel], public[kernel], atol=1e-6)


def test_a_head_is_kept_where_asked_for(tmp_path):
    networks = dict(encoder=dict(name="pretrained"), head=dict(name="pretrained"))
    schedule = dict(name="constant", base=0.0)
    train(recipe(init=dict(weights=str(VIT), head="keep"), networks=networks, schedule=schedule), tmp_path / "run")
    found, public = params_at(tmp_path / "run", 2), given()
    assert found.keys() == public.keys()
    for name, value in public.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_batch_statistics_go_along(tmp_path):
    schedule = dict(name="constant", base=0.0)
    objective = dict(name="supervised", freeze_encoder=True)  # else the run moves them on
    train(recipe(MODELS / "hf_resnet", 48, objective=objective, schedule=schedule), tmp_path / "run")
    saved = restore_params(tmp_path / "run" / "checkpoints" / "train" / "2")
    public = load_pretrained(MODELS / "hf_resnet").variables["batch_stats"]["encoder"]
    found = saved.extra["encoder"]["batch_stats"]
    assert len(jax.tree.leaves(public)) > 10
    jax.tree.map(np.testing.assert_array_equal, found, public)


def test_a_teacher_begins_at_the_public_weights_and_another_method_starts_from_it(tmp_path):
    normalize = dict(name="normalize", mean=0.5, std=0.25)
    student = dict(
        views={"global": dict(num_views=2, ops=(normalize,))},
        networks=dict(encoder=dict(name="pretrained"), head=dict(name="dino_head", out_dim=8, hidden_dim=16)),
        objective=dict(name="dino", teacher_momentum=1.0),  # a teacher that stays
    )
    probe = dict(
        name="probe",
        total_steps=1,
        views={"global": None, "image": dict(ops=(normalize,))},
        networks=dict(head=HEAD),
        objective=dict(name="supervised"),
        schedule=dict(name="constant", base=0.0),
        carry=("^encoder/",),
    )
    stages = (dict(name="pretrain"), probe)
    train(recipe(stages=stages, eval_views=dict(image=dict(ops=(normalize,))), **student), tmp_path / "run")
    pretrained = restore_params(tmp_path / "run" / "checkpoints" / "pretrain")
    probed = named_leaves(restore_params(tmp_path / "run" / "checkpoints" / "probe").params)
    kernel = "encoder/transformer/block_0/mlp/up/kernel"
    assert np.abs(named_leaves(pretrained.params)[kernel] - given()[kernel]).max() > 1e-3
    for name, value in named_leaves(pretrained.extra["teacher"]["encoder"]).items():
        np.testing.assert_array_equal(value, given()[f"encoder/{name}"], err_msg=name)
        np.testing.assert_array_equal(probed[f"encoder/{name}"], value, err_msg=name)
    _, leaves, _, _ = read_run(tmp_path / "run" / "checkpoints" / "pretrain")
    np.testing.assert_array_equal(leaves["params", kernel], given()[kernel])


@pytest.mark.parametrize(
    ("size", "channels", "fields", "told"),
    [
        (48, 3, {}, "4 x 4 to 6 x 6"),
        (36, 3, {"variant": "B/6"}, "patches of 8 x 8 to 6 x 6 by PI-resize"),
        (32, 6, {}, "3 to 6 channels by repeat"),
    ],
)
def test_another_image_patch_or_channel_count_is_resampled_and_told(tmp_path, capsys, size, channels, fields, told):
    networks = dict(encoder=dict(name="pretrained") | fields, head=HEAD)
    views = dict(image=dict(ops=(dict(name="normalize", mean=(0.5,) * channels, std=(0.2,) * channels),)))
    changed = recipe(size=size, channels=channels, networks=networks, views=views, total_steps=1)
    assert train(changed, tmp_path / "run")["finished"]
    assert told in capsys.readouterr().out


def test_the_image_tower_of_two_is_an_encoder(tmp_path, capsys):
    assert train(recipe(MODELS / "hf_clip", total_steps=1), tmp_path / "run")["finished"]
    public = load_pretrained(MODELS / "hf_clip").variables["params"]["image"]
    assert f"loaded {len(jax.tree.leaves(public))}" in capsys.readouterr().out


def test_maes_decoder_is_kept_and_continues(tmp_path, capsys):
    networks = dict(encoder=dict(name="pretrained"), decoder=dict(name="pretrained"))
    init = dict(weights=str(MODELS / "hf_vitmae"), head="keep")
    train(recipe(init=init, networks=networks, objective=dict(name="mae"), total_steps=1), tmp_path / "run")
    assert "fresh 0, unused 0" in capsys.readouterr().out


def test_a_killed_run_goes_on_without_the_file(tmp_path, capsys, monkeypatch):
    """What was begun from the file needs it no more: not to know the networks, and not to load."""
    shutil.copytree(VIT, tmp_path / "weights")
    begun = complete(recipe(tmp_path / "weights"))
    train(begun, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "train" / "2")
    (tmp_path / "run" / "summary.json").unlink()
    shutil.rmtree(tmp_path / "weights")
    capsys.readouterr()
    assert cli.main(["train", f"--workdir={tmp_path / 'run'}"]) == 0
    printed = capsys.readouterr().out
    assert "Resuming stage train at step 1." in printed
    assert "read as" not in printed
    one, other = (params_at(tmp_path / name, 2) for name in ("whole", "run"))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_evaluation_needs_no_run(capsys):
    ops = (dict(name="normalize", mean=0.5, std=0.25),)
    evals = dict(classification=dict(), knn=dict(num_neighbors=3))
    networks = dict(encoder=dict(name="pretrained"), head=dict(name="pretrained"))
    init = dict(weights=str(VIT), head="keep")
    step, figures = evaluate(
        recipe(init=init, networks=networks, evals=evals, eval_data=dict(test=dict(split="test")), eval_batch_size=16,
               eval_views=dict(image=dict(ops=ops))), None,
    )  # fmt: skip
    assert step == 0
    assert figures["knn/accuracy"] > 0  # train and test are the same images
    model, variables, *_ = load_pretrained(VIT)
    source = SOURCES["noise"]()
    images = np.stack([source[i]["image"] for i in range(32)]).astype(np.float32) / 255
    logits = jax.jit(lambda v, x: model.apply(v, x, method="logits"))(variables, (images - 0.5) / 0.25)
    assert figures["classification/accuracy"] == np.mean(np.argmax(logits, axis=1) == np.arange(32) % 5)
    assert "read as hf/vit" in capsys.readouterr().out


def test_a_run_is_compared_with_the_weights_it_started_from(tmp_path):
    ops = (dict(name="normalize", mean=0.5, std=0.25),)
    given = recipe(evals=dict(knn=dict(num_neighbors=3)), eval_batch_size=16, eval_views=dict(image=dict(ops=ops)))
    summary = train(given, tmp_path / "run")
    _, before = evaluate(given, None)
    assert summary["evaluations"]["public_weights"] == before
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("kind") == "eval"] == [0, 2]


def test_config_shows_what_the_file_holds_and_expects(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["config", "--config=configs/adapt/evaluate.py", f"--config.init.weights={MODELS / 'timm_vit'}"]
    assert cli.main([*words, "--config.networks.encoder.drop_path=0.1"]) == 0
    out = capsys.readouterr().out
    assert "config.networks.encoder.name = 'vit'  (the file has 'pretrained')" in out
    assert "config.networks.encoder.drop_path = 0.1" in out
    assert "'name': 'center_crop'" in out
    assert "config.init.head = 'fresh'" in out


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(init=dict(weights="")), r"does not say of which weights.*--config\.init=None"),
        (dict(init={}), '"pretrained": say of which file'),
        (dict(init=dict(weights="/no/such.pth")), "nothing at /no/such.pth"),
        (dict(init=dict(weights=str(VIT), heads_="fresh")), "heads_"),
        (dict(init=dict(weights=str(VIT), head="new")), "'new'.*keep"),
        (dict(init=dict(weights=str(VIT)), start_from="runs/x"), "both config.start_from and config.init"),
        (
            dict(networks=dict(encoder=dict(name="pretrained"), decoder=dict(name="pretrained")),
                 objective=dict(name="mae")),
            "holds encoder, head",
        ),
        (
            dict(networks=dict(encoder=dict(name="vit", variant="Ti/8"), head=HEAD)),
            "does not fill|in the network",
        ),
    ],
)  # fmt: skip
def test_a_start_that_cannot_be_is_refused_before_training(tmp_path, changes, expected):
    with pytest.raises(UserError, match=expected) as error:
        train(recipe(**changes), tmp_path / "run")
    assert len(str(error.value).splitlines()) <= 5
    assert not (tmp_path / "run" / "checkpoints" / "train" / "1").exists()


def test_a_start_that_leaves_leaves_fresh_has_to_be_asked_for(tmp_path, capsys):
    networks = dict(encoder=dict(name="pretrained", registers=2), head=HEAD)
    with pytest.raises(UserError, match=r"1 not in the file: encoder/registers"):
        train(recipe(networks=networks), tmp_path / "run")
    train(recipe(networks=networks, init=dict(weights=str(VIT), strict=False), total_steps=1), tmp_path / "again")
    printed = capsys.readouterr().out
    assert "encoder/registers" in printed
    assert "registers is 2" in printed


# ----------------------------------------------------------------------------------------- a trained ViT, real images


def test_a_trained_torch_vit_gives_its_reference_logits(shared):
    spec = load_recipe(str(ROOT / "configs/adapt/vit_cifar10.py"))
    path = shared / "data" / "vit_cifar10_weights"
    table, networks = spec["init"]["rename"], spec["networks"]
    loaded = load_pretrained(path / "vit_cifar10.pth", rename=table, networks=networks, image_size=32)
    assert not loaded.account.fresh
    assert not loaded.account.unused
    reference = np.load(path / "reference.npz")
    (normalize,) = spec["eval_views"]["image"]["ops"]
    images = (reference["images"] / 255 - normalize["mean"]) / np.asarray(normalize["std"])
    model = loaded.model
    run = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, method="logits")))
    features, logits = run(loaded.variables, images.astype(np.float32))
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(features.pooled, reference["cls_features"], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_trained_torch_vit_reaches_its_accuracy_on_real_images(shared, tmp_path, capsys, monkeypatch):
    import tarfile

    with tarfile.open(shared / "data" / "cifar10" / "cifar10.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(ROOT)
    weights = shared / "data" / "vit_cifar10_weights" / "vit_cifar10.pth"
    words = [f"--config.init.weights={weights}", f"--config.data.path={tmp_path / 'cifar10'}", "--json"]
    assert cli.main(["eval", "--config=configs/adapt/vit_cifar10.py", *words]) == 0
    figures = {row["evaluation"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    assert figures["classification/accuracy"] == pytest.approx(0.7304, abs=1e-6)
    assert figures["knn/accuracy"] > 0.72
    assert figures["linear_probe/accuracy"] > 0.72
