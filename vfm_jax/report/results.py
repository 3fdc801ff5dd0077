"""The page's first answer: is the pretrained encoder better than none, measured on images it never saw?"""

import math
from collections.abc import Iterable, Mapping, Sequence

from vfm_jax.report.inputs import RunFiles
from vfm_jax.report.markup import mapping, number, table, text
from vfm_jax.report.numbers import format_percent, format_points

_SUBJECTS = {  # of the evaluations
    "pretrained": "Pretrained encoder",
    "public_weights": "Public weights, before this run",
    "random_init": "Same encoder, random weights",
    "raw_pixels": "Raw pixels, no encoder",
}
_BASELINES = {
    "public_weights": "the public weights it started from",
    "random_init": "the same encoder with random weights",
    "raw_pixels": "the raw pixels",
}
PROBES = {
    "knn/accuracy": "k-nearest neighbours",
    "linear_probe/accuracy": "linear probe",
    "retrieval/image_to_text_recall_at_1": "image to text, recall at 1",
    "retrieval/text_to_image_recall_at_1": "text to image, recall at 1",
}


def _evaluations(run: RunFiles) -> dict[str, dict[str, float]]:
    """Subject -> metric -> finite number."""
    found: dict[str, dict[str, float]] = {}
    for subject, metrics in mapping(run.summary.get("evaluations")).items():
        numbers = {str(name): number(value) for name, value in mapping(metrics).items()}
        finite = {name: value for name, value in numbers.items() if value is not None and math.isfinite(value)}
        if finite:
            found[str(subject)] = finite
    baselines = list(_BASELINES)
    return dict(sorted(found.items(), key=lambda item: baselines.index(item[0]) if item[0] in baselines else -1))


def _is_share(metric: str, value: float) -> bool:
    return ("accuracy" in metric or "recall" in metric) and 0 <= value <= 1


def results(run: RunFiles) -> str:
    """Cards, a verdict in words, the comparison table and how to read it; "" where nothing was evaluated."""
    evaluations = _evaluations(run)
    if not evaluations:
        return ""
    metrics = list(dict.fromkeys(name for values in evaluations.values() for name in values))
    main = [m for m in PROBES if m in metrics] or metrics[:1]
    rest = [m for m in metrics if m not in main]
    learned = _learned(evaluations)
    rows = [
        [text(_name(subject)), *(_cell(evaluations, subject, learned, m) for m in main)] for subject in evaluations
    ]
    tables = table(["Features", *(text(_heading(m)) for m in main)], rows)
    if rest:
        rows = [[text(m), *(_plain(m, values.get(m)) for values in evaluations.values())] for m in rest]
        more = table(["Measurement", *(text(_name(subject)) for subject in evaluations)], rows)
        tables += f"<details><summary>Other measurements</summary>{more}</details>"
    values = evaluations.get(learned, {})
    chance = _chance(run, [values[m] for m in main if m in values and _is_share(m, values[m])])
    verdict = _verdict(evaluations, learned, main, chance)
    return _cards(evaluations, learned, main) + verdict + tables + _note(run, main, chance)


def random_levels(run: RunFiles, shown: Iterable[str]) -> dict[str, float]:
    """The accuracies of random weights, for those of the probes that are shown."""
    measured = _evaluations(run).get("random_init", {})
    found = {PROBES.get(metric, metric): value for metric, value in measured.items() if _is_share(metric, value)}
    return {f"{name}, random weights": value for name, value in found.items() if name in set(shown)}


def _heading(metric: str) -> str:
    words = PROBES.get(metric, metric)
    return words.capitalize() if words.startswith("linear") else words  # k is a lower-case letter


def _name(subject: str) -> str:
    return _SUBJECTS.get(subject, f"After stage {subject}")


def _learned(evaluations: Mapping[str, Mapping[str, float]]) -> str:
    """The subject the page is about: the encoder after the last stage; "" if only baselines were measured."""
    return ([subject for subject in evaluations if subject not in _BASELINES] or [""])[-1]


def _gain(evaluations: Mapping[str, Mapping[str, float]], learned: str, other: str, metric: str) -> float | None:
    """How far the learned features are ahead of others; None where either was not measured, or is no share."""
    ours, theirs = evaluations.get(learned, {}).get(metric), evaluations.get(other, {}).get(metric)
    if ours is None or theirs is None or not _is_share(metric, ours):
        return None
    return ours - theirs


def _plain(metric: str, value: float | None) -> str:
    return format_percent(value) if value is not None and _is_share(metric, value) else text(value)


def _cards(evaluations: Mapping[str, Mapping[str, float]], learned: str, metrics: Sequence[str]) -> str:
    cards = []
    for metric in metrics:
        if metric not in evaluations.get(learned, {}):
            continue
        other, words = ("public_weights", "the public weights")
        if other not in evaluations:
            other, words = ("random_init", "random weights")
        gain, change = _gain(evaluations, learned, other, metric), ""
        if gain is not None:
            change = f"<span class={_direction(gain)}>{format_points(gain)} points over {words}</span>"
        value = _plain(metric, evaluations[learned][metric])
        cards.append(f"<div class=card><span>{text(_heading(metric))}</span><b>{value}</b>{change}</div>")
    return f"<div class=cards>{''.join(cards)}</div>" if cards else ""


def _direction(gain: float) -> str:
    return "up" if gain > 0 else "down" if gain < 0 else "even"


def _cell(evaluations: Mapping[str, Mapping[str, float]], subject: str, learned: str, metric: str) -> str:
    """The value, a bar of it, and for a baseline how far the learned features are ahead."""
    value = evaluations[subject].get(metric)
    if value is None or not _is_share(metric, value):
        return text(value)
    gain = _gain(evaluations, learned, subject, metric) if subject in _BASELINES else None
    ahead = (
        f" <span class={'even' if gain >= 0 else 'down'}>{format_points(-gain)} points</span>"
        if gain is not None
        else ""
    )
    kind = "bar main" if subject == learned else "bar"
    bar = f"<span class='{kind}'><i style='width:{100 * value:.1f}%'></i></span>"
    return f"<span class=value>{format_percent(value)}</span>{ahead}{bar}"


def _chance(run: RunFiles, shares: Sequence[float]) -> float:
    """Half the 95 % interval of the least certain share; infinite if the number of test images is not known.

    For a difference of two shares measured on the same images it errs on the safe side.
    """
    num_test = number(mapping(run.summary.get("data")).get("num_test"))
    if not num_test or not shares:
        return math.inf
    return 1.96 * math.sqrt(max(share * (1 - share) for share in shares) / num_test)


def _verdict(
    evaluations: Mapping[str, Mapping[str, float]], learned: str, metrics: Sequence[str], chance: float
) -> str:
    """The comparison in words, good or bad."""
    sentences = []
    for baseline, words in _BASELINES.items():
        gains = {m: g for m in metrics if (g := _gain(evaluations, learned, baseline, m)) is not None}
        if not gains:
            continue
        better = [PROBES.get(m, m) for m, gain in gains.items() if gain > 0]
        worse = [PROBES.get(m, m) for m, gain in gains.items() if gain <= 0]
        if better and worse:
            sentences.append(f"better by {' and '.join(better)}, not by {' and '.join(worse)}, than {words}")
        elif better:
            sentences.append(f"{'clearly ' if min(gains.values()) > chance else ''}better than {words}")
        else:
            sentences.append(f"no better than {words}")
    if not sentences:
        return ""
    joined = "</strong>, and <strong>".join(map(text, sentences))
    return f"<p>The learned features tell the test images apart <strong>{joined}</strong>.</p>"


def _note(run: RunFiles, metrics: Sequence[str], chance: float) -> str:
    """How to read the table."""
    parts = []
    if any("accuracy" in metric for metric in metrics):
        parts.append("Accuracy is the share of test images, never trained on, that are named right.")
    if any("recall" in metric for metric in metrics):
        parts.append("Recall at 1: of all test texts or images, the nearest one belongs to what was asked.")
    if "knn/accuracy" in metrics:
        parts.append("k-nearest neighbours: the most similar training images vote on the class.")
    if "linear_probe/accuracy" in metrics:
        parts.append("Linear probe: one linear layer is trained on the features, the encoder stays as it is.")
    parts.append("Differences in the table are to the learned features.")
    if math.isfinite(chance):
        num_test = int(run.summary["data"]["num_test"])
        parts.append(
            f"With {num_test:,} test images a number is good to about ±{100 * chance:.1f} points; "
            "a smaller difference may be chance."
        )
    return f"<p class=note>{' '.join(parts)}</p>"
