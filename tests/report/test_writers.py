import json
import math
import sys

import numpy as np
import pytest

from vfm_jax.report.writers import WRITERS, JsonLines, TensorBoard, WandB, read_metrics


def _write(path, rows):
    lines = JsonLines(path)
    for stage, step in rows:
        lines.write(stage, step, "train", {"loss": float(step)})
    lines.close()


def _places(path):
    return [(row["stage"], row["step"]) for row in read_metrics(path)]


def test_a_row_has_its_place_its_kind_and_the_numbers_unrounded(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.write(1, 20, "eval", {"knn/accuracy": np.float32(0.1), "count": 3})
    lines.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row.pop("time") > 1e9
    assert row == {"stage": 1, "step": 20, "kind": "eval", "knn/accuracy": float(np.float32(0.1)), "count": 3}


def test_numbers_that_are_not_finite_are_valid_json_and_come_back(tmp_path):
    lines = JsonLines(tmp_path / "m")
    lines.write(0, 1, "train", {"a": float("nan"), "b": float("inf"), "c": -float("inf")})
    lines.close()
    row = json.loads((tmp_path / "m").read_text(), parse_constant=pytest.fail)
    assert (row["a"], row["b"], row["c"]) == ("NaN", "Infinity", "-Infinity")
    (row,) = read_metrics(tmp_path / "m")
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


def test_a_row_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    lines = JsonLines(tmp_path / "m")
    lines.write(0, 1, "train", {"loss": 2.0})
    assert _places(tmp_path / "m") == [(0, 1)]
    lines.close()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_half_written_last_line_is_dropped_and_writing_goes_on(tmp_path, cut):
    path = tmp_path / "m"
    _write(path, [(0, 1), (0, 2), (0, 3)])
    path.write_bytes(path.read_bytes()[:-cut])
    assert _places(path)[:2] == [(0, 1), (0, 2)]
    _write(path, [(0, 4)])
    assert _places(path) == [(0, 1), (0, 2), (0, 4)]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_first_line_without_its_end_is_dropped(tmp_path):
    (tmp_path / "m").write_text('{"stage": 0, "st')
    _write(tmp_path / "m", [(0, 1)])
    assert _places(tmp_path / "m") == [(0, 1)]


def test_resuming_drops_later_steps_of_this_and_all_of_later_stages(tmp_path):
    path = tmp_path / "m"
    _write(path, [(0, 5), (0, 10), (1, 2), (1, 4), (1, 6), (2, 1)])
    lines = JsonLines(path)
    lines.truncate_after(1, 4)
    lines.write(1, 5, "train", {"loss": 0.0})
    lines.close()
    assert _places(path) == [(0, 5), (0, 10), (1, 2), (1, 4), (1, 5)]


def test_truncating_keeps_the_other_rows_byte_for_byte(tmp_path):
    lines = JsonLines(tmp_path / "m")
    lines.write(0, 1, "train", {"loss": 0.1 + 0.2, "bad": float("nan")})
    before = (tmp_path / "m").read_bytes()
    lines.write(0, 2, "train", {"loss": 1.0})
    lines.truncate_after(0, 1)
    lines.close()
    assert (tmp_path / "m").read_bytes() == before


def test_a_metric_may_not_be_named_like_a_field(tmp_path):
    lines = JsonLines(tmp_path / "m")
    with pytest.raises(ValueError, match="'step' is taken"):
        lines.write(0, 1, "train", {"step": 1.0})
    lines.close()


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "nowhere.jsonl") == []


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_writer_whose_package_is_missing_names_the_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"vfm-jax\[{name}\]"):
        WRITERS[name](tmp_path, {})


def test_tensorboard_files_hold_the_points_of_each_stage_and_no_secret(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = TensorBoard(tmp_path, {"hub": {"api_key": "CANARY"}})
    writer.write(0, 7, "train", {"loss": np.float32(0.5)})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"stage_0/train/loss" in content
    assert b"CANARY" not in content


class _FakeWandb:
    """Records what our writer asks of the package."""

    def __init__(self):
        self.inits, self.logged, self.id = [], [], "abc"

    def init(self, **keywords):
        self.inits.append(keywords)
        return self

    def define_metric(self, name, step_metric):
        self.logged.append((name, step_metric))

    def log(self, row):
        self.logged.append(row)

    def finish(self):
        self.logged.append("finished")


def test_wandb_gets_stage_steps_a_clean_config_and_the_same_id_after_a_restart(tmp_path, monkeypatch):
    fake = _FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = {"hub": {"api_key": "CANARY"}, "seed": 3}
    writer = WandB(tmp_path, config, project="p")
    writer.write(1, 4, "eval", {"knn/accuracy": 0.5})
    writer.close()
    WandB(tmp_path, config)
    first, second = fake.inits
    assert first["config"] == {"hub": {"api_key": "(withheld)"}, "seed": 3}
    assert (first["id"], second["id"]) == (None, "abc")
    assert fake.logged == [
        ("stage_1/*", "stage_1/step"),
        {"stage_1/eval/knn/accuracy": 0.5, "stage_1/step": 4},
        "finished",
    ]
