"""`vfm data`: what is in a data set, what is wrong with it, and how fast it is read, by one command."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from vfm_jax import cli, data_report
from vfm_jax.core.tables import build
from vfm_jax.data.sources import SOURCES


@pytest.fixture(autouse=True)
def _here(monkeypatch, request, tmp_path):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir or "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _image(seed, height=24, width=32):
    coarse = np.random.RandomState(seed).randint(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path):
    """Two splits of two classes: one picture in both splits, one twice with two labels, and one cut short."""
    root = tmp_path / "photos"
    for i, (split, label) in enumerate((s, c) for s in ("train", "val") for c in ("cat", "dog")):
        (root / split / label).mkdir(parents=True)
        for j in range(4):
            _image(10 * i + j).save(root / split / label / f"{j}.png")
    _image(0).save(root / "val" / "cat" / "leak.png")
    _image(1).save(root / "train" / "dog" / "<twice>.bmp")
    cut = root / "train" / "cat" / "3.png"
    cut.write_bytes(cut.read_bytes()[:200])
    return root


RECIPE = """
import ml_collections
def get_config():
    c = ml_collections.ConfigDict()
    c.total_steps = 3
    c.data = dict(name="folder", path={path!r}, split="train", canvas_size=32, batch_size=8)
    norm = dict(name="normalize", mean=(0.5, 0.5, 0.5), std=0.25)
    crop, flip = dict(name="random_resized_crop", size=16), dict(name="flip", probability=0.5)
    c.views = {{
        "global": dict(num_views=2, ops=(crop, flip, norm)),
        "local": dict(num_views=1, ops=(dict(name="random_resized_crop", size=8), norm)),
    }}
    c.eval_views = dict(image=dict(ops=(dict(name="center_crop", size=16), norm)))
    c.eval_data = dict(test=dict(split="val"))
    c.networks = dict(
        encoder=dict(name="vit", variant="mu/8", width=16, depth=1, heads=1, mlp_dim=16),
        head=dict(name="dino_head", out_dim=16, hidden_dim=16, bottleneck_dim=8),
    )
    c.objective = dict(name="dino")
    c.optimizer = dict(name="adamw")
    c.schedule = dict(name="constant", base=1e-3)
    return c
"""


@pytest.fixture
def recipe(photos, tmp_path):
    file = tmp_path / "recipe.py"
    file.write_text(RECIPE.format(path=str(photos)), encoding="utf-8")
    return file


def _json(capsys, *words):
    assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_folder_is_told_with_its_faults(capsys, photos, tmp_path):
    facts = _json(capsys, "data", photos, f"--out={tmp_path / 'page.html'}", "--config.data.canvas_size=32")
    train, val = facts["splits"]["train"], facts["splits"]["val"]
    assert (train["num_records"], train["num_good"], train["classes"]) == (9, 8, {"cat": 3, "dog": 5})
    assert list(train["bad"].values()) == [1]
    assert train["bad_records"][0]["name"].endswith("3.png")
    assert (val["num_bad"], val["canvas"], val["size"]["height"]["max"]) == (0, "32 × 32", 24)
    found = {tuple(repeat["splits"]): repeat for repeat in facts["repeats"]}
    assert found["train", "val"]["num_same"] == 1
    assert found["train", "val"]["pairs"][0]["second"].endswith("leak.png")
    assert (found["train", "train"]["num_same"], found["train", "train"]["num_relabelled"]) == (1, 1)
    assert facts["rate"]["images_per_core_second"] > 0
    pixels = [np.asarray(_image(seed)) / 255 for seed in (0, 1, 2, 1, 10, 11, 12, 13)]
    np.testing.assert_allclose(train["statistics"]["mean"], np.mean(pixels, axis=(0, 1, 2)), rtol=1e-12)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;twice&gt;.bmp" in page
    assert "<twice>" not in page


def test_the_terminal_says_the_worst_first(capsys, photos, tmp_path):
    assert cli.main(["data", str(photos), f"--out={tmp_path / 'page.html'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Leak: 1 of 9 pictures of val are in train") for line in lines)
    assert any(line.startswith("Bad: 1 of 9 records of train") for line in lines)
    assert lines[-1] == f"Page: {tmp_path / 'page.html'}"


def test_a_recipe_is_shown_as_its_network_sees_it(capsys, recipe, tmp_path):
    facts = _json(capsys, "data", recipe, f"--out={tmp_path / 'page.html'}", "--step-seconds=0.001")
    (need,) = facts["needs"]["rows"]
    assert need["images_per_second"] == 8000
    assert facts["needs"]["said"].endswith("The step time is from --step-seconds.")
    assert list(facts["splits"]) == ["train", "test"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for label in (
        "canvas · 32 × 32",
        "global 1 · 16 × 16",
        "global 2 · 16 × 16",
        "local · 8 × 8",
        "image · 16 × 16",
        "test · ",
    ):
        assert label in page


def test_the_views_shown_are_those_of_the_first_step(recipe):
    experiment, splits = data_report.splits_of(cli.override(cli.load_recipe(str(recipe)), [], "it"))
    rows, _ = data_report._views(experiment, splits)
    from vfm_jax.core.keys import key_for

    with experiment.train_batches(0) as batches:
        batch = next(batches)
    made = jax.jit(experiment.views)(key_for(experiment.seed, 0, "views", 0), batch)
    for i, (_, tiles) in enumerate(rows[:6]):
        assert len(tiles) == 1 + 2 + 1
        for view, tile in zip(made["global"][i], tiles[1:3], strict=True):
            np.testing.assert_allclose(np.clip(np.asarray(view) * 0.25 + 0.5, 0, 1), tile.pixels, atol=1e-6)


def test_the_rate_of_a_finished_run_says_what_is_needed(capsys, recipe, tmp_path):
    (tmp_path / "summary.json").write_text('{"batch_size": 8, "images_per_second": 16.0}')
    facts = _json(capsys, "data", recipe, f"--out={tmp_path / 'page.html'}", f"--workdir={tmp_path}", "--limit=4")
    assert [row["step_seconds"] for row in facts["needs"]["rows"]] == [0.5]
    assert facts["splits"]["train"]["num_read"] == 4


ONE_CROP = """    c.views = dict(image=dict(ops=(crop, flip, norm)))
    c.networks = dict(
        encoder=dict(name="vit", variant="mu/8", width=16, depth=1, heads=1, mlp_dim=16),
        head=dict(name="linear_head", num_classes=2),
    )
    c.objective = dict(name="supervised")
    return c
"""


@pytest.fixture
def one_crop(recipe):
    """The recipe, with one view that begins with a random crop."""
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("    return c\n", ONE_CROP), encoding="utf-8")
    return recipe


def test_both_places_of_a_single_crop_are_measured(capsys, one_crop, recipe, tmp_path):
    page = tmp_path / "page.html"
    crop = _json(capsys, "data", one_crop, f"--out={page}")["crop"]
    assert crop["backend"] == "cpu"
    assert min(crop["core_seconds_per_image"].values()) > 0
    assert "An image costs a core" in page.read_text(encoding="utf-8")
    recipe_with_it = cli.override(cli.load_recipe(str(one_crop)), [], "it")
    recipe_with_it["data"]["crop"] = dict(size=16)  # a recipe that says where it is asked no more
    assert data_report.splits_of(recipe_with_it)[0].host_crop is None


def test_the_crop_of_several_views_is_the_devices_alone(recipe):
    assert data_report.splits_of(cli.override(cli.load_recipe(str(recipe)), [], "it"))[0].host_crop is None


def test_what_the_host_would_do_is_what_the_view_does(one_crop):
    fields = cli.override(cli.load_recipe(str(one_crop)), [], "it")
    place = data_report.splits_of(fields)[0].host_crop
    assert (place.crop.size, place.crop.scale, place.crop.flip, place.num_operations) == (16, (0.08, 1.0), 0.5, 2)
    image = np.full((1, 16, 16, 3), 255, np.uint8)
    made = place.views(jax.random.key(0), {"image": image, "index": np.zeros(1, np.int32)})
    np.testing.assert_allclose(made["image"], 2.0)  # normalized, and nothing else
    bicubic = dict(fields["views"]["image"]["ops"][0], interpolation="bicubic")  # which the host does not have
    fields["views"] = dict(image=dict(ops=(bicubic, *fields["views"]["image"]["ops"][1:])))
    assert data_report.splits_of(fields)[0].host_crop is None


def test_the_advice_says_what_to_write_where_the_host_is_better():
    crop = data_report.Crop(size=224)
    said = data_report._crop_advice({"device": 0.008, "host": 0.002}, "cpu", crop, 2)
    assert "8 ms with its random crop on the device, 2 ms with it on the host (reading and views)" in said
    assert "config.data.crop=dict(size=224, scale=(0.08, 1.0), ratio=(0.75, 1.333), flip=0.5)" in said
    assert "first 2 operations" in said
    assert "as good" in data_report._crop_advice({"device": 0.002, "host": 0.002}, "cpu", crop, 2)
    assert "without what the tpu does" in data_report._crop_advice({"device": 0.003, "host": 0.002}, "tpu", crop, 1)


def test_an_index_is_made_once(capsys, photos):
    first, second = _json(capsys, "data", "index", photos), _json(capsys, "data", "index", photos)
    assert [(row["split"], row["read now"], row["bad"]) for row in first] == [("train", 9, 1), ("val", 9, 0)]
    assert [(row["read now"], row["from before"]) for row in second] == [(0, 9), (0, 9)]


def test_statistics_are_written_into_a_copy_of_the_recipe(capsys, recipe, tmp_path):
    out = tmp_path / "measured.py"
    assert cli.main(["data", "stats", str(recipe), f"--write={out}"]) == 0
    said = capsys.readouterr().out
    before, after = (cli.override(cli.load_recipe(str(file)), [], "it") for file in (recipe, out))
    source = build(
        SOURCES, {k: v for k, v in before["data"].items() if k in ("name", "path", "split", "canvas_size")}, ""
    )
    pixels = [source[i]["image"][:24] for i in range(9) if i != 3]
    mean, std = (getattr(np.stack(pixels) / 255, word)(axis=(0, 1, 2)) for word in ("mean", "std"))
    for views, place in (
        (after["views"]["global"], 2),
        (after["views"]["local"], 1),
        (after["eval_views"]["image"], 1),
    ):
        np.testing.assert_allclose(views["ops"][place]["mean"], mean, atol=5e-5)
        np.testing.assert_allclose(views["ops"][place]["std"], std, atol=5e-5)
        views["ops"][place].update(mean=(0.5, 0.5, 0.5), std=0.25)
    assert after == before
    assert 'dict(name="normalize", mean=(' in said
    assert "--config.views.global.ops.2.mean='(" in said


def test_a_channel_that_never_changes_has_a_usable_std(capsys, tmp_path):
    images = np.random.RandomState(0).randint(0, 255, (6, 8, 8, 6)).astype(np.uint8)
    images[..., 4] = 7
    np.save(tmp_path / "bands.npy", images)
    assert cli.main(["data", "stats", str(tmp_path / "bands.npy")]) == 0
    out = capsys.readouterr().out
    assert "Channel 4 never changes" in out
    rows = _json(capsys, "data", "stats", tmp_path / "bands.npy")
    assert len(rows) == 6
    np.testing.assert_allclose([row["std"] for row in rows], images.std(axis=(0, 1, 2)) / 255, atol=1e-12)
    facts = _json(capsys, "data", tmp_path / "bands.npy", f"--out={tmp_path / 'page.html'}")
    assert facts["splits"]["all"]["channels"] == 6
    assert "first three of 6 channels" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data"], ["no PATH", "vfm data PATH"]),
        (["data", "/no/such"], ["no/such"]),
        (["data", "configs/quikstart.py"], ["configs/quickstart.py"]),
        (["data", "configs/quickstart.py", "--config.data.splt=x"], ["splt", "'split'"]),
        (["data", "{photos}", "--config.seed=1"], ["--config.seed", "PATH"]),
        (["data", "{photos}", "--config.data.canvas=3"], ["canvas", "'canvas_size'"]),
        (["data", "{photos}", "--config.data.canvas_size=big"], ["canvas_size", "whole number"]),
        (["data", "{photos}", "--limit=0"], ["--limit=0"]),
        (["data", "{photos}", "--out=page.txt"], ["--out=page.txt", ".html"]),
        (["data", "{photos}", "--out=/no/such/page.html"], ["--out=/no/such/page.html", "folder"]),
        (["data", "{photos}", "--step-seconds=1"], ["--step-seconds", "PATH"]),
        (["data", "configs/quickstart.py", "--step-seconds=0"], ["--step-seconds=0"]),
        (["data", "configs/quickstart.py", "--step-seconds=fast"], ["--step-seconds=fast"]),
        (["data", "configs/quickstart.py", "--workdir=/no/run"], ["/no/run", "--step-seconds"]),
        (["data", "{photos}", "--jsn"], ["--jsn", "'--json'"]),
        (["data", "stats"], ["no PATH"]),
        (["data", "stats", "{photos}", "--write=x.py"], ["CONFIG"]),
        (["data", "stats", "configs/quickstart.py", "--write=README.md"], ["README.md", ".py"]),
        (["data", "stats", "configs/quickstart.py", "--write=configs/quickstart.py"], ["not there yet"]),
        (["data", "index", "{photos}", "--out=x"], ["--out"]),
    ],
)
def test_a_mistake_is_answered_in_a_few_lines(capsys, photos, words, expected):
    assert cli.main([word.replace("{photos}", str(photos)) for word in words]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert 1 <= len(err.strip().splitlines()) <= 5
    for part in expected:
        assert part in err
