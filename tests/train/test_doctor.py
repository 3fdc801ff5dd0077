"""The doctor's verdicts."""

import pytest

from vfm_jax.train.doctor import input_bound

MOVES = {
    "read": "a local disk",
    "decode": "smaller canvas_size",
    "resize": "smaller canvas_size",
    "other": "config.data.workers",
}


def test_a_run_that_waits_is_told_for_what_and_what_to_do():
    verdict = input_bound(0.63, {"read": 0.01, "decode": 41.0, "resize": 22.0, "other": 0.2})
    assert verdict == (
        "input-bound 63 %: decode 41 %, resize 22 %; raise config.data.threads, cache, or take a smaller canvas_size."
    )


@pytest.mark.parametrize("part", MOVES)
def test_the_next_move_follows_from_the_largest_part(part):
    seconds = dict.fromkeys(MOVES, 1.0) | {part: 2.0}
    verdict = input_bound(0.5, seconds)
    assert verdict.startswith(f"input-bound 50 %: {part} 20 %, ")
    assert MOVES[part] in verdict


@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_a_run_that_hardly_waits_is_left_in_peace(ratio):
    assert input_bound(ratio, {"decode": 1.0}) is None


def test_a_run_whose_reading_is_not_measured_is_told_all_the_same():
    assert input_bound(0.2, {}) == "input-bound 20 %; raise config.data.threads or config.data.workers."
