"""Boxes and label maps are drawn where they are, and nowhere else."""

import numpy as np

from vfm_jax.report.plots import class_color
from vfm_jax.report.targets import with_boxes, with_label_map


def test_a_box_is_an_outline_in_the_colour_of_its_class():
    image = np.zeros((20, 30, 3), np.float32)
    out = with_boxes(image, np.array([[5, 4, 15, 12]], np.float32), np.array([2]))
    wanted = np.zeros((20, 30), bool)
    wanted[4:12, 5:15] = True
    wanted[5:11, 6:14] = False
    np.testing.assert_array_equal(out.any(axis=-1), wanted)
    np.testing.assert_allclose(out[4, 5], class_color(2), rtol=1e-6)
    assert not image.any()


def test_boxes_of_any_kind_draw_nothing_outside():
    image = np.full((8, 8, 3), 0.5, np.float32)
    odd = np.array([[-5, -5, 50, 50], [3, 3, 3, 3], [6, 6, 2, 2], [20, 20, 30, 30], [7, 0, 8, 8]], np.float32)
    assert with_boxes(image, odd, np.arange(5)).shape == image.shape
    np.testing.assert_array_equal(with_boxes(image, odd[[1, 3]], np.arange(2)), image)
    np.testing.assert_array_equal(with_boxes(image, np.zeros((0, 4), np.float32), np.zeros(0, int)), image)


def test_pixels_are_tinted_by_class_and_those_without_are_not():
    image = np.full((1, 4, 3), 0.4, np.float32)
    out = with_label_map(image, np.array([[0, 11, 255, -1]], np.int32), 255)
    np.testing.assert_allclose(out[0, 0], 0.2 + 0.5 * np.array(class_color(0)), rtol=1e-6)
    np.testing.assert_allclose(out[0, 1], 0.2 + 0.5 * np.array(class_color(1)), rtol=1e-6)
    np.testing.assert_array_equal(out[0, 2:], image[0, 2:])
