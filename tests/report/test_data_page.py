"""The page of a data set says what is wrong, shows any number of channels, and trusts no name."""

import copy
import html.parser

import numpy as np
import pytest

from vfm_jax.report.data_page import Pictures, Tile, channels_note, findings, shown, write_page

HOSTILE = '<script>alert("x")</script>&\'.png'
SPLIT = {
    "described": {"name": "folder", "path": HOSTILE},
    "num_records": 12,
    "num_read": 10,
    "num_good": 8,
    "num_bad": 2,
    "num_from_cache": 0,
    "bad": {"truncated": 1, "too_small": 1},
    "bad_records": [
        {"name": HOSTILE, "reason": "truncated", "detail": "cut at byte 7"},
        {"name": "b.png", "reason": "too_small", "detail": "1 x 1"},
    ],
    "classes": {HOSTILE: 5, "dog": 3, "unicorn": 0},
    "num_unlabelled": 0,
    "size": {
        "height": {"min": 20, "median": 30, "max": 90},
        "width": {"min": 25, "median": 30, "max": 80},
        "shorter_side": {"20 to 49": 6, "50 to 80": 2},
    },
    "canvas": "32 × 32",
    "channels": 3,
    "dtype": "uint8",
    "statistics": {
        "num_images": 8,
        "num_pixels": 100,
        "mean": (0.5, 0.25, 0.125),
        "std": (0.3, 0.2, 0.1),
        "low": (0.0, 0.0, 0.0),
        "high": (1.0, 1.0, 1.0),
        "not_finite_ratio": (0.0, 0.0, 0.0),
    },
    "targets": [],
    "target_names": [],
    "problems": [f"box 3 of {HOSTILE} is empty"],
    "num_problems": 1,
}
FACTS = {
    "title": HOSTILE,
    "splits": {"train": SPLIT},
    "repeats": [
        {
            "splits": ["train", "train"],
            "num_same": 1,
            "num_relabelled": 1,
            "num_near": 2,
            "pairs": [{"first": HOSTILE, "second": "b.png", "how": "the same pixels", "labels": [0, 1]}],
        }
    ],
    "normalize": 'dict(name="normalize", mean=(0.5,), std=(0.3,))',
    "rate": {
        "images_per_core_second": 1234.5,
        "num_images": 64,
        "seconds": 0.2,
        "num_cores": 2,
        "shares": {"read": 0.1, "decode": 0.6, "resize": 0.0},
    },
    "needs": {
        "rows": [{"step_seconds": 0.1, "images_per_second": 640.0, "cores": 0.52, "verdict": "fed"}],
        "batch_size": 64,
        "fastest_step_seconds": 0.03,
        "said": "Batches of 64.",
    },
    "crop": {"said": "An image costs a core 3 ms."},
    "views_note": "made by the recipe's own views",
}


class _Parsed(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def _tile(channels=3, dtype=np.uint8, label=HOSTILE):
    return Tile(np.ones((6, 9, channels), dtype), label, f"title {HOSTILE}")


def _pictures(**changes):
    tiles = {
        "raw": [_tile()] * 3,
        "views": [(HOSTILE, [_tile(), _tile(dtype=np.float32)])],
        "repeats": {0: [(_tile(), _tile())]},
        "stretch": False,
    }
    return Pictures(**(tiles | changes))


def _page(tmp_path, facts=FACTS, pictures=None):
    path = write_page(tmp_path / "page.html", facts, pictures or _pictures())
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    return path.read_text(encoding="utf-8")


def test_every_part_is_there_and_every_name_is_escaped(tmp_path):
    page = _page(tmp_path)
    parsed = _Parsed(page)
    assert not parsed.open
    tags = [tag for tag, _ in parsed.tags]
    assert "script" not in tags
    assert tags.count("img") == 3 + 2 + 2
    assert all(attributes["src"].startswith("data:") for tag, attributes in parsed.tags if tag == "img")
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    text = " ".join(parsed.words)
    for part in (HOSTILE, "unicorn", "cut at byte 7", "is empty", "1,23", "0.125", "20 to 49", "640", "own views"):
        assert part in text
    anchors = {attributes["href"] for tag, attributes in parsed.tags if tag == "a"}
    assert {
        "#images",
        "#views",
        "#classes",
        "#sizes",
        "#values",
        "#repeats",
        "#bad",
        "#problems",
        "#speed",
    } <= anchors


def test_the_classes_of_boxes_stand_beside_their_colours(tmp_path):
    names = [HOSTILE, *map(str, range(11))]
    page = _page(tmp_path, FACTS | {"splits": {"train": SPLIT | {"target_names": names}}})
    parsed = _Parsed(page)
    assert page.count("class=dot") == 10
    assert "and 2 more" in " ".join(parsed.words)
    assert "<script" not in page


def test_what_is_not_known_is_left_out(tmp_path):
    split = SPLIT | {
        "classes": {}, "size": {}, "bad": {}, "bad_records": [], "num_bad": 0, "problems": [], "num_problems": 0,
        "statistics": SPLIT["statistics"] | {"num_images": 0},
    }  # fmt: skip
    facts = FACTS | {
        "splits": {"all": split},
        "repeats": [],
        "rate": None,
        "needs": None,
        "crop": None,
        "views_note": "",
    }
    page = _page(tmp_path, facts, _pictures(raw=[], views=[], repeats={}))
    assert not _Parsed(page).open
    for anchor in ("images", "views", "classes", "sizes", "values", "repeats", "bad", "problems", "speed"):
        assert f'id="{anchor}"' not in page
    assert "class=warn" not in page


def test_the_worst_is_said_first():
    facts = copy.deepcopy(FACTS)
    facts["splits"]["val"] = SPLIT | {"num_bad": 0, "bad": {}, "problems": [], "num_problems": 0}
    leak = {"splits": ["train", "val"], "num_same": 3, "num_relabelled": 0, "num_near": 0, "pairs": []}
    facts["repeats"].append(leak)
    said = findings(facts)
    assert said[0] == "Leak: 3 of 8 pictures of val are in train too, pixel for pixel."
    assert [line.partition(":")[0] for line in said] == [
        "Leak", "Labels", "Bad", "Problems that the source of train reports", "Duplicates", "Look-alikes"
    ]  # fmt: skip
    assert said[2] == "Bad: 2 of 10 records of train (20.00 %): 1 truncated, 1 too_small."


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_pixels_are_shown(channels, dtype):
    scale = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    pixels = (np.arange(20 * channels).reshape(4, 5, channels) / (20 * channels) * 0.1 * scale).astype(dtype)
    plain, stretched = shown(pixels), shown(pixels, stretch=True)
    assert plain.shape == stretched.shape == (4, 5, 3)
    assert plain.max() <= 0.1
    assert stretched.max() == 1
    if channels < 3:
        assert (plain[..., 0] == plain[..., 2]).all()
    np.testing.assert_allclose(plain[..., 0], pixels[..., 0] / np.float32(scale), rtol=1e-5)


def test_what_is_not_finite_is_shown_black():
    pixels = np.array([[np.nan, np.inf, 0.5]], np.float32)[..., None]
    assert shown(pixels)[0, :, 0].tolist() == [0, 0, 0.5]


def test_how_they_are_shown_is_said():
    assert channels_note(3, False) == ""
    assert channels_note(1, False) == " Shown: in gray."
    assert "first three of 6 channels" in channels_note(6, True)
    assert "stretched" in channels_note(6, True)


def test_credentials_in_a_description_are_withheld(tmp_path):
    split = SPLIT | {"described": {"name": "tars", "path": "https://me:secret@host/shards", "api_key": "abc123"}}
    page = _page(tmp_path, FACTS | {"splits": {"train": split}})
    assert "secret@" not in page
    assert "abc123" not in page
