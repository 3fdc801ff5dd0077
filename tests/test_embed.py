"""Features of a folder: one row an image, both formats alike, resumed bit for bit, broken images named."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vfm_jax import cli, embed
from vfm_jax.core.errors import UserError

REPOSITORY = pathlib.Path(__file__).parents[1]
WEIGHTS = REPOSITORY / "tests" / "golden" / "models" / "hf_dinov2_reg"


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(embed, "PART_IMAGES", 8)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty images in two folders, and two files that are none."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(20):
        path = folder / ("a" if i % 3 else "b/c") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30 + i, 40, 3), np.uint8)).save(path)
    (folder / "a" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "b" / "text.png").write_text("no image")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_text("not looked at")
    return folder


def run(photos, out, **more):
    return embed.embed(
        str(WEIGHTS), photos, out, **{"batch_size": 8, "say": lambda account: None, "image_size": 28} | more
    )


def test_every_image_has_a_row_and_broken_ones_are_named(photos, tmp_path):
    made = run(photos, tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        ids, features = file["ids"], file["features"]
    assert (made.num_images, made.width, made.resumed) == (20, 32, 0)
    assert features.shape == (20, 32)
    assert features.dtype == np.float32
    assert list(ids) == sorted(p.relative_to(photos).as_posix() for p in photos.glob("[ab]/**/[0-9]*.png"))
    assert set(made.bad) == {"a/torn.jpg", "b/text.png"}
    lines = [json.loads(line) for line in (tmp_path / "f.npz.bad.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == set(made.bad)
    assert all(line["reason"] for line in lines)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.npz", "f.npz.bad.jsonl"]


def test_a_row_is_the_feature_of_its_image(photos, tmp_path):
    from vfm_jax.weights.load import load_pretrained

    run(photos, tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        rows = dict(zip(file["ids"].tolist(), file["features"], strict=True))
    loaded = load_pretrained(WEIGHTS, image_size=28)
    for name in ("a/1.png", "b/c/18.png"):
        features = loaded.model.apply(loaded.variables, jnp.asarray(loaded.preprocessing(photos / name)))
        np.testing.assert_allclose(rows[name], features.pooled[0], rtol=1e-4, atol=1e-5)


def test_parquet_and_npz_hold_the_same(photos, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow, which is not installed")
    run(photos, tmp_path / "f.npz", pool="mean_patch")
    run(photos, tmp_path / "f.parquet", pool="mean_patch")
    table = pq.read_table(tmp_path / "f.parquet")
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert table["id"].to_pylist() == file["ids"].tolist()
        np.testing.assert_array_equal(np.array(table["feature"].to_pylist(), np.float32), file["features"])


CHILD = """
import os, signal, sys
from vfm_jax import cli, embed
embed.PART_IMAGES = 8
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
write, count = embed._write_part, 0
def counted(*args):
    global count
    count += 1
    if count == 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    write(*args)
embed._write_part = counted
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("signal_name", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGINT", 130)])
def test_a_call_that_was_stopped_goes_on_and_ends_bit_equal(photos, tmp_path, signal_name, code):
    """The first part stays, the rest is made by the second call, whatever ended the first."""
    out = tmp_path / "f.npz"
    words = ["embed", f"--weights={WEIGHTS}", f"--data={photos}", f"--out={out}", "--batch-size=8", "--image-size=28"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    stopped = subprocess.run(
        [sys.executable, "-c", CHILD, signal_name, *words], env=env, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert stopped.returncode == code, stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not out.exists()
    assert [p.name for p in sorted((tmp_path / "f.npz.parts").glob("*.npz"))] == ["0000000000.npz"]
    made = run(photos, out)
    assert made.resumed == 8
    run(photos, tmp_path / "unbroken.npz")
    with np.load(out) as one, np.load(tmp_path / "unbroken.npz") as other:
        for name in ("ids", "features"):
            np.testing.assert_array_equal(one[name], other[name])
    assert set(made.bad) == {"a/torn.jpg", "b/text.png"}
    assert not (tmp_path / "f.npz.parts").exists()


def test_parts_of_another_call_are_not_mixed_in(photos, tmp_path):
    parts = tmp_path / "f.npz.parts"
    parts.mkdir()
    (parts / "call.json").write_text(json.dumps({"weights": "others"}))
    with pytest.raises(UserError, match="another call"):
        run(photos, tmp_path / "f.npz")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(out="f.csv"), r"\.npz or \.parquet"),
        (dict(pool="max"), "mean_patch"),
        (dict(data="nothing"), "there is no folder"),
        (dict(data="empty"), "holds no image"),
        (dict(data="broken"), "None of the 1 images could be read"),
        (dict(out="there.npz"), "is there already"),
    ],
)
def test_a_mistake_is_answered_in_words(tmp_path, photos, changes, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no")
    (tmp_path / "there.npz").write_text("kept")
    data = tmp_path / changes["data"] if "data" in changes else photos
    with pytest.raises(UserError, match=expected):
        run(data, tmp_path / changes.get("out", "f.npz"), **{k: v for k, v in changes.items() if k == "pool"})
    assert (tmp_path / "there.npz").read_text() == "kept"


def test_an_encoder_without_a_class_token_says_so(photos, tmp_path):
    weights = WEIGHTS.with_name("hf_resnet")
    with pytest.raises(UserError, match="no class token"):
        embed.embed(str(weights), photos, tmp_path / "f.npz", pool="class", say=lambda account: None)


def test_two_towers_are_embedded_by_the_image_tower(photos, tmp_path, capsys):
    words = ["embed", f"--weights={WEIGHTS.with_name('hf_clip')}", f"--data={photos}", f"--out={tmp_path / 'f.npz'}"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "20 images: 24 numbers each" in out
    assert "2 could not be read" in out
