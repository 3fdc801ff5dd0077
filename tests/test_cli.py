"""Wrong input gets a few lines in the user's words and exit code 2, before anything is compiled."""

import json
import pathlib

import jax
import pytest
from PIL import Image

from vfm_jax import cli
from vfm_jax.train import loop

QUICKSTART = "--config=configs/quickstart.py"


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir or "")


@pytest.fixture
def photos(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 30), (40 * i, 90, 10)).save(tmp_path / "photos" / label / f"{i}.jpg")
    return tmp_path / "photos"


def _refused(capsys, monkeypatch, tmp_path, *words):
    """The message of a command that must end with exit code 2 before any compilation."""
    monkeypatch.setattr(loop, "run_stage", lambda *args: pytest.fail("the mistake was not found before compilation"))
    code = cli.main(["train", f"--workdir={tmp_path / 'run'}", *words])
    out, err = capsys.readouterr()
    assert code == 2, out + err
    assert "Traceback" not in err
    assert 1 <= len(err.strip().splitlines()) <= 5
    return err


def _folder(path):
    return (
        QUICKSTART + ":photos",
        "--config.data=" + repr(dict(name="folder", path=str(path), canvas_size=32, batch_size=8)),
        "--config.eval_data=None", "--config.evals=None", "--config.baselines=()",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config.objective.mask_ration=0.5"], ["mask_ration", "mask_ratio"]),
        (["--config.objectiv.mask_ratio=0.5"], ["objectiv", "'objective'"]),
        (["config.objective.mask_ratio=0.5"], ["--config.objective.mask_ratio=0.5"]),
        (["--confg.objective.mask_ratio=0.5"], ["confg"]),
        (["--workdri=x"], ["--workdri", "--workdir"]),
        (["--config.objective.name=meae"], ["meae", "mae"]),
        (["--config.networks.encoder.name=vitt"], ["vitt", "vit"]),
        (["--config.objective.mask_ratio=high"], ["mask_ratio", "a number", "a word"]),
        (["--config.objective.mask_ratio=nan"], ["finite"]),
        (["--config.objective.mask_ratio=1.5"], ["mask_ratio"]),
        (["--config.total_epochs=-3"], ["total_epochs", "-3"]),
        (["--config.data.batch_size=130"], ["130", "128 or 136", "8 devices"]),
        (["--config.data.batch_size=0"], ["batch_size", "0"]),
        (["--config.mesh={'fsdp': 3}"], ["fsdp=3", "8 devices"]),
        (["--config.networks.encoder.variant=mu/5"], ["28 x 28", "5"]),
        (["--config.networks.encoder.heads=7"], ["96", "7 heads"]),
        (["--config.optimizer.b1=2.0"], ["config.optimizer.b1"]),
        (["--config.schedule.warmup_epochs=900"], ["warm-up"]),
        (["--config.evals={'knn': {'num_neighbours': 3}}"], ["num_neighbours", "num_neighbors"]),
        (["--config.views.image.ops.0.max_pixel=3"], ["max_pixel", "max_pixels"]),
        (["--config.baselines=('random',)"], ["random_init"]),
        (["--config.dtype=float31"], ["float31", "float32"]),
    ],
)
def test_a_mistake_in_words_is_answered_in_words(capsys, monkeypatch, tmp_path, words, expected):
    message = _refused(capsys, monkeypatch, tmp_path, QUICKSTART, *words)
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("configs/quikstart.py", "configs/quickstart.py"),
        ("configs/quickstart.py:mea", "mea"),
        ("README.md", "README.md"),
    ],
)
def test_a_recipe_that_is_not_there_is_named(capsys, monkeypatch, tmp_path, config, expected):
    assert expected in _refused(capsys, monkeypatch, tmp_path, f"--config={config}")


def test_a_missing_folder_is_named_with_its_neighbour(capsys, monkeypatch, tmp_path, photos):
    message = _refused(capsys, monkeypatch, tmp_path, *_folder(photos.with_name("potos")))
    assert "potos" in message
    assert "photos" in message


def test_an_empty_folder_is_named(capsys, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    message = _refused(capsys, monkeypatch, tmp_path, *_folder(tmp_path / "empty"))
    assert "empty" in message
    assert ".jpg" in message


def test_text_files_named_jpg_are_named_where_nothing_else_can_be_read(capsys, monkeypatch, tmp_path, photos):
    """One among others is the ledger's (tests/train/test_bad_samples.py)."""
    for file in [*(path for path in photos.rglob("*") if path.is_file()), photos / "cat" / "page.jpg"]:
        file.write_text("<html>not found</html>", encoding="utf-8")
    message = _refused(capsys, monkeypatch, tmp_path, *_folder(photos))
    assert "not_an_image" in message
    assert any(file.name in message for file in photos.rglob("*.*"))


def test_labels_beyond_the_head_are_named(capsys, monkeypatch, tmp_path, photos):
    head = repr({"encoder": {"name": "vit", "variant": "mu/8"}, "head": {"name": "linear_head", "num_classes": 1}})
    objective = "--config.objective=" + repr({"name": "supervised"})
    message = _refused(capsys, monkeypatch, tmp_path, *_folder(photos), f"--config.networks={head}", objective)
    assert "num_classes" in message
    assert "2 classes" in message


@pytest.mark.parametrize("words", [[], ["trian"], ["train"], ["train", QUICKSTART], ["report"], ["eval"]])
def test_an_incomplete_command_says_what_is_missing(capsys, words):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "vfm" in out + err


def test_a_workdir_that_is_a_file_is_refused(capsys, monkeypatch, tmp_path):
    (tmp_path / "run").write_text("", encoding="utf-8")
    assert "workdir" in _refused(capsys, monkeypatch, tmp_path, QUICKSTART)


def test_a_bucket_is_no_workdir(capsys):
    assert cli.main(["train", QUICKSTART, "--workdir=gs://bucket/run"]) == 2
    assert "Mount the bucket" in capsys.readouterr().err
    assert not pathlib.Path("gs:").exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="meae"):
        cli.main(["train", QUICKSTART, f"--workdir={tmp_path / 'run'}", "--config.objective.name=meae", "--debug"])


def test_config_shows_values_defaults_and_overrides(capsys):
    assert cli.main(["config", QUICKSTART, "--config.seed=7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "config.seed = 7  (the file has 0)" in lines
    assert "config.optimizer.eps = 1e-08  (default)" in lines
    assert cli.main(["config", QUICKSTART, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objective"]["name"] == "mae"


def test_inspect_lists_every_leaf_with_its_count(capsys):
    assert cli.main(["inspect", QUICKSTART, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"leaf", "shape", "count", "dtype", "sharding"} == set(rows[0])
    kernel = next(row for row in rows if row["leaf"] == "encoder/transformer/block_0/mlp/up/kernel")
    assert (kernel["shape"], kernel["count"], kernel["dtype"]) == ("96 x 384", 96 * 384, "float32")


def test_items_of_a_tuple_can_be_overridden_by_number():
    recipe = cli.override(cli.load_recipe("configs/quickstart.py"), [("views.image.ops.0.max_pixels", "5")], "it")
    assert recipe["views"]["image"]["ops"][0]["max_pixels"] == 5


@pytest.mark.parametrize(
    "words",
    [
        ["--config.mesh.fsdp=8", "--config.mesh.data=1"],
        ["--config.ema.momentum=0.99"],
        ["--config.evals.knn.every_epochs=2"],
        ["--config.checkpoints.every_examples=500", "--config.checkpoints.keep_last=3"],
        ["--config.schedule.warmup_steps=10"],
        ["--config.optimizer.clip_norm=1.0", "--config.networks.encoder.drop_path=0.1"],
        ["--config.total_examples=4000", "--config.schedule.warmup_epochs=0.1"],
    ],
)
def test_a_field_that_the_recipe_leaves_out_can_be_set(capsys, words):
    assert cli.main(["inspect", QUICKSTART, "--json", *words]) == 0, capsys.readouterr().err


def test_an_unknown_field_of_the_recipe_itself_is_named(capsys, monkeypatch, tmp_path):
    recipe = tmp_path / "mine.py"
    lines = ("from configs import quickstart", "def get_config():", "  c = quickstart.get_config()")
    recipe.write_text("\n".join((*lines, "  c.objectve = 1", "  return c")), encoding="utf-8")
    monkeypatch.syspath_prepend(".")
    assert "'objective'" in _refused(capsys, monkeypatch, tmp_path, f"--config={recipe}")


def test_a_duration_replaces_the_one_in_another_unit():
    recipe = cli.override(cli.load_recipe("configs/quickstart.py"), [("total_steps", "7")], "it")
    assert (recipe["total_steps"], recipe["total_epochs"]) == (7, None)


# ------------------------------------------------------------------------------------------------------------ weights

VIT = "tests/golden/models/hf_vit_cls"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["weights"], ["say what to do", "inspect", "verify"]),
        (["weights", "inspct", VIT], ["say what to do", "inspect"]),
        (["weights", "inspect"], ["no PATH", "vfm weights inspect PATH"]),
        (["weights", "inspect", "--names"], ["no PATH"]),
        (["weights", "inspect", "/no/such/file.pth"], ["nothing at /no/such/file.pth"]),
        (["weights", "inspect", "dinov2_smal"], ["dinov2_smal", "vfm weights list"]),
        (["weights", "inspect", "README.md"], ["README.md", "safetensors"]),
        (["weights", "inspect", "tests/golden/losses/simclr.npz"], ["of no family known here"]),
        (["weights", "inspect", "vfm_jax"], ["vfm_jax"]),
        (["weights", "inspect", VIT, "--family=hf/vt"], ["'hf/vt'", "'hf/vit'"]),
        (["weights", "inspect", VIT, "--family=hf/dinov2"], ["cannot be read as hf/dinov2"]),
        (["weights", "inspect", VIT, "--heads=many"], ["--heads=many", "whole number"]),
        (["weights", "inspect", VIT, "--heads"], ["--heads has no value"]),
        (["weights", "inspect", VIT, "--image-size=1x2x3"], ["HEIGHTxWIDTH"]),
        (["weights", "inspect", VIT, "--nams"], ["--nams", "'--names'"]),
        (["weights", "inspect", VIT, "--config.seed=1"], ["config.seed", "no recipe"]),
        (["weights", "list", "--jsn"], ["--jsn", "'--json'"]),
        (["weights", "import", VIT], ["no --out"]),
        (["weights", "import", VIT, "--out=tests"], ["is there already"]),
        (["weights", "export", VIT, "--out=x"], ["no --format"]),
        (["weights", "export", VIT, "--format=onxx", "--out=x"], ["'onxx'", "hf, timm"]),
        (["weights", "export", "/no/run", "--format=hf", "--out=x"], ["/no/run"]),
        (["weights", "verify", VIT], ["no B", "vfm weights verify A B"]),
        (["weights", "verify", VIT, VIT], ["no --images"]),
        (["weights", "verify", VIT, VIT, "--images=/no/folder"], ["/no/folder"]),
        (["weights", "verify", VIT, VIT, "--images=tests", "--atol=small"], ["holds no image"]),
        (["embed"], ["no --weights"]),
        (["embed", f"--weights={VIT}", "--data=tests", "--out=x.csv"], [".npz or .parquet"]),
        (["embed", f"--weights={VIT}", "--data=tests", "--out=x.npz"], ["holds no image"]),
        (["embed", f"--weights={VIT}", "--data=tests", "--out=x.npz", "--batch-size=0"], ["--batch-size=0"]),
        (["embed", f"--weights={VIT}", "--data=tests", "--out=x.npz", "--pool=max"], ["mean_patch"]),
        (["eval", QUICKSTART], ["workdir"]),
        (["eval", "--config=configs/adapt/vit_cifar10.py"], ["which weights", "--config.init.weights=PATH"]),
        (["eval", "--config=configs/adapt/evaluate.py", "--config.init.weights=/no/such"], ["nothing at /no/such"]),
        (["eval", "--config=configs/adapt/evaluate.py", "--config.init=None"], ['"pretrained"']),
        (["eval", "--config=configs/adapt/evaluate.py", f"--config.init.weights={VIT}"], ["config.data.path"]),
        (
            ["eval", "--config=configs/adapt/evaluate.py", f"--config.init.weights={VIT}", "--config.init.hed=keep"],
            ["config.init.hed", "'head'"],
        ),
    ],
)  # fmt: skip
def test_a_mistake_with_weights_is_answered_in_a_few_lines(capsys, words, expected):
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert 1 <= len(err.strip().splitlines()) <= 5
    for part in expected:
        assert part in err


def test_a_wrong_tolerance_is_named(capsys, photos):
    assert cli.main(["weights", "verify", VIT, VIT, f"--images={photos}", "--atol=small"]) == 2
    assert "--atol=small: expected a number" in capsys.readouterr().err


def test_public_checkpoints_are_listed(capsys):
    assert cli.main(["weights", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) > 50
    assert {"name", "family", "licence", "from"} <= set(rows[0])


def test_a_file_is_inspected_by_network_and_leaf_by_leaf(capsys):
    assert cli.main(["weights", "inspect", VIT, "--names"]) == 0
    out = capsys.readouterr().out
    for part in ("encoder", "linear_head", "read as hf/vit", "head/logits/bias <- classifier.bias"):
        assert part in out
    assert cli.main(["weights", "inspect", VIT, "--json"]) == 0
    assert [row["network"] for row in json.loads(capsys.readouterr().out)] == ["encoder", "head"]


def test_weights_are_imported_and_exported_and_stay_equal(capsys, tmp_path, photos):
    assert cli.main(["weights", "import", VIT, f"--out={tmp_path / 'ours'}"]) == 0
    assert "fresh 0, unused 0" in capsys.readouterr().out
    assert cli.main(["weights", "export", str(tmp_path / "ours"), "--format=hf", f"--out={tmp_path / 'theirs'}"]) == 0
    assert cli.main(["weights", "verify", VIT, str(tmp_path / "theirs"), f"--images={photos}", "--count=2"]) == 0


def test_public_weights_are_evaluated_without_a_run(capsys, photos):
    words = ["eval", "--config=configs/adapt/evaluate.py", f"--config.init.weights={VIT}", "--json"]
    words += [f"--config.data.path={photos}", "--config.data.split=None", "--config.eval_data.test.split=None"]
    assert cli.main([*words, "--config.eval_batch_size=8", "--config.evals={'knn': {'num_neighbors': 1}}"]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert row == {"evaluation": "knn/accuracy", "value": 0.5}  # the two classes hold the same images
    assert "read as hf/vit" in err
