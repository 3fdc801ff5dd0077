import html.parser
import json
import re

import numpy as np
import pytest

from vfm_jax.report.inputs import write_arrays
from vfm_jax.report.page import render
from vfm_jax.report.writers import JsonLines

EVALUATIONS = {
    "pretrained": {"knn/accuracy": 0.925, "linear_probe/accuracy": 0.914},
    "random_init": {"knn/accuracy": 0.741, "linear_probe/accuracy": 0.743},
    "raw_pixels": {"knn/accuracy": 0.902, "linear_probe/accuracy": 0.917},
}
SUMMARY = {
    "title": "Digits",
    "objective": "mae",
    "network": "ViT, width 96",
    "num_parameters": 461234,
    "data": {"name": "digits", "num_examples": 4000, "num_test": 1000, "image_shape": [28, 28, 1], "num_classes": 10},
    "seed": 0,
    "batch_size": 128,
    "stages": [{"name": "pretrain", "steps": 1500, "total_steps": 1500}],
    "steps": 1500,
    "total_steps": 1500,
    "finished": True,
    "stopped_by": "",
    "wall_seconds": 145.2,
    "images_per_second": 1712.3,
    "evaluations": EVALUATIONS,
    "versions": {"python": "3.11.7", "git": None},
    "hardware": {"platform": "cpu", "device_kind": "cpu", "num_devices": 1, "cores": 2, "memory_gb": 25.3},
}


def _arrays(channels=1, labelled=True):
    random = np.random.RandomState(0)

    def uniform(*shape):
        return random.uniform(size=shape).astype(np.float32)

    image = uniform(3, 8, 12, channels)
    arrays = {
        "images": image,
        "reconstruction/original": image,
        "reconstruction/masked": image,
        "reconstruction/reconstructed": image,
        "attention/image": image,
        "attention/maps": uniform(3, 2, 2, 3),
        "patches/image": image,
        "patches/tokens": uniform(3, 2, 3, 5),
        "embedding/features": uniform(14, 5),
        "neighbors/query": image[:2],
        "neighbors/images": uniform(2, 4, 8, 12, channels),
    }
    if labelled:
        arrays |= {
            "embedding/labels": np.arange(14) % 3,
            "neighbors/query_label": np.array([0, 1]),
            "neighbors/labels": np.array([[0, 0, 2, 0], [1, 0, 1, 1]]),
            "class_names": np.array(["cat", "dog", "bee"]),
        }
    return arrays


def _page(workdir, summary=None, config=None, rows=(), arrays=None):
    """The page of a workdir with these files; None leaves a file out."""
    for name, value in (("summary.json", summary), ("config.json", config)):
        if value is not None:
            (workdir / name).write_text(json.dumps(value))
    if rows:
        lines = JsonLines(workdir / "metrics.jsonl")
        for stage, step, kind, metrics in rows:
            lines.write(stage, step, kind, metrics)
        lines.close()
    if arrays is not None:
        write_arrays(workdir, arrays)
    return render(workdir).read_text(encoding="utf-8")


def _train_rows(stage=0, steps=8):
    names = ("loss", "learning_rate", "gradient_norm", "images_per_second")
    return [(stage, step, "train", dict.fromkeys(names, 1.0 / step)) for step in range(1, steps + 1)]


def _headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


class _Strict(html.parser.HTMLParser):
    """Fails where elements are not closed in order; collects addresses, ids and words."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids, self.scripts, self.words = [], [], [], 0, []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag in ("script", "iframe", "object", "link")
        attributes = dict(attributes)
        self.scripts += any(name.startswith("on") for name in attributes)
        self.ids += [attributes["id"]] if tag == "section" else []
        self.links += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def _parse(page):
    parser = _Strict()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    rows = [*_train_rows(), (0, 4, "eval", {"knn/accuracy": 0.8}), (0, 8, "eval", {"knn/accuracy": 0.9})]
    return _page(tmp_path_factory.mktemp("run"), SUMMARY, {"objective": {"name": "mae"}}, rows, _arrays())


def test_a_full_run_has_every_section_in_order(full_page):
    assert _headings(full_page) == [
        "Did it learn something?", "Training", "The images", "Painting in what was hidden", "Where it looks",
        "What it tells apart within an image", "A map of the test images", "Which images it finds alike",
        "How this was made", "All settings",
    ]  # fmt: skip
    assert full_page.count("<svg") == 6  # four curves, the evaluation, the map


def test_what_is_watched_is_drawn_each_with_its_words_and_terms_together(tmp_path):
    names = ("loss", "representation/std", "representation/effective_rank", "ibot/teacher_entropy", "loss/dino",
             "loss/koleo", "gradient_share/dino", "gradient_share/koleo")  # fmt: skip
    rows = [(0, step, "train", dict.fromkeys(names, 0.5 / step)) for step in range(1, 9)]
    rows += [(0, 4, "eval", {"knn/accuracy": 0.8}), (0, 8, "eval", {"knn/accuracy": 0.9})]
    page = _page(tmp_path, SUMMARY, None, rows)
    assert "What it learns to see" in _headings(page)
    for words in ("Spread of the features", "(RankMe)", "Entropy of the teacher, ibot", "Terms of the loss"):
        assert words in page
    assert page.count("<svg") == 7  # loss, accuracy, three of the representation, two of the terms
    assert "k-nearest neighbours, random weights" in page
    _parse(page)


def test_every_picture_is_explained_and_has_a_text_for_those_who_cannot_see_it(full_page):
    assert full_page.count("<figure") == full_page.count("<figcaption>") == 11
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img[^>]*>", full_page))


def test_the_page_is_well_formed_and_asks_the_network_for_nothing(full_page):
    parsed = _parse(full_page)
    assert parsed.scripts == 0
    assert all(link.startswith(("data:image/", "#")) for link in parsed.links)
    assert {link[1:] for link in parsed.links if link.startswith("#")} >= set(parsed.ids)
    assert "url(http" not in full_page and "@import" not in full_page


def test_the_first_lines_say_what_was_trained_on_what_and_at_what_cost(full_page):
    lead = re.search(r"<p class=lead>(.*?)</p>", full_page).group(1)
    assert "461 thousand parameters, trained on 4,000 images (digits) by hiding most patches" in lead
    assert "1,500 steps, 48 passes over the data, 2 min 25 s on 2 processor cores" in lead


def test_the_comparison_shows_both_probes_with_differences_and_says_who_wins(full_page):
    for words in ("92.5 %", "91.4 %", "+18.4 points over random weights", "−2.3 points", "+0.3 points"):
        assert words in full_page
    assert "clearly better than the same encoder with random weights" in full_page
    assert "better by k-nearest neighbours, not by linear probe, than the raw pixels" in full_page
    assert "±1.7 points" in full_page  # 1.96 sqrt(0.914 x 0.086 / 1000)


def test_a_run_that_did_not_help_is_told_so(tmp_path):
    worse = {"pretrained": EVALUATIONS["random_init"], "random_init": EVALUATIONS["pretrained"]}
    page = _page(tmp_path, SUMMARY | {"evaluations": worse})
    assert "no better than the same encoder with random weights" in page
    assert "−18.4 points over random weights" in page


def test_a_run_from_public_weights_is_compared_with_them(tmp_path):
    before = {"knn/accuracy": 0.90, "linear_probe/accuracy": 0.95}
    page = _page(tmp_path, SUMMARY | {"evaluations": {"public_weights": before, **EVALUATIONS}})
    assert "+2.5 points over the public weights" in page
    assert "Public weights, before this run" in page
    assert "better by k-nearest neighbours, not by linear probe, than the public weights it started from" in page


def test_after_several_stages_the_last_one_is_compared(tmp_path):
    evaluations = {
        "pretrain": {"knn/accuracy": 0.5},
        "random_init": {"knn/accuracy": 0.4},
        "tune": {"knn/accuracy": 0.9},
    }
    page = _page(tmp_path, SUMMARY | {"evaluations": evaluations})
    assert "+50.0 points over random weights" in page
    assert "After stage pretrain" in page


def test_neighbours_of_another_class_are_marked_by_more_than_colour(full_page):
    assert full_page.count('class="cell same"') == full_page.count("✓ ") - full_page.count("and ✓ mean") == 6
    assert full_page.count('class="cell differs"') == 2
    assert "✗ bee" in full_page


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_images_of_any_number_of_channels_are_shown_and_false_colour_is_said(tmp_path, channels):
    page = _page(tmp_path, SUMMARY, arrays=_arrays(channels))
    assert ("first three of 6 channels" in page) == (channels == 6)
    assert ("first of two channels" in page) == (channels == 2)


def test_data_without_labels_get_a_map_and_neighbours_without_verdicts(tmp_path):
    page = _page(tmp_path, SUMMARY, arrays=_arrays(labelled=False))
    assert "A map of the test images" in _headings(page)
    assert "✓" not in page and "✗" not in page


def test_a_method_without_reconstructions_has_no_section_of_them(tmp_path):
    arrays = {name: a for name, a in _arrays().items() if not name.startswith("reconstruction")}
    page = _page(tmp_path, SUMMARY | {"objective": "simclr"}, arrays=arrays)
    assert "Painting in what was hidden" not in _headings(page)
    assert "two altered copies" in page


def test_a_run_stopped_early_says_so(tmp_path):
    page = _page(tmp_path, SUMMARY | {"finished": False, "steps": 900, "stopped_by": "Ctrl-C"})
    assert "stopped early at step 900 of 1,500: Ctrl-C" in page
    assert "not finished: step 900 of 1,500" in page


def test_a_run_still_going_is_shown_from_its_measurements_alone(tmp_path):
    page = _page(tmp_path, rows=_train_rows())
    assert _headings(page) == ["Training"]
    assert "has not finished at step 8" in page
    _parse(page)


def test_stages_follow_each_other_on_one_axis(tmp_path):
    stages = [{"name": "first", "steps": 8, "total_steps": 8}, {"name": "second", "steps": 4, "total_steps": 4}]
    page = _page(tmp_path, SUMMARY | {"stages": stages}, rows=_train_rows(0, 8) + _train_rows(1, 4))
    words = "".join(_parse(page).words)
    assert "second" in words
    assert ">12</text>" in page  # the last step of the second stage


def test_a_loss_that_became_nan_is_counted_and_no_error(tmp_path):
    rows = [*_train_rows(), (0, 9, "train", {"loss": float("nan")}), (0, 10, "train", {"loss": float("inf")})]
    assert "2 values were not finite" in _page(tmp_path, SUMMARY, rows=rows)


def test_features_that_are_not_finite_leave_only_their_map_out(tmp_path):
    arrays = _arrays()
    arrays["embedding/features"][3, 1] = np.nan
    arrays["patches/tokens"][0, 0, 0, 0] = np.nan
    arrays["attention/maps"][:] = np.nan
    headings = _headings(_page(tmp_path, SUMMARY, arrays=arrays))
    assert "A map of the test images" not in headings
    assert "What it tells apart within an image" in headings


HOSTILE = "<script>alert(1)</script>\"'&"


def test_text_from_outside_is_shown_and_never_run(tmp_path):
    summary = json.loads(json.dumps(SUMMARY).replace('"digits"', json.dumps(HOSTILE)))
    summary |= {"title": HOSTILE, "network": HOSTILE, "objective": HOSTILE, "finished": False, "stopped_by": HOSTILE}
    summary["stages"][0]["name"] = HOSTILE
    summary["versions"] = summary["hardware"] = {HOSTILE: HOSTILE, "platform": HOSTILE, "num_devices": HOSTILE}
    summary["evaluations"] = {HOSTILE: {HOSTILE: 0.5, "knn/accuracy": 0.5}, "pretrained": {"knn/accuracy": "x"}}
    rows = [(0, step, "eval", {HOSTILE: 1.0, f"{HOSTILE}/accuracy": 0.5}) for step in (1, 2)]
    arrays = _arrays() | {"class_names": np.array([HOSTILE, "b", "c"])}
    page = _page(tmp_path, summary, {HOSTILE: {HOSTILE: [HOSTILE]}}, rows, arrays)
    parsed = _parse(page)
    assert parsed.scripts == 0
    assert "<script" not in page
    assert HOSTILE in "".join(parsed.words)


def test_credentials_do_not_reach_the_page(tmp_path):
    config = {
        "hub": {"api_key": "CANARY", "token": "CANARY"},
        "data": {"url": "https://me:CANARY@host/x"},
        "networks": {"encoder": {"class_token": "learned", "image_key": "picture"}},
    }
    page = _page(tmp_path, SUMMARY | {"title": "from https://me:CANARY@host/x"}, config)
    assert "CANARY" not in page
    assert "https://host/x" in page and "learned" in page and "picture" in page


def test_settings_within_lists_are_named_by_their_place(tmp_path):
    page = _page(tmp_path, SUMMARY, {"views": {"ops": [{"name": "flip"}, {"name": "crop", "scale": [0.2, 1]}]}})
    assert "views.ops[1].scale" in page
    assert "[0.2, 1]" in page


def test_a_summary_of_unexpected_types_is_no_error(tmp_path):
    odd = dict.fromkeys(SUMMARY, "odd") | {"title": 3, "evaluations": {"pretrained": {"knn/accuracy": None}}}
    _parse(_page(tmp_path, odd))
    _parse(_page(tmp_path, dict.fromkeys(SUMMARY)))


def test_rendering_again_replaces_the_page_and_leaves_nothing_else(tmp_path):
    first = _page(tmp_path, SUMMARY, arrays=_arrays())
    assert render(tmp_path).read_text(encoding="utf-8") == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report_data.npz", "summary.json"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No run found"):
        render(tmp_path)


def test_records_that_could_not_be_used_are_counted_and_named(tmp_path):
    records = [{"name": f"<{i}>.jpg", "reason": "truncated", "detail": "ends early"} for i in range(5)]
    records.append({"name": "page.html", "reason": "not_an_image", "detail": "a web page"})
    bad = {"reasons": {"truncated": 5, "not_an_image": 1}, "records": records}
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | {"bad_samples": bad}))
    page = render(tmp_path).read_text()
    section = page[page.index('<section id="data">') :].split("</section>")[0]
    assert "<th scope=row>truncated</th><td>5</td>" in section
    assert section.count("ends early") == 3
    assert "&lt;0&gt;.jpg" in section
    assert "page.html" in section


def test_the_time_spent_waiting_for_data_is_told_with_the_verdict(tmp_path):
    stage = SUMMARY["stages"][0] | {"input_bound_ratio": 0.63, "reading_shares": {"read": 0.0, "decode": 0.65}}
    stage["verdict"] = "input-bound 63 %: decode 41 %"
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | {"stages": [stage], "bad_samples": {}}))
    page = render(tmp_path).read_text()
    assert "63 % of the time was spent waiting for data. Reading them was decode 65 %." in page
    assert "<p class=warn>input-bound 63 %: decode 41 %</p>" in page


def test_a_run_without_such_figures_has_no_such_section(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY | {"bad_samples": {}}))
    assert 'id="data"' not in render(tmp_path).read_text()
