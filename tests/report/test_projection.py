import numpy as np

from vfm_jax.report.projection import flat_map, principal_components, tsne


def _groups(num_groups=3, size=20, width=7, seed=0):
    random = np.random.RandomState(seed)
    centers = random.normal(size=(num_groups, width)) * 20
    labels = np.repeat(np.arange(num_groups), size)
    return (centers[labels] + random.normal(size=(len(labels), width))).astype(np.float32), labels


def test_principal_components_are_those_of_the_singular_value_decomposition():
    points = np.random.RandomState(0).normal(size=(11, 5)) * [5, 4, 3, 2, 1]
    left, values, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    expected = (left * values)[:, :3]
    found = principal_components(points, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)
    assert (found[np.argmax(np.abs(found), axis=0), range(3)] > 0).all()


def test_directions_that_do_not_exist_are_zero():
    found = principal_components(np.array([[1.0, 2.0], [2.0, 4.0], [0.0, 1.0]]), 3)
    assert found.shape == (3, 3)
    assert not found[:, 2].any()


def test_the_map_keeps_every_group_together_and_apart_from_the_others():
    points, labels = _groups()
    flat = tsne(points, num_iterations=150)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    np.testing.assert_array_equal(labels[np.argmin(distances, axis=1)], labels)
    centers = np.stack([flat[labels == i].mean(axis=0) for i in range(3)])
    assert np.linalg.norm(centers[0] - centers[1]) > 2 * flat[labels == 0].std()


def test_the_map_is_the_same_every_time():
    points, _ = _groups()
    np.testing.assert_array_equal(tsne(points, num_iterations=20), tsne(points, num_iterations=20))


def test_points_that_all_coincide_give_a_finite_map():
    flat, _ = flat_map(np.ones((13, 4), np.float32))
    assert np.isfinite(flat).all()


def test_a_handful_of_points_is_shown_by_principal_components():
    points, _ = _groups(size=2)
    flat, method = flat_map(points)
    assert method == "principal components"
    np.testing.assert_array_equal(flat, principal_components(points, 2))
