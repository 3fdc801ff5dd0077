import getpass
import json
import pathlib
import platform
import subprocess

import jax

import vfm_jax
from vfm_jax.report import environment
from vfm_jax.report.environment import hardware, versions


def test_versions_are_those_that_run():
    found = versions()
    assert found["jax"] == jax.__version__
    assert found["python"] == platform.python_version()
    assert found["vfm_jax"] == vfm_jax.__version__


def test_hardware_counts_the_devices_and_this_process_share_of_the_machine():
    found = hardware()
    assert (found["platform"], found["num_devices"]) == ("cpu", jax.device_count())
    assert found["cores"] >= 1
    assert found["memory_gb"] > 0.1


def test_neither_machine_nor_user_nor_folder_is_named():
    text = json.dumps([versions(), hardware()])
    for private in (platform.node(), str(pathlib.Path.home()), str(pathlib.Path.cwd())):
        assert len(private) < 2 or private not in text
    assert f'"{getpass.getuser()}"' not in text


def test_a_commit_is_named_and_marked_when_files_differ(tmp_path):
    def git(*args):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *args], check=True)

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "first")
    commit = environment._git_commit(tmp_path.resolve())
    assert len(commit) == 12
    (tmp_path / "file").write_text("two")
    assert environment._git_commit(tmp_path.resolve()) == f"{commit}+changes"


def test_somebody_elses_repository_around_us_is_not_ours(tmp_path):
    subprocess.run(["git", "-C", tmp_path, "init", "-q"], check=True)
    (tmp_path / "site-packages").mkdir()
    assert environment._git_commit((tmp_path / "site-packages").resolve()) is None
