"""Splits and parts of them."""

import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.data.sources.splits import Split, parse_split, rows_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, Split("all", 0, 100)),
        ("train", Split("train", 0, 100)),
        ("train[:90%]", Split("train", 0, 90)),
        ("all[90%:]", Split("all", 90, 100)),
        ("all[2.5%:10%]", Split("all", 2.5, 10)),
    ],
)
def test_a_split_is_a_name_and_a_part(text, expected):
    assert parse_split(text) == expected


@pytest.mark.parametrize(
    "text", ["", "train[", "train[:90]", "train[90%:10%]", "train[:0%]", "train[:101%]", "[:9%]"]
)
def test_other_words_are_refused_with_an_example(text):
    with pytest.raises(UserError, match=r"expected a name, or a part of it such as 'train\[:90%\]'"):
        parse_split(text)


def test_parts_that_meet_share_no_record_and_lose_none():
    names = [f"class_{i // 30}/{i}.png" for i in range(90)]
    parts = [rows_of(parse_split(text), names) for text in ("all[:70%]", "all[70%:80%]", "all[80%:]")]
    assert [len(part) for part in parts] == [63, 9, 18]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(90))
    assert {int(row) // 30 for row in parts[2]} == {0, 1, 2}  # every class, though sorted by class


def test_a_part_follows_names_and_not_places():
    names = [f"{i}.png" for i in range(50)]
    part = {names[row] for row in rows_of(parse_split("all[:20%]"), names)}
    back = names[::-1]
    assert part == {back[row] for row in rows_of(parse_split("all[:20%]"), back)}
    more = [*names, "new.png"]
    assert len(part - {more[row] for row in rows_of(parse_split("all[:20%]"), more)}) <= 1


def test_an_empty_part_is_refused():
    with pytest.raises(UserError, match="holds none"):
        rows_of(parse_split("all[:1%]"), ["a", "b", "c"])
