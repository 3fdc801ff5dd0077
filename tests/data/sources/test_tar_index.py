"""Where members of tar files lie, as Python's own tarfile finds them; and tars made to do harm."""

import gzip
import io
import json
import os
import tarfile

import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.sources import tar_index
from vfm_jax.data.sources.tar_index import index_of

MEMBERS = [
    ("a/0001.jpg", b"x" * 700),
    ("a/0001.cls", b"17\n"),
    ("d" * 90 + "/" + "e" * 60 + ".png", b"long"),  # needs ustar's prefix, GNU's long name, or pax
    ("f" * 300 + ".png", b""),
    ("a/grün.jpg", b"z" * 512),
]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_lie_where_tarfile_says(tmp_path, write_tar, cache, kind):
    members = [m for m in MEMBERS if kind != tarfile.USTAR_FORMAT or len(m[0]) < 200]
    tar = write_tar(tmp_path / "x.tar", members, format=kind)
    index = index_of(str(tar))
    with tarfile.open(tar) as opened:
        expected = [(m.name, m.offset_data, m.size) for m in opened]
    assert [member[:3] for member in index.members] == expected
    content = tar.read_bytes()
    assert [content[m.first : m.first + m.size] for m in index.members] == [content for _, content in members]
    assert [m.label for m in index.members if m.label is not None] == ["17"]
    assert index.problems == ()


def test_the_index_is_made_once_and_anew_when_the_tar_changes(tmp_path, write_tar, cache, monkeypatch):
    tar = write_tar(tmp_path / "x.tar", MEMBERS)
    first = index_of(str(tar))
    assert json.loads((tmp_path / "x.tar.index").read_text())["size"] == tar.stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_scan", lambda *_: pytest.fail("read again"))
        assert index_of(str(tar)) == first
    write_tar(tar, MEMBERS[:2])
    assert len(index_of(str(tar)).members) == 2
    stamp = tar.stat().st_mtime_ns
    os.utime(tar, ns=(stamp + 1, stamp + 1))  # of the same size
    with monkeypatch.context() as patch:
        patch.setattr(tar_index, "_scan", lambda *_: (_ for _ in ()).throw(UserError("read again")))
        with pytest.raises(UserError, match="read again"):
            index_of(str(tar))
    assert not cache.exists()


def test_a_folder_that_nobody_may_write_is_left_alone(tmp_path, write_tar, cache):
    tar = write_tar(tmp_path / "fixed" / "x.tar", MEMBERS)
    tar.parent.chmod(0o555)
    try:
        first = index_of(str(tar))
        assert [file.name for file in tar.parent.iterdir()] == ["x.tar"]
    finally:
        tar.parent.chmod(0o755)
    (kept,) = (cache / "vfm_jax" / "tars").iterdir()
    assert json.loads(kept.read_text())["members"] == [list(member) for member in first.members]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[" * 10**5, b"[]", b'{"version": 1}', b"\xff\xfe"],
)
def test_a_damaged_index_is_made_anew(tmp_path, write_tar, cache, content):
    tar = write_tar(tmp_path / "x.tar", MEMBERS)
    first = index_of(str(tar))
    (tmp_path / "x.tar.index").write_bytes(content)
    assert index_of(str(tar)) == first


@pytest.mark.parametrize("member", [["a.jpg", 512, 10**9, None], ["a.jpg", -5, 3, None], ["a.jpg", 512, -1, None],
                                    [["a"], 512, 5, None], ["a.jpg", 512, "5", None], ["a.jpg", 512]])  # fmt: skip
def test_an_index_that_points_out_of_its_tar_is_made_anew(tmp_path, write_tar, cache, member):
    tar = write_tar(tmp_path / "x.tar", MEMBERS)
    first = index_of(str(tar))
    index = json.loads((tmp_path / "x.tar.index").read_text())
    (tmp_path / "x.tar.index").write_text(json.dumps(index | {"members": [member]}))
    assert index_of(str(tar)) == first


def _info(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_only_files_inside_the_archive_are_members(tmp_path, write_tar, cache):
    tar = write_tar(
        tmp_path / "data" / "x.tar",
        [
            (_info("link.jpg", tarfile.SYMTYPE, linkname="/etc/passwd"), None),
            (_info("hard.jpg", tarfile.LNKTYPE, linkname="../secret"), None),
            (_info("device.jpg", tarfile.CHRTYPE), None),
            (_info("pipe.jpg", tarfile.FIFOTYPE), None),
            (_info("folder", tarfile.DIRTYPE), None),
            ("../up.jpg", b"1"),
            ("a/../../up.jpg", b"2"),
            ("/etc/cron.jpg", b"3"),
            ("a/._good.jpg", b"macOS writes such"),
            ("./a/good.jpg", b"4"),
        ],
    )
    index = index_of(str(tar))
    assert [member.name for member in index.members] == ["a/good.jpg"]
    assert [line.partition(": ")[2] for line in index.problems] == [
        "1 members passed over: devices",
        "2 members passed over: links",
        "3 members passed over: names that lead out of the archive",
        "1 members passed over: pipes",
    ]
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == ["x.tar", "x.tar.index"]


def _header(name=b"a.jpg", size=b"00000000010\0", kind=b"0"):
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = size
    block[156:157] = kind
    block[257:263] = b"ustar\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


LARGE = (10**15).to_bytes(12, "big")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_header(), "'a.jpg' is cut off"),
        (_header(size=b"\x80" + LARGE[1:]) + b"x" * 512, "'a.jpg' is cut off"),
        (_header(size=b"\xff" * 12) + b"x" * 512, "is no number"),  # GNU's way to write -1: back to the same header
        (_header(size=b"-0000000512\0") + b"x" * 512, "cut off|no number|no header"),
        (_header(kind=b"L", size=b"\x80" + LARGE[1:]) + b"x" * 512, "a header of 1000000000000000 bytes"),
        (_header(kind=b"x", size=b"00000000020\0") + b"9999999999999999 a=b".ljust(512, b"\0"), "malformed"),
        (_header(kind=b"x", size=b"00000000020\0") + b"16 size=-100000\n".ljust(512, b"\0") + _header(), "no number"),
        (_header(kind=b"S"), "cut off"),
        (_header(size=b"0" * 12)[:300], "cut off at byte 0"),
        (b"<html>an error page</html>".ljust(1024), "no number|no header"),
        (b"", "empty"),
        (gzip.compress(b"x" * 600, mtime=0), r"is compressed.*gunzip"),
    ],
)
def test_a_tar_made_to_do_harm_is_refused(tmp_path, cache, content, message):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(UserError, match=message):
        index_of(str(tmp_path / "x.tar"))
    assert [file.name for file in tmp_path.iterdir()] == ["x.tar"]


def test_more_members_than_anyone_has_are_refused(tmp_path, write_tar, cache, monkeypatch):
    monkeypatch.setattr(tar_index, "MAX_MEMBERS", 4)
    tar = write_tar(tmp_path / "x.tar", MEMBERS)
    with pytest.raises(UserError, match="more than 4 members"):
        index_of(str(tar))


def test_tars_put_one_after_the_other_end_at_the_first_end(tmp_path, cache):
    """As tar itself reads them; a long chain of headers costs no stack."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as opened:
        info = tarfile.TarInfo("a.jpg")
        opened.addfile(info)
    chain = _header(kind=b"x", size=b"0" * 12) * 5000
    (tmp_path / "x.tar").write_bytes(chain + file.getvalue())
    assert [member.name for member in index_of(str(tmp_path / "x.tar")).members] == ["a.jpg"]
