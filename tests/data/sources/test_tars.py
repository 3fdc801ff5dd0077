"""Images in tar shards, on a disk, over HTTP and in fsspec's memory."""

import functools
import http.server
import io
import json
import pickle
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.bad import BadSample
from vfm_jax.data.pipeline import train_batches
from vfm_jax.data.sources import SOURCES
from vfm_jax.data.sources.storage import files_of, shown

pytestmark = pytest.mark.usefixtures("cache")


def tars(path, **given):
    return SOURCES["tars"](str(path), **({"canvas_size": (8, 12)} | given))


@pytest.fixture
def image(picture, encoded):
    return lambda seed: encoded(picture(6, 9, seed), "PNG")


@pytest.fixture
def shards(tmp_path, write_tar, image):
    """Two shards of webdataset's, of three and two samples."""
    folder = tmp_path / "shards"
    for shard, seeds in enumerate(((0, 1, 2), (3, 4))):
        members = []
        for seed in seeds:
            fields = json.dumps({"label": ["cat", "dog"][seed % 2], "width": 9}).encode()
            members += [(f"{seed:04}.png", image(seed)), (f"{seed:04}.cls", b"%d\n" % (seed % 3)),
                        (f"{seed:04}.json", fields)]  # fmt: skip
        write_tar(folder / f"x-{'train' if shard == 0 else 'val'}-{shard:03}.tar", members)
    return folder


def _equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


def test_members_of_a_key_are_one_example(shards, picture):
    source = tars(shards, split="all")
    assert (len(source), source.class_names, source.labels.tolist()) == (5, ("0", "1", "2"), [0, 1, 2, 0, 1])
    for i in range(5):
        example = source[i]
        np.testing.assert_array_equal(example["image"][:6, :9], picture(6, 9, i))
        assert (example["label"], example["index"], example["size"].tolist()) == (i % 3, i, [6, 9])
    assert source.name(3) == f"{shards}/x-val-001.tar, x-val-001/0003.png"
    _equal(pickle.loads(pickle.dumps(source))[4], source[4])
    with ThreadPoolExecutor(8) as pool:
        for i, example in enumerate(pool.map(source.__getitem__, list(range(5)) * 20)):
            _equal(example, source[i % 5])
    with train_batches(source, batch_size=4, seed=0) as batches:
        assert next(batches)["image"].shape == (4, 8, 12, 3)


def test_splits_are_shards_folders_or_parts(shards, tmp_path, write_tar, image):
    with pytest.raises(UserError, match=r"has the splits train, val\. Set config.data.split='train', or 'all'"):
        tars(shards)
    assert (len(tars(shards, split="train")), len(tars(shards, split="val"))) == (3, 2)
    assert tars(shards, split="val").class_names == ("0", "1", "2")
    parts = [tars(shards, split=part) for part in ("all[:40%]", "all[40%:]")]
    assert sorted(one.name(i) for one in parts for i in range(len(one))) == sorted(
        tars(shards, split="all").name(i) for i in range(5)
    )
    with pytest.raises(UserError, match=r"split is 'vall', but .* has 'train', 'val'\. Did you mean 'val'\?"):
        tars(shards, split="vall")
    folders = [(f"set/{part}/{name}/{i}.png", image(i)) for part in ("train", "val") for name in "ab" for i in (0, 1)]
    write_tar(tmp_path / "folders.tar", [*folders, ("set/train/c/0.v2.png", image(5))])
    source = tars(tmp_path / "folders.tar", split="val")
    assert (len(source), source.class_names, source.labels.tolist()) == (4, ("a", "b", "c"), [0, 0, 1, 1])
    assert tars(tmp_path / "folders.tar", split="train").labels.tolist() == [0, 0, 1, 1, 2]


def test_classes_come_from_whichever_member_says_them(shards, tmp_path, write_tar, image):
    named = tars(shards, split="all", label_key="label")
    assert (named.class_names, named.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1, 0])
    assert tars(shards, split="all", label_key="label", class_names=("dog", "cat")).labels.tolist() == [1, 0, 1, 0, 1]
    (tmp_path / "names").write_text("zero\none\ntwo\nthree\n")
    assert tars(shards, split="all", class_names=str(tmp_path / "names")).class_names == (
        "zero",
        "one",
        "two",
        "three",
    )
    bare = tars(shards, split="all", label_key="")
    assert (bare.class_names, bare[0]["label"]) == (None, -1)
    with pytest.raises(UserError, match=r"label_key is 'lable'.*label, width.*Did you mean 'label'"):
        tars(shards, split="all", label_key="lable")
    with pytest.raises(UserError, match=r"run from 0 to 2; expected class ids from 0 up, below 2"):
        tars(shards, split="all", class_names=("a", "b"))
    with pytest.raises(UserError, match=r"'cat' in .* is none of config.data.class_names. Did you mean 'cats'"):
        tars(shards, split="all", label_key="label", class_names=("cats", "dog"))
    write_tar(tmp_path / "one.tar", [("1.png", image(1)), ("1.cls", b"0"), ("2.png", image(2))])
    with pytest.raises(UserError, match="1 of 2 labels in .* are missing"):
        tars(tmp_path / "one.tar")
    write_tar(tmp_path / "two.tar", [("1.png", image(1)), ("1.jpg", image(1)), ("1.mask.png", image(2))])
    with pytest.raises(UserError, match=r"1 in .* has several images: png, jpg.*image_key='png'"):
        tars(tmp_path / "two.tar")
    assert tars(tmp_path / "two.tar", image_key="mask.png").name(0).endswith("1.mask.png")
    write_tar(tmp_path / "none.tar", [("1.mp4", b"video")])
    with pytest.raises(UserError, match=r"No images in .*none\.tar: looked for \.jpg.*found mp4"):
        tars(tmp_path / "none.tar")


def test_patterns_name_shards(shards):
    assert len(tars(shards / "x-{train-000,val-001}.tar", split="all")) == 5
    assert len(tars(shards / "x-*.tar", split="all")) == 5
    assert len(tars(shards / "x-val-{001..001}.tar")) == 2
    assert files_of("memory://a/{08..11}.tar", ".tar") == [f"memory://a/{i:02}.tar" for i in range(8, 12)]
    with pytest.raises(UserError, match="no .tar file is there"):
        tars(shards / "y-*.tar")
    with pytest.raises(UserError, match="more than 131072 files"):
        tars(shards / "{0..999999999}.tar")
    with pytest.raises(UserError, match="at most 131072"):
        tars(shards / ("{0..999}" * 3 + ".tar"))
    with pytest.raises(UserError, match="Did you mean 'shards'"):
        tars(shards.parent / "shard")


def test_a_tar_that_goes_away_or_shrinks_gives_bad_records(shards):
    source = tars(shards, split="train")
    file = shards / "x-train-000.tar"
    content = file.read_bytes()
    file.write_bytes(content[:600])
    with pytest.raises(BadSample, match=r"x-train-000\.tar, x-train-000/0002\.png.*\(truncated\)"):
        source[2]
    file.unlink()
    with pytest.raises(BadSample, match=r"\(missing\)"):
        source[0]


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Files with byte ranges, as buckets and web servers give them; counts what it sends."""

    ranges, sent = True, 0

    def log_message(self, *args):
        pass

    def send_head(self):
        with open(self.translate_path(self.path), "rb") as file:
            content = file.read()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = content
        if wanted and self.ranges:
            part = content[int(wanted[1]) : int(wanted[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            type(self).sent += len(part)
        return io.BytesIO(part)


@pytest.fixture
def served(shards):
    """(handler's settings) -> a URL where the shards are served."""
    pytest.importorskip("aiohttp")
    servers = []

    def serve(**settings):
        handler = type("Handler", (_Ranges,), settings)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(shards)))
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}", handler

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_shards_are_read_over_http_by_ranges(shards, served, cache):
    url, handler = served()
    source = tars(f"{url}/x-{{train-000,val-001}}.tar?signature=secret", split="all")
    local = tars(shards, split="all")
    assert len(list((cache / "vfm_jax" / "tars").iterdir())) == 2
    handler.sent = 0
    for i in (4, 0):
        _equal(source[i], local[i])
    assert handler.sent < 4000  # two pictures, not two shards of 10 kB
    assert "secret" not in source.name(0)
    _equal(pickle.loads(pickle.dumps(source))[1], local[1])
    handler.sent = 0
    tars(f"{url}/x-{{train-000,val-001}}.tar", split="all", label_key="cls")  # indexed before
    assert handler.sent == 0


def test_a_server_without_ranges_is_said(served):
    url, _ = served(ranges=False)
    with pytest.raises(UserError, match=r"Cannot read .*x-val-001\.tar.*(whole files only|without random access)"):
        tars(f"{url}/x-val-001.tar")
    with pytest.raises(UserError, match=r"Cannot read http://127.*none\.tar"):
        tars(f"{url}/none.tar")


def test_shards_are_read_from_any_storage_of_fsspec(shards):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for file in shards.glob("*.tar"):
        system.pipe(f"/bucket/{file.name}", file.read_bytes())
    try:
        local = tars(shards, split="all")
        for pattern in ("memory://bucket/x-*.tar", "memory://bucket", "memory://bucket/x-{train-000,val-001}.tar"):
            _equal(tars(pattern, split="all")[3], local[3])
        with pytest.raises(UserError, match="no .tar file is there"):
            tars("memory://bucket/y-*.tar")
        source = tars("memory://bucket", split="all")
        system.rm("/bucket/x-val-001.tar")
        with pytest.raises(BadSample, match=r"\(missing\)"):
            source[4]
    finally:
        system.rm("/bucket", recursive=True)


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs"), ("https", "aiohttp")])
def test_a_storage_whose_package_is_missing_is_named(monkeypatch, scheme, package):
    pytest.importorskip("fsspec")
    for name in [name for name in sys.modules if name.startswith("fsspec.implementations.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    for source in (tars, SOURCES["coco"]):
        with pytest.raises(UserError, match=rf"Reading {scheme}:// needs packages.*\n.*vfm-jax\[cloud\]"):
            source(f"{scheme}://bucket/x.tar")


def test_a_storage_of_no_package_is_said():
    pytest.importorskip("fsspec")
    with pytest.raises(UserError, match="gopher:// is not known as a storage"):
        tars("gopher://bucket/x.tar")


def test_no_secret_of_a_url_is_shown():
    assert shown("https://me:pass@host/x.tar?X-Amz-Signature=1") == "https://host/x.tar"
