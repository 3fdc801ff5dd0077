import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from vfm_jax.report import plots


def _random(*shape):
    return np.random.RandomState(0).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_any_number_of_channels_becomes_three(channels, shown):
    images = _random(2, 3, 4, channels)
    np.testing.assert_array_equal(plots.to_rgb(images), images[..., shown])


def test_bytes_and_values_that_cannot_be_shown_end_up_in_range():
    np.testing.assert_array_equal(plots.to_rgb(np.full((2, 3, 3), 255, np.uint8)), np.ones((2, 3, 3), np.float32))
    odd = np.array([[[np.nan, np.inf, -np.inf]], [[-1.0, 0.5, 2.0]]], np.float32)
    np.testing.assert_array_equal(plots.to_rgb(odd), [[[0, 0, 0]], [[0, 0.5, 1]]])


def test_a_small_image_is_kept_exactly():
    image = np.random.RandomState(0).randint(256, size=(5, 7, 3)) / np.float32(255)
    data, media_type = plots.encode(image)
    assert media_type == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), np.round(image * 255))


def test_a_large_image_is_made_small():
    data, media_type = plots.encode(_random(300, 200, 3), max_side=96)
    assert media_type == "image/jpeg"
    assert Image.open(io.BytesIO(data)).size == (64, 96)


def test_attention_is_brightest_where_it_is_largest():
    attention = np.zeros((2, 3))
    attention[1, 2] = 0.01  # of any scale
    shown = plots.attention_overlay(np.zeros((20, 30, 3), np.float32), attention, side=60).mean(axis=-1)
    assert shown.shape == (40, 60)
    assert shown[30, 50] > 0.5
    assert shown[10, 10] < 0.05


def test_attention_that_is_nowhere_is_no_error():
    assert np.isfinite(plots.attention_overlay(_random(4, 5, 3), np.zeros((2, 2)))).all()


def test_equal_tokens_have_equal_colors_and_others_do_not():
    kinds = np.eye(4, 6, dtype=np.float32)
    which = np.random.RandomState(0).randint(4, size=(2, 3, 5))
    colors = plots.patch_colors(kinds[which])
    assert colors.shape == (2, 3, 5, 3)
    assert colors.min() >= 0
    assert colors.max() <= 1
    averages = np.stack([colors[which == i].mean(axis=0) for i in range(4)])
    np.testing.assert_allclose(colors, averages[which], atol=1e-5)
    assert len(np.unique(averages.round(2), axis=0)) == 4


def _root(svg):
    return ET.fromstring(svg)


def _shown_text(svg):
    return [element.text for element in _root(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_curve_is_one_clean_svg_element_in_the_colors_of_the_page():
    svg = plots.curve({"loss": (np.arange(50), _random(50))}, "Loss", [(0, "one"), (25, "two")], smooth=True)
    assert {"Loss", "one", "two", "step"} <= set(_shown_text(svg))
    assert "currentColor" in svg
    for foreign in ("#010203", "#fdfeff", "<style", "<metadata", 'g id="', "font-family: 'D"):
        assert foreign not in svg


def test_text_with_dollars_and_angle_brackets_is_shown_as_it_is():
    hostile = "$\\frac{<b>&$"
    svg = plots.curve({"a": (np.arange(3), _random(3)), hostile: (np.arange(3), _random(3))}, hostile, [(1, hostile)])
    assert _shown_text(svg).count(hostile) >= 2
    labels = np.array([0, 0, 1])
    assert hostile in _shown_text(plots.scatter(_random(3, 2), labels, ["a", hostile]))


def test_a_curve_with_gaps_or_a_single_point_is_drawn():
    values = np.array([1.0, np.nan, 3.0, np.inf, 2.0])
    _root(plots.curve({"a": (np.arange(5), values)}, "A", smooth=True))
    _root(plots.curve({"a": (np.array([7]), np.array([0.0]))}, "A"))


def test_values_of_very_different_size_get_a_logarithmic_axis():
    values = np.ones(40)
    assert "A" in _shown_text(plots.curve({"a": (np.arange(40), values)}, "A"))
    values[0] = 1000
    assert "A (logarithmic)" in _shown_text(plots.curve({"a": (np.arange(40), values)}, "A"))


def test_a_long_run_is_drawn_with_few_points_that_keep_its_mean():
    steps, values = plots._thin_out(np.arange(10_000.0), np.arange(10_000.0) * 2, 400)
    assert len(steps) == len(values) == 400
    assert values.mean() == pytest.approx(9999)


def test_the_map_names_every_class_and_leaves_unlabelled_points_unnamed():
    labels = np.array([0, 0, 2, 2, 2, -1, 40])
    text = _shown_text(plots.scatter(_random(7, 2), labels, ["cat", "dog", "bee"]))
    assert sorted(text) == ["40", "bee", "cat"]
    assert _shown_text(plots.scatter(_random(7, 2))) == []


def test_a_class_is_named_inside_its_densest_group():
    points = np.concatenate([np.zeros((12, 2)), np.full((9, 2), 5.0)])
    np.testing.assert_array_equal(plots._densest(points), [0, 0])


def test_the_same_numbers_give_the_same_bytes():
    def draw():
        return plots.curve({"a": (np.arange(5), np.arange(5))}, "A")

    assert draw() == draw()
