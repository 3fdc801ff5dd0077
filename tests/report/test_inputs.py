import json

import numpy as np
import pytest

from vfm_jax.report.inputs import check_arrays, read_run, write_arrays


def test_arrays_come_back_as_they_were_written(tmp_path):
    arrays = {"images": np.ones((2, 3, 4, 1), np.float32), "class_names": np.array(["cat", "dög"])}
    write_arrays(tmp_path, arrays)
    run = read_run(tmp_path)
    assert run.notes == []
    assert sorted(run.arrays) == ["class_names", "images"]
    np.testing.assert_array_equal(run.arrays["class_names"], arrays["class_names"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report_data.npz"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.ones(1)}, "Unknown array 'image'"),
        ({"images": np.ones((2, 3))}, r"shape \(2, 3\); expected the axes \(n h w c\)"),
        ({"attention/image": np.ones((2, 3, 4, 1))}, "'attention/maps' is missing"),
        (
            {"attention/image": np.ones((2, 3, 4, 1)), "attention/maps": np.ones((3, 1, 2, 2))},
            "has n = 3, others of 'attention' 2",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        check_arrays(arrays)


def test_labels_may_be_missing():
    check_arrays({"embedding/features": np.ones((3, 2))})


def test_damaged_files_are_named_and_left_out(tmp_path):
    (tmp_path / "summary.json").write_text('{"title": ')
    (tmp_path / "config.json").write_text(json.dumps({"seed": 1}))
    (tmp_path / "report_data.npz").write_bytes(b"PK\x03\x04 half a file")
    run = read_run(tmp_path)
    assert (run.summary, run.config, run.arrays) == ({}, {"seed": 1}, {})
    assert len(run.notes) == 2
    assert "summary.json" in run.notes[0] and "report_data.npz" in run.notes[1]


def test_a_file_of_another_version_is_named_with_what_does_not_fit(tmp_path):
    np.savez(tmp_path / "report_data.npz", images=np.ones((2, 3)))
    run = read_run(tmp_path)
    assert run.arrays == {}
    assert "'images' has shape (2, 3)" in run.notes[0]


def test_pickled_arrays_are_never_loaded(tmp_path):
    np.savez(tmp_path / "report_data.npz", class_names=np.array([{"a": 1}], dtype=object))
    run = read_run(tmp_path)
    assert run.arrays == {}
    assert len(run.notes) == 1


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No run found"):
        read_run(tmp_path)
