"""Paths that a user typed."""

import pathlib

import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.sources.location import existing


def test_the_nearest_name_is_offered(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(
        UserError, match=r"config\.data\.path is .*photo.*nothing named 'photo'\. Did you mean 'photos'"
    ):
        existing(tmp_path / "photo" / "cats", "config.data.path")


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert existing("~", "config.data.path") == pathlib.Path(tmp_path)
