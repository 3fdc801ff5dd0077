"""Tar files, and a cache folder of the test's own."""

import io
import tarfile

import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where indices go that cannot lie beside their tars."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def write_tar():
    """(file, [(name, content), ...]) -> the file, a tar of them."""

    def write(file, members, **options):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(file, "w", **options) as opened:
            for name, content in members:
                info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                if content is not None:
                    info.size = len(content)
                opened.addfile(info, None if content is None else io.BytesIO(content))
        return file

    return write
