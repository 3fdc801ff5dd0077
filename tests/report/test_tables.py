import io
import json

from vfm_jax.report.tables import print_table, table_json, table_text

ROWS = [{"leaf": "encoder/bias", "count": 96, "loss": 0.123456}, {"leaf": "head", "count": 12345, "extra": None}]


def test_numbers_stand_right_and_text_left():
    assert table_text(ROWS, title="Leaves").splitlines() == [
        "Leaves",
        "leaf           count    loss  extra",
        "------------  ------  ------  -----",
        "encoder/bias      96  0.1235  –",
        "head          12,345       –  –",
    ]


def test_columns_can_be_chosen():
    assert table_text(ROWS, columns=["count", "leaf"]).splitlines()[0] == " count  leaf"


def test_a_table_without_rows_is_no_error():
    assert table_text([]) == "\n"
    assert json.loads(table_json([])) == []


def test_json_keeps_numbers_unrounded_and_not_finite_ones_null():
    rows = json.loads(table_json([{"a": 0.1 + 0.2, "b": float("nan"), "shape": (2, 3), "ok": True}]))
    assert rows == [{"a": 0.1 + 0.2, "b": None, "shape": [2, 3], "ok": True}]


def test_output_that_is_no_terminal_gets_plain_uncut_lines():
    file, name = io.StringIO(), "x" * 300
    print_table([{"name": name}], file=file)
    assert file.getvalue() == table_text([{"name": name}]) + "\n"


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_text_in_brackets_is_shown_on_a_terminal_and_not_read_as_markup(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    file = _Terminal()
    print_table([{"spec": "[bold]x", "n": 1}], title="[red]t", file=file)
    assert "[bold]x" in file.getvalue()
    assert "[red]t" in file.getvalue()
