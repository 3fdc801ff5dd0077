"""Many dimensions brought down to two (a map) or three (colours), in numpy alone."""

import numpy as np
from jaxtyping import Float, Num

# Exact t-SNE is quadratic in the points: these take about a second of one core, a thousand four, and a map of more is
# a blot anyway.
MAX_POINTS = 600


def principal_components(points: Num[np.ndarray, "n d"], num_components: int) -> Float[np.ndarray, "n k"]:
    """Coordinates along the directions of largest variance, zeros where there are fewer directions than asked for.

    The sign of each is chosen so that its largest coordinate is positive: the same points give the same picture.
    """
    centered = points.astype(np.float64)
    centered = centered - centered.mean(axis=0)
    # Eigenvectors of the d x d matrix: d is some hundreds, n may be many thousands.
    _, vectors = np.linalg.eigh(centered.T @ centered)
    coordinates = centered @ vectors[:, ::-1][:, :num_components]
    largest = np.take_along_axis(coordinates, np.argmax(np.abs(coordinates), axis=0)[None], axis=0)
    coordinates = coordinates * np.where(largest < 0, -1.0, 1.0)
    return np.pad(coordinates, ((0, 0), (0, num_components - coordinates.shape[1])))


def _squared_distances(points: np.ndarray) -> np.ndarray:
    squares = np.sum(np.square(points), axis=1)
    return np.maximum(squares[:, None] + squares[None, :] - 2 * points @ points.T, 0)


def _neighbor_probabilities(points: np.ndarray, perplexity: float) -> np.ndarray:
    """Symmetric p_ij of t-SNE: Gaussian around each point, as wide as gives it `perplexity` effective neighbours."""
    distances = _squared_distances(points)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.min(axis=1, keepdims=True)
    distances = distances - nearest  # changes no p_ij, and keeps the exponentials from vanishing
    spread = np.median(distances[np.isfinite(distances)]) or 1.0
    low, high = np.full_like(nearest, 1e-6 / spread), np.full_like(nearest, 1e6 / spread)
    for _ in range(40):  # bisection on a logarithmic scale, all points at once
        precision = np.sqrt(low * high)
        weights = np.exp(-distances * precision)
        total = weights.sum(axis=1, keepdims=True)
        mean = np.sum(np.where(np.isfinite(distances), distances, 0) * weights, axis=1, keepdims=True) / total
        too_wide = np.log(total) + precision * mean > np.log(perplexity)  # entropy in nats
        low, high = np.where(too_wide, precision, low), np.where(too_wide, high, precision)
    conditional = weights / total
    return (conditional + conditional.T) / (2 * len(points))


def tsne(
    points: Num[np.ndarray, "n d"], perplexity: float = 30.0, num_iterations: int = 300
) -> Float[np.ndarray, "n 2"]:
    """A map that keeps neighbours together: exact t-SNE, begun at the principal components, so always the same.

    Distances between far-away groups mean little. Cost is quadratic in the number of points.

    Reference: van der Maaten & Hinton, 2008, Sec. 3 and Alg. 1; learning rate and start as advised by Kobak &
    Berens, The art of using t-SNE for single-cell transcriptomics, 2019.
    """
    num_points = len(points)
    start = principal_components(points, min(30, points.shape[1])).astype(np.float32)
    p = _neighbor_probabilities(start, min(perplexity, max(2.0, (num_points - 1) / 3)))
    y = (start[:, :2] / (np.std(start[:, 0]) + 1e-12) * np.float32(1e-4)).astype(np.float32)
    velocity, gains = np.zeros_like(y), np.ones_like(y)
    exaggerated = num_iterations // 4
    learning_rate = max(num_points / 12 / 4, 12.5)
    p_exaggerated = p * np.float32(12)
    difference = np.empty((2, *p.shape), np.float32)
    # Element by element and in place: on a busy machine, the threads of a matrix product this small wait for each
    # other many times longer than they work.
    for iteration in range(num_iterations):
        early = iteration < exaggerated
        np.subtract(y.T[:, :, None], y.T[:, None, :], out=difference)  # y_i - y_j: 2 n n
        student = 1 / (1 + np.square(difference[0]) + np.square(difference[1]))
        np.fill_diagonal(student, 0)
        force = student / -student.sum()
        force += p_exaggerated if early else p
        force *= student
        difference *= force
        gradient = 4 * difference.sum(axis=2).T  # Eq. 5
        gains = np.maximum(np.where(np.sign(gradient) == np.sign(velocity), gains * 0.8, gains + 0.2), 0.01)
        velocity = np.float32(0.5 if early else 0.8) * velocity - np.float32(learning_rate) * gains * gradient
        y = y + velocity.astype(np.float32)
    return y - y.mean(axis=0)


def flat_map(points: Num[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n 2"], str]:
    """A map of at most `MAX_POINTS` points and the name of its method; for a handful, principal components."""
    if len(points) >= 10:
        return tsne(points), "t-SNE"
    return principal_components(points, 2), "principal components"
