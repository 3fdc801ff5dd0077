"""What a run is told of its data while it trains."""

import types

import numpy as np
import pytest

from vfm_jax.core.flops import Flops
from vfm_jax.report.writers import JsonLines, read_metrics
from vfm_jax.train import record
from vfm_jax.train.record import Run, Watch

FLOPS = Flops(2 * 10**12, 4 * 10**12)
READING = {"read": 0.0, "decode": 30.0, "resize": 10.0, "other": 0.0}


@pytest.fixture
def watch(monkeypatch):
    """(said, step): what the run has said, and a function that takes a step of some seconds, part of them waiting."""
    now, waited, said = [100.0], [0.0], []
    monkeypatch.setattr(record.time, "perf_counter", lambda: now.append(now[-1] + 1e-9) or now[-1])
    devices = np.full(1, types.SimpleNamespace(device_kind="cpu"))
    mesh = types.SimpleNamespace(devices=devices)
    experiment = types.SimpleNamespace(stage=0, batch_size=8, log_every_steps=2, mesh=mesh)
    run = types.SimpleNamespace(say=said.append, write=lambda *args: None, is_first=True)
    watch = Watch(run, experiment, 0, [], None, lambda: READING, lambda: FLOPS)

    def step(seconds, waiting):
        now.append(now[-1] + seconds)
        waited[0] += waiting
        watch.stepped({"loss": 1.0, "gradient_norm": 1.0, "leaf_gradient_norms": []}, {}, waited[0])

    return watch, said, step


@pytest.mark.parametrize(
    ("kind", "mfu"), [("cpu", None), ("TPU v5e", 6e12 / (4 * 197e12)), ("TPU7x", 6e12 * 2 / (4 * 2307e12))]
)
def test_what_the_model_computes_is_written_with_its_share_of_the_devices_peak(watch, kind, mfu):
    watch, _, step = watch
    written = []
    watch._run.write = lambda *args: written.append(args[3])
    watch._experiment.mesh = types.SimpleNamespace(devices=np.full(4, types.SimpleNamespace(device_kind=kind)))
    for _ in range(5):
        step(2.0, 0.0)
    for line in written:
        if mfu is None:
            assert not {"mfu", "model_tflops_per_step"} & set(line)
            continue
        assert line["model_tflops_per_step"] == 6.0
        assert line["model_tflops_per_second"] == pytest.approx(3.0)
        assert line["mfu"] == pytest.approx(mfu / 2)
    assert len(written) == 2


def test_a_run_that_waits_for_its_data_is_told_once_and_while_it_runs(watch):
    watch, said, step = watch
    step(50.0, 50.0)  # compiles, which hides how fast data come
    for _ in range(8):
        step(1.0, 0.6)
    assert not said  # ten seconds are needed to tell
    for _ in range(20):
        step(1.0, 0.6)
    assert said == [
        "The doctor: input-bound 60 %: decode 45 %, resize 15 %; raise config.data.threads, cache, or take a smaller "
        "canvas_size."
    ]
    assert watch.input_figures() == {
        "input_bound_ratio": 0.6,
        "reading_shares": {"read": 0.0, "decode": 0.75, "resize": 0.25, "other": 0.0},
        "verdict": said[0].removeprefix("The doctor: "),
    }


def test_pauses_are_not_counted(watch):
    watch, said, step = watch
    for _ in range(20):
        step(1.0, 0.05)
        with watch.pause():
            pass
        step(60.0, 60.0)
        step(1.0, 0.0)
    assert not said
    assert watch.input_figures()["input_bound_ratio"] < 0.1


def test_a_run_of_few_seconds_gets_no_verdict(watch):
    watch, said, step = watch
    assert watch.input_figures() == {}
    for _ in range(5):
        step(1.0, 1.0)
    assert watch.input_figures()["verdict"] == ""
    assert not said


@pytest.mark.parametrize(("start", "kept"), [(2, [(0, 1), (0, 2), (1, 1)]), (1, [(0, 1)])], ids=["done", "not_done"])
def test_only_a_stage_that_is_not_done_drops_what_came_after(tmp_path, start, kept):
    metrics = JsonLines(tmp_path / "metrics.jsonl")
    for stage, step in ((0, 1), (0, 2), (1, 1)):
        metrics.write(stage, step, "train", {"loss": 1.0})
    run = types.SimpleNamespace(_metrics=metrics, is_first=False, summary={"stages": [{}, {"steps": 1}]})
    experiment = types.SimpleNamespace(stage=0, total_steps=2, batch_size=8, log_every_steps=1)
    with Run.watch(run, "first", experiment, start, [], dict, lambda: FLOPS):
        pass
    metrics.close()
    assert [(row["stage"], row["step"]) for row in read_metrics(metrics.path)] == kept
