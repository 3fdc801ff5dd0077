"""Pictures of a run: pixels as bytes of an image file, charts as SVG strings. Nothing is shown, no state is global.

Text and axes of a chart take the colour of the page around it (`currentColor`), so that it reads on light and on
dark. Classes have Petroff's ten colours (arXiv:2107.02270), which colour-blind readers can tell apart.
"""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from vfm_jax.report.projection import principal_components

_LINE, _FAINT = "#0a84c9", "#7fb8dc"
CLASS_COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
_MARKERS = "os^"  # told apart by shape where there are more classes than colours
_OTHER = "#b0b0b0"
# Stand-ins, replaced in the finished SVG by the page's own colours.
_INK, _PAPER = "#010203", "#fdfeff"


def to_rgb(images: Num[np.ndarray, "... c"]) -> Float[np.ndarray, "... 3"]:
    """Images of any number of channels as RGB in [0, 1].

    One or two channels are shown as gray of the first, more as the first three; what is not finite is shown black.
    """
    scale = np.float32(255 if images.dtype == np.uint8 else 1)
    channels = images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, axis=-1)
    return np.clip(np.nan_to_num(channels.astype(np.float32) / scale, posinf=0.0, neginf=0.0), 0, 1)


def encode(image: Float[np.ndarray, "h w 3"], max_side: int = 192) -> tuple[bytes, str]:
    """An image in [0, 1] as a file, and its media type: a small one exactly (PNG), others as JPEG of `max_side`."""
    from PIL import Image

    picture = Image.fromarray(np.round(image * 255).astype(np.uint8))
    buffer = io.BytesIO()
    if max(picture.size) <= 64:
        picture.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "image/png"
    picture.thumbnail((max_side, max_side))
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), "image/jpeg"


def _resize(channel: Float[np.ndarray, "h w"], height: int, width: int, smooth: bool) -> Float[np.ndarray, "r s"]:
    from PIL import Image

    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((width, height), how))


def attention_overlay(
    image: Float[np.ndarray, "h w 3"], attention: Num[np.ndarray, "gh gw"], side: int = 168
) -> Float[np.ndarray, "r s 3"]:
    """The image, dimmed, under its attention: dark is none, bright yellow is the most of this very map.

    Args:
        image: in [0, 1].
        attention: weights of the patches, not negative; of any scale.
        side: of the picture's longer side, in pixels.
    """
    from matplotlib import colormaps

    scale = side / max(image.shape[:2])
    height, width = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    gray = _resize(image @ np.array([0.299, 0.587, 0.114], np.float32), height, width, smooth=scale < 3)
    heat = np.nan_to_num(attention.astype(np.float32), posinf=0.0, neginf=0.0)
    heat = np.clip(_resize(heat, height, width, smooth=True) / max(float(heat.max()), 1e-12), 0, 1)
    colors = colormaps["inferno"](heat)[..., :3].astype(np.float32)
    return np.clip(0.35 * gray[..., None] + 0.75 * colors, 0, 1)


def patch_colors(tokens: Num[np.ndarray, "n gh gw d"]) -> Float[np.ndarray, "n gh gw 3"]:
    """The three main directions of all these patch tokens as red, green and blue: alike colours, alike tokens.

    Each direction is stretched between its 2nd and 98th percentile, so that a few outliers do not gray the rest.
    """
    points = np.nan_to_num(tokens.reshape(-1, tokens.shape[-1]).astype(np.float32), posinf=0.0, neginf=0.0)
    coordinates = principal_components(points, 3)
    low, high = np.percentile(coordinates, [2, 98], axis=0)
    colors = np.clip((coordinates - low) / np.maximum(high - low, 1e-12), 0, 1)
    return colors.reshape(*tokens.shape[:-1], 3).astype(np.float32)


def _svg(figure) -> str:
    """The figure as an SVG element that scales with the page and inherits its text colour and font."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "vfm"}
    ):  # text stays text; the same chart, the same bytes
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)  # a style would be global
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # several charts share a page, and ids must be its own
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    return svg.replace(_INK, "currentColor").replace(_PAPER, "var(--paper, #ffffff)")


def _axes(width: float, height: float):
    """A figure of that many inches and its one pair of axes, bare but for a faint grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.spines[["left", "bottom"]].set_alpha(0.5)
    axes.tick_params(colors=_INK, labelsize=10)
    axes.grid(color=_INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _thin_out(steps: np.ndarray, values: np.ndarray, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `max_points` points: means of equal runs of neighbours, non-finite ones left out of the mean."""
    if len(steps) <= max_points:
        return steps, values
    runs = np.array_split(np.arange(len(steps)), max_points)
    finite = np.isfinite(values)
    means = [values[run][finite[run]].mean() if finite[run].any() else np.nan for run in runs]
    return np.array([steps[run].mean() for run in runs]), np.array(means)


def curve(
    lines: Mapping[str, tuple[Num[np.ndarray, " n"], Num[np.ndarray, " n"]]],
    title: str,
    boundaries: Sequence[tuple[float, str]] = (),
    smooth: bool = False,
    levels: Mapping[str, float] = {},
) -> str:
    """A chart of one or a few quantities over steps, as SVG; not finite values leave a gap.

    Values of very different size get a logarithmic axis.

    Args:
        lines: name -> (steps, values); the name is shown if there are several.
        title: shown above.
        boundaries: step at which a stage begins, and the stage's name.
        levels: what the quantities are compared with: name -> value, a dashed line across.
        smooth: draw long noisy lines faintly, and their moving average over a twentieth of the length boldly.
    """
    figure, axes = _axes(4.6, 2.7)
    everything = np.concatenate([values for _, values in lines.values()])
    positive = everything[np.isfinite(everything)]
    if positive.size and positive.min() > 0 and positive.max() > 30 * np.median(positive):
        axes.set_yscale("log")
        title += " (logarithmic)"
    single = len(lines) == 1
    for (name, (steps, values)), color in zip(lines.items(), (_LINE, *CLASS_COLORS[1:] * len(lines)), strict=False):
        steps, values = _thin_out(np.asarray(steps, np.float64), np.asarray(values, np.float64), 400)
        window = len(values) // 20
        if smooth and window >= 3 and np.isfinite(values).all():
            axes.plot(steps, values, color=_FAINT, linewidth=0.9, alpha=0.6)
            padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
            values = np.convolve(padded, np.full(window, 1 / window), mode="valid")
        marker = "o" if len(values) < 25 else None
        axes.plot(
            steps, values, color=color, linewidth=2, marker=marker, markersize=4, label=name.replace("$", r"\$")
        )
    for (name, value), color in zip(levels.items(), (_LINE, *CLASS_COLORS[1:] * len(levels)), strict=False):
        axes.axhline(value, color=color, linewidth=1.4, linestyle=(0, (5, 3)), label=name.replace("$", r"\$"))
    for step, name in boundaries:
        axes.axvline(step, color=_INK, alpha=0.5, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            name, (step, 1), xycoords=("data", "axes fraction"), xytext=(4, -4), textcoords="offset points",
            va="top", fontsize=9, color=_INK, alpha=0.8, parse_math=False,
        )  # fmt: skip
    axes.set_title(title, loc="left", fontsize=12, color=_INK, fontweight="bold", parse_math=False)
    axes.set_xlabel("step", fontsize=10, color=_INK)
    axes.xaxis.set_major_locator(_whole_numbers())
    if not single or levels:
        axes.legend(frameon=False, fontsize=10, labelcolor=_INK)
    return _svg(figure)


def _whole_numbers():
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, integer=True)


def scatter(
    points: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"] | None = None, names: Sequence[str] = ()
) -> str:
    """A map of points, as SVG: coloured by class, and the class's name where its points are densest.

    Beyond ten classes the marker's shape changes too; beyond thirty only the most frequent ones are told apart.

    Args:
        points: any scale; the axes carry no numbers.
        labels: class of each point; negative for none.
        names: for label i stands `names[i]`, else its number.
    """
    figure, axes = _axes(7.2, 5.4)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_aspect("equal", adjustable="datalim")
    if labels is None:
        axes.plot(*points.T, "o", markersize=4, color=_LINE, alpha=0.8, markeredgewidth=0)
        return _svg(figure)
    found, counts = np.unique(labels[labels >= 0], return_counts=True)
    styles = len(CLASS_COLORS) * len(_MARKERS)
    shown = np.sort(found[np.argsort(-counts, kind="stable")][:styles])
    others = ~np.isin(labels, shown)
    axes.plot(*points[others].T, "o", markersize=4, color=_OTHER, alpha=0.6, markeredgewidth=0)
    for i, label in enumerate(shown):
        marker = _MARKERS[i // len(CLASS_COLORS)]
        axes.plot(
            *points[labels == label].T, marker, markersize=4.5, color=CLASS_COLORS[i % len(CLASS_COLORS)], alpha=0.85,
            markeredgewidth=0,
        )  # fmt: skip
    for i, label in enumerate(shown):
        axes.text(
            *_densest(points[labels == label]), label_name(label, names), ha="center", va="center",
            fontsize=12, fontweight="bold", color=_INK, parse_math=False,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": _PAPER,
                  "edgecolor": CLASS_COLORS[i % len(CLASS_COLORS)]},
        )  # fmt: skip
    return _svg(figure)


def _densest(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " 2"]:
    """The point whose tenth nearest neighbour is closest: unlike a mean, it never lies between two groups."""
    distances = np.sum(np.square(points[:, None] - points[None, :]), axis=-1)
    return points[np.argmin(np.sort(distances, axis=1)[:, min(10, len(points) - 1)])]


def label_name(label: int, names: Sequence[str]) -> str:
    """The class's name, or its number where it has none."""
    return str(names[label]) if 0 <= label < len(names) else str(label)


def class_color(label: int) -> tuple[float, float, float]:
    """Red, green and blue, in [0, 1], of a class; ten of them, again and again."""
    color = CLASS_COLORS[label % len(CLASS_COLORS)]
    return int(color[1:3], 16) / 255, int(color[3:5], 16) / 255, int(color[5:7], 16) / 255
