"""The page of a run: one HTML file that tells a stranger what was trained, whether it helped, and how it looks.

`render(workdir)` reads `summary.json`, `config.json`, `metrics.jsonl` and `report_data.npz` (`inputs.py` says what is
in them) and may be called at any time, in the middle of a run too. A part whose data are missing is left out. The
file asks the network for nothing, needs no JavaScript, and has neither credentials nor unescaped text in it.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vfm_jax.report import markup, plots
from vfm_jax.report.inputs import RunFiles, read_run
from vfm_jax.report.numbers import (
    format_duration,
    format_large,
    format_value,
)
from vfm_jax.report.projection import MAX_POINTS, flat_map
from vfm_jax.report.redaction import redact
from vfm_jax.report.results import PROBES, random_levels, results

FILE = "report.html"

# What a method does, in a sentence's place "... by <this>"; an unknown one is called by its name alone.
_OBJECTIVES = {
    "aim": "predicting the pixels of each patch from those before it (AIM), without labels",
    "barlow_twins": "making two altered copies of an image alike, and features unlike (Barlow Twins), without labels",
    "byol": "predicting what a running average of itself makes of another copy (BYOL), without labels",
    "clip": "matching images with their texts (CLIP)",
    "combine": "several methods at once, a weighted sum",
    "context_reconstruction": "painting what is missing of each image, without labels",
    "data2vec2": "predicting its running average's features of hidden patches (data2vec 2), without labels",
    "dino": "matching, from any crop, what a running average of itself makes of another (DINO), without labels",
    "dinov2": "matching its running average across crops and at hidden patches (DINOv2), without labels",
    "dinov3": "matching its running average across crops and at hidden patches (DINOv3), without labels",
    "distillation": "learning to give what trained networks give (distillation)",
    "fcmae": "hiding most of each image and learning to paint it in (FCMAE), without labels",
    "ibot": "matching its running average across crops and at hidden patches (iBOT), without labels",
    "igpt": "predicting the colour of each pixel from those before it (iGPT), without labels",
    "ijepa": "predicting the features of hidden blocks from the rest of the image (I-JEPA), without labels",
    "lejepa": "making copies of an image alike and features a Gaussian (LeJEPA), without labels",
    "mae": "hiding most patches of each image and learning to paint them in (MAE), without labels",
    "moco": "recognising two altered copies of an image among many others (MoCo), without labels",
    "moco_v3": "recognising two altered copies of an image among many others (MoCo v3), without labels",
    "nepa": "predicting the embedding of each patch from those before it (NEPA), without labels",
    "siglip": "matching images with their texts (SigLIP)",
    "sigclr": "telling pairs of altered copies of one image from other pairs (sigmoid), without labels",
    "simclr": "learning to recognise two altered copies of an image as the same (SimCLR), without labels",
    "simmim": "hiding parts of each image and learning to paint them in (SimMIM), without labels",
    "simsiam": "predicting what it makes itself of another copy of the image (SimSiam), without labels",
    "supcon": "learning to bring images of one class together (SupCon)",
    "supervised": "learning to name the class of each image (supervised)",
    "swav": "agreeing on the group of two altered copies of an image (SwAV), without labels",
    "vicreg": "making copies of an image alike, and features varied and unlike (VICReg), without labels",
}
_NETWORKS = {
    "vit": "A vision transformer (ViT)",
    "convnext": "A ConvNeXt",
    "resnet": "A residual network (ResNet)",
    "swin": "A Swin transformer",
}
_CURVES = {
    "loss": "Loss",
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm",
    "images_per_second": "Images per second",
}
# What is watched of the representation and the loss; a method's own figures stand behind those of every method.
_WATCHED = {
    "representation/std": ("Spread of the features", "1 where their directions fill the space, 0 where all are one."),
    "representation/effective_rank": (
        "Effective rank of the features (RankMe)",
        "How many directions they use; a fall to a few says that the representation collapses.",
    ),
    "representation/uniformity": (
        "Uniformity of the features",
        "0 where all images are alike, towards -4 where they are spread evenly.",
    ),
    "representation/alignment": ("Distance between views", "0 where the views of an image agree, 2 for strangers."),
    "teacher_entropy": (
        "Entropy of the teacher",
        "In nats: 0 is one answer for certain.",
    ),
    "prototype_usage": ("Prototypes in use", "Share of them that some image of a batch is nearest to."),
    "center_norm": ("Length of the centre", "Of what is taken from the teacher's answers."),
    "contrastive_accuracy": (
        "Pairs found",
        "Share of the images whose nearest other is their own other view.",
    ),
}
_SEVERAL = {  # a prefix of terms that are drawn together
    "loss/": ("Terms of the loss", "Each with its weight: they add up to the loss."),
    "gradient_share/": ("What pulls", "Share of each term of the loss in the gradient to what the network gives."),
}
_MAX_IMAGES, _MAX_HEADS, _MAX_NEIGHBORS, _MAX_OTHER_CURVES, _MAX_BAD_NAMES = 8, 5, 5, 4, 3


def render(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `report.html` into `workdir`, replacing an older one, and returns its path.

    Raises:
        FileNotFoundError: there is no run in `workdir`.
    """
    run = read_run(workdir)
    run = run._replace(summary=redact(run.summary), config=redact(run.config))
    path = pathlib.Path(workdir) / FILE
    partial = path.with_name(FILE + ".partial")
    partial.write_text(_document(run), encoding="utf-8")
    os.replace(partial, path)
    return path


def _document(run: RunFiles) -> str:
    sections = [
        ("Did it learn something?", "result", results(run)),
        ("Training", "training", _training(run)),
        ("What it learns to see", "watched", _watched(run)),
        ("Its data", "data", _data(run)),
        ("The images", "images", _images(run)),
        ("Painting in what was hidden", "reconstruction", _reconstructions(run)),
        ("Where it looks", "attention", _attention(run)),
        ("What it tells apart within an image", "patches", _patches(run)),
        ("A map of the test images", "map", _embedding(run)),
        ("Which images it finds alike", "neighbors", _neighbors(run)),
        ("How this was made", "made", _made(run)),
        ("All settings", "settings", _settings(run)),
    ]
    title = markup.text(run.summary.get("title")) if run.summary.get("title") else f"Trained on {_trained_on(run)}"
    return markup.document(title, _status(run), _lead(run), _warnings(run), sections)


def _stages(run: RunFiles) -> list[Mapping[str, Any]]:
    found = run.summary.get("stages")
    return [markup.mapping(stage) for stage in found] if isinstance(found, list) else []


def _channels_note(images: np.ndarray) -> str:
    channels = images.shape[-1]
    if channels == 2:
        return " Shown is the first of two channels."
    return f" Shown in false colour: the first three of {channels} channels." if channels > 3 else ""


def _stage_steps(stage: Mapping[str, Any]) -> str:
    return f"{format_value(stage.get('steps'))} of {format_value(stage.get('total_steps'))} steps"


def _is_unfinished(run: RunFiles) -> bool:
    return run.summary.get("finished") is not True


def _how_far(run: RunFiles) -> str:
    """How far the run is, as far as that is known: "step 300 of 1,000"."""
    steps, total = markup.number(run.summary.get("steps")), markup.number(run.summary.get("total_steps"))
    if steps is None and run.metrics:
        steps = float(run.metrics[-1]["step"])
    if steps is None:
        return ""
    return f"step {int(steps):,}" + (f" of {int(total):,}" if total is not None else "")


def _status(run: RunFiles) -> str:
    if not _is_unfinished(run):
        return "<span class='badge ok'>finished</span>"
    return f"<span class='badge stop'>not finished{': ' + p if (p := _how_far(run)) else ''}</span>"


def _trained_on(run: RunFiles) -> str:
    data = markup.mapping(run.summary.get("data"))
    count = markup.number(data.get("num_examples"))
    images = f"{int(count):,} images" if count else "images"
    return f"{images} ({markup.text(data['name'])})" if data.get("name") else images


def _lead(run: RunFiles) -> str:
    """What was trained on what, how, and at what cost, in two sentences."""
    summary = run.summary
    network, objective = str(summary.get("network") or "A network"), summary.get("objective")
    sentence = markup.text(_NETWORKS.get(network, network))
    if parameters := markup.number(summary.get("num_parameters")):
        sentence += f" with {format_large(parameters)} parameters"
    sentence += f", trained on {_trained_on(run)}"
    if objective:
        sentence += f" by {markup.text(_OBJECTIVES.get(str(objective), f'the objective {objective}'))}"
    steps, seconds = markup.number(summary.get("steps")), markup.number(summary.get("wall_seconds"))
    batch_size, count = (
        markup.number(value)
        for value in (summary.get("batch_size"), markup.mapping(summary.get("data")).get("num_examples"))
    )
    cost = [f"{int(steps):,} steps"] if steps is not None else []
    if steps and batch_size and count and len(_stages(run)) <= 1:
        cost.append(f"{steps * batch_size / count:.3g} passes over the data")
    if seconds is not None:
        cost.append(format_duration(seconds) + _on_hardware(run))
    took = f" It took {', '.join(cost)}." if cost else ""
    return f"<p class=lead>{sentence}.{took}</p>"


def _on_hardware(run: RunFiles) -> str:
    hardware = markup.mapping(run.summary.get("hardware"))
    kind, cores, count = (hardware.get(name) for name in ("platform", "cores", "num_devices"))
    if kind == "cpu" and cores:
        return f" on {markup.text(cores)} processor core{'s' if cores != 1 else ''}"
    if kind and count:
        return f" on {markup.text(count)} × {markup.text(hardware.get('device_kind', kind))}"
    return ""


def _warnings(run: RunFiles) -> str:
    notes = list(run.notes)
    if _is_unfinished(run):
        why = run.summary.get("stopped_by")
        where = f" at {p}" if (p := _how_far(run)) else ""
        notes.insert(
            0,
            (f"This run was stopped early{where}: {why}." if why else f"This run has not finished{where}.")
            + " What follows shows how far it came; the same command continues it.",
        )
    return "".join(f"<p class=warn>{markup.text(note)}</p>" for note in notes)


def _offsets(run: RunFiles) -> dict[int, int]:
    """Stage -> steps done before it began, so that the stages stand one after another."""
    last: dict[int, int] = {}
    for row in run.metrics:
        last[row["stage"]] = max(last.get(row["stage"], 0), row["step"])
    offsets, total = {}, 0
    for stage in sorted(last):
        offsets[stage] = total
        total += last[stage]
    return offsets


def _series(run: RunFiles, kind: str, offsets: dict[int, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (steps, values); where a step was measured twice, the later one."""
    points: dict[str, dict[int, float]] = {}
    for row in run.metrics:
        if row.get("kind") == kind:
            for name, value in row.items():
                if name not in ("stage", "step", "kind", "time"):
                    points.setdefault(name, {})[row["step"] + offsets[row["stage"]]] = value
    series = {}
    for name, values in points.items():
        steps = np.array(sorted(values))
        series[name] = (steps, np.array([values[step] for step in steps], np.float64))
    return series


def _boundaries(run: RunFiles, offsets: dict[int, int]) -> list[tuple[float, str]]:
    """Where the stages begin, and their names; none where there is one."""
    names = [str(stage.get("name", i)) for i, stage in enumerate(_stages(run))]
    if len(offsets) < 2:
        return []
    return [(o, names[s] if 0 <= s < len(names) else f"stage {s}") for s, o in offsets.items()]


def _watched(run: RunFiles) -> str:
    """Curves of the representation, and of the method's own figures, under whichever member's name they stand."""
    offsets = _offsets(run)
    boundaries, charts = _boundaries(run, offsets), []
    train = {n: xy for n, xy in _series(run, "train", offsets).items() if np.isfinite(xy[1]).any()}
    for wanted, (title, caption) in _WATCHED.items():
        for name in (n for n in train if n == wanted or n.endswith(f"/{wanted}")):
            said = title if name == wanted else f"{title}, {name.removesuffix(f'/{wanted}')}"
            charts.append(markup.figure(plots.curve({name: train[name]}, said, boundaries, smooth=True), caption))
    for prefix, (title, caption) in _SEVERAL.items():
        terms = {name.removeprefix(prefix): xy for name, xy in train.items() if name.startswith(prefix)}
        if len(terms) > 1:
            charts.append(markup.figure(plots.curve(terms, title, boundaries), caption))
    return f"<div class=charts>{''.join(charts)}</div>" if charts else ""


def _data(run: RunFiles) -> str:
    """Records that could not be used, and whether training waited for the others."""
    parts = []
    for i, stage in enumerate(_stages(run)):
        if (waiting := markup.number(stage.get("input_bound_ratio"))) is not None:
            shares = [
                (name, markup.number(share)) for name, share in markup.mapping(stage.get("reading_shares")).items()
            ]
            known = sorted(((share, name) for name, share in shares if share), reverse=True)
            spent = ", ".join(f"{markup.text(name)} {100 * share:.0f} %" for share, name in known)
            name = f"Stage {markup.text(stage.get('name', i))}: " if len(_stages(run)) > 1 else ""
            parts.append(
                f"<p>{name}{100 * waiting:.0f} % of the time was spent waiting for data."
                f"{f' Reading them was {spent}.' if spent else ''}</p>"
            )
        if stage.get("verdict"):
            parts.append(f"<p class=warn>{markup.text(stage['verdict'])}</p>")
    bad = markup.mapping(run.summary.get("bad_samples"))
    records = [markup.mapping(record) for record in bad.get("records") or ()]
    rows = [
        [markup.text(reason), markup.text(count), _first_names(records, reason)]
        for reason, count in markup.mapping(bad.get("reasons")).items()
    ]
    if rows:
        parts.append(
            "<p>These records could not be used. In training another took the place of each; evaluation leaves them "
            "out. All are listed in <code>bad_samples.jsonl</code>.</p>"
            + markup.table(["Reason", "Records", "The first"], rows)
        )
    return "".join(parts)


def _first_names(records: Sequence[Mapping[str, Any]], reason: str) -> str:
    named = [record for record in records if record.get("reason") == reason][:_MAX_BAD_NAMES]
    lines = (f"<code>{markup.text(r.get('name'))}</code>: {markup.text(r.get('detail'))}" for r in named)
    return "<br>".join(lines)


def _training(run: RunFiles) -> str:
    offsets = _offsets(run)
    boundaries = _boundaries(run, offsets)
    train, charts = _series(run, "train", offsets), []
    for name, title in _CURVES.items():
        if name in train and np.isfinite(train[name][1]).any():
            svg = plots.curve({name: train[name]}, title, boundaries, smooth=name != "learning_rate")
            charts.append(markup.figure(svg, _curve_caption(name, train[name])))
    evaluated = {n: xy for n, xy in _series(run, "eval", offsets).items() if np.isfinite(xy[1]).sum() >= 2}
    shares = {PROBES.get(name, name): xy for name, xy in evaluated.items() if name.endswith("/accuracy")}
    if shares:
        title = "Accuracy" if len(shares) > 1 else f"Accuracy, {next(iter(shares))}"
        caption = "Share of the test images named right, measured while training."
        levels = random_levels(run, shares)
        if levels:
            caption += " Dashed: the same encoder with random weights."
        charts.append(markup.figure(plots.curve(shares, title, boundaries, levels=levels), caption))
    others = [name for name in evaluated if "accuracy" not in name]
    for name in others[:_MAX_OTHER_CURVES]:
        charts.append(
            markup.figure(plots.curve({name: evaluated[name]}, name, boundaries), "Measured while training.")
        )
    return f"<div class=charts>{''.join(charts)}</div>" if charts else ""


def _curve_caption(name: str, series: tuple[np.ndarray, np.ndarray]) -> str:
    values = series[1][np.isfinite(series[1])]
    tenth = max(1, len(values) // 10)
    first, last = format_value(float(values[:tenth].mean())), format_value(float(values[-tenth:].mean()))
    captions = {
        "loss": f"What training makes small: from {first} to {last} (means of the first and last tenth).",
        "learning_rate": f"How large a step follows each batch: at most {format_value(float(values.max()))}.",
        "gradient_norm": "How strongly a batch pulls at the weights; sudden peaks would mean instability.",
        "images_per_second": f"Speed, over all devices: {format_value(float(np.median(values)))} in the median.",
    }
    missing = len(series[1]) - len(values)
    return captions[name] + (f" {missing} values were not finite." if missing else "")


def _strip(label: str, images: Iterable[str]) -> str:
    return f"<div class=strip><span>{markup.text(label)}</span><div class=row>{''.join(images)}</div></div>"


def _images(run: RunFiles) -> str:
    images = run.arrays.get("images")
    if images is None:
        return ""
    tiles = (markup.image(image, f"test image {i + 1}") for i, image in enumerate(plots.to_rgb(images[:_MAX_IMAGES])))
    caption = "Some of the test images, as they enter the network. It was never trained on these."
    return markup.figure(_strip("Test images", tiles), caption + _channels_note(images), wide=True)


def _reconstructions(run: RunFiles) -> str:
    if "reconstruction/original" not in run.arrays:
        return ""
    rows = []
    for name, label in (("original", "Original"), ("masked", "What it saw"), ("reconstructed", "Its guess")):
        images = plots.to_rgb(run.arrays[f"reconstruction/{name}"][:_MAX_IMAGES])
        rows.append(_strip(label, (markup.image(image, f"{label}, image {i + 1}") for i, image in enumerate(images))))
    caption = (
        "Top: test images. Middle: the patches it was given, the rest in gray. Bottom: what it painted in; "
        "blurred edges are normal, right shapes in the hidden places are what counts."
    )
    return markup.figure("".join(rows), caption + _channels_note(run.arrays["reconstruction/original"]), wide=True)


def _attention(run: RunFiles) -> str:
    if "attention/image" not in run.arrays:
        return ""
    images, maps = run.arrays["attention/image"], run.arrays["attention/maps"]
    heads = maps.shape[1]
    rgb = plots.to_rgb(images[:_MAX_IMAGES])
    rows = [_strip("Image", (markup.image(image, f"image {i + 1}") for i, image in enumerate(rgb)))]
    layers: list[tuple[str, np.ndarray]] = [("All heads", maps.mean(axis=1))]
    if heads > 1:
        layers += [(f"Head {h + 1}", maps[:, h]) for h in range(min(heads, _MAX_HEADS))]
    for label, attention in layers:
        overlays = (plots.attention_overlay(image, a) for image, a in zip(rgb, attention, strict=False))
        rows.append(_strip(label, (markup.image(o, f"{label}, image {i + 1}") for i, o in enumerate(overlays))))
    caption = (
        "Where the last layer looks to sum up an image: bright patches count most, dark ones hardly. "
        "Heads are parallel lookups that may specialise; each picture is scaled to its own brightest patch."
    )
    if heads > _MAX_HEADS:
        caption += f" Shown are {_MAX_HEADS} of {heads} heads."
    return markup.figure("".join(rows), caption + _channels_note(images), wide=True)


def _patches(run: RunFiles) -> str:
    if "patches/image" not in run.arrays:
        return ""
    images, tokens = run.arrays["patches/image"][:_MAX_IMAGES], run.arrays["patches/tokens"][:_MAX_IMAGES]
    # Each patch as a block of equal pixels, in the shape of the image it is from.
    colors = plots.patch_colors(tokens)
    rows = [
        _strip("Image", (markup.image(image, f"image {i + 1}") for i, image in enumerate(plots.to_rgb(images)))),
        _strip("Patches", (markup.image(grid, f"patch features of image {i + 1}") for i, grid in enumerate(colors))),
    ]
    caption = (
        "Each patch is coloured by its features, reduced to three numbers by principal components over all these "
        "images: patches of the same colour are alike to the network."
    )
    return markup.figure("".join(rows), caption + _channels_note(images), wide=True)


def _class_names(run: RunFiles) -> list[str]:
    return [str(name) for name in run.arrays.get("class_names", ())]


def _embedding(run: RunFiles) -> str:
    features, labels = run.arrays.get("embedding/features"), run.arrays.get("embedding/labels")
    if features is None or len(features) < 2 or not np.isfinite(features).all():
        return ""
    every = np.linspace(0, len(features) - 1, min(len(features), MAX_POINTS)).round().astype(int)
    points, method = flat_map(features[every])
    svg = plots.scatter(points, None if labels is None else labels[every], _class_names(run))
    caption = (
        f"Each of the {len(every)} points is a test image, placed by its features alone ({method}): close together "
        "means alike to the network."
    )
    if labels is not None:
        caption += (
            " Colours are the true classes, which the picture was not told; clear islands of one colour are good."
        )
    return markup.figure(svg, caption, wide=True)


def _neighbors(run: RunFiles) -> str:
    if "neighbors/query" not in run.arrays:
        return ""
    names = _class_names(run)
    queries, found = run.arrays["neighbors/query"][:_MAX_IMAGES], run.arrays["neighbors/images"]
    query_labels, labels = run.arrays.get("neighbors/query_label"), run.arrays.get("neighbors/labels")
    labelled = query_labels is not None and labels is not None
    rows = []
    for i, query in enumerate(plots.to_rgb(queries)):
        name = plots.label_name(int(query_labels[i]), names) if labelled else ""
        cells = [_neighbor("query", markup.image(query, f"test image {name}"), name)]
        for j, image in enumerate(plots.to_rgb(found[i, :_MAX_NEIGHBORS])):
            if not labelled:
                cells.append(_neighbor("", markup.image(image, "a similar image"), ""))
                continue
            other = plots.label_name(int(labels[i, j]), names)
            same = int(labels[i, j]) == int(query_labels[i])
            mark = "✓" if same else "✗"
            cells.append(
                _neighbor("same" if same else "differs", markup.image(image, f"neighbour {other}"), f"{mark} {other}")
            )
        rows.append(f"<div class=nbr>{''.join(cells)}</div>")
    caption = (
        "Left in each row: a test image; beside it the training images with the most similar features, best first."
    )
    if labelled:
        caption += " A green frame and ✓ mean the same class, an orange dashed frame and ✗ another one."
    return markup.figure(f"<div class=nbrs>{''.join(rows)}</div>", caption + _channels_note(queries), wide=True)


def _neighbor(kind: str, image: str, label: str) -> str:
    return f'<div class="cell {kind}">{image}<small>{markup.text(label)}</small></div>'


def _made(run: RunFiles) -> str:
    summary, data, hardware = (
        run.summary,
        markup.mapping(run.summary.get("data")),
        markup.mapping(run.summary.get("hardware")),
    )
    shape = data.get("image_shape")
    stages = "; ".join(f"{stage.get('name', i)}: {_stage_steps(stage)}" for i, stage in enumerate(_stages(run)))
    run_facts = markup.facts(
        [
            ("Objective", summary.get("objective")),
            ("Network", summary.get("network")),
            ("Parameters", summary.get("num_parameters")),
            ("Data", data.get("name")),
            ("Training images", data.get("num_examples")),
            ("Test images", data.get("num_test")),
            ("Image size", " × ".join(map(str, shape)) if isinstance(shape, list) else None),
            ("Classes", data.get("num_classes")),
            ("Batch size", summary.get("batch_size")),
            ("Steps", summary.get("steps")),
            ("Stages", stages),
            ("Seed", summary.get("seed")),
            ("Wall time", format_duration(markup.number(summary.get("wall_seconds")))),
            ("Images per second", markup.number(summary.get("images_per_second"))),
        ]
    )
    memory = markup.number(hardware.get("memory_gb"))
    devices = hardware.get("num_devices")
    machine_facts = markup.facts(
        [
            ("Devices", f"{devices} × {hardware.get('device_kind', '')}" if devices else None),
            ("Backend", hardware.get("platform")),
            ("Processor", hardware.get("cpu")),
            ("Cores used", hardware.get("cores")),
            ("Memory", f"{memory:.4g} GB" if memory else None),
        ]
    )
    version_facts = markup.facts(markup.mapping(summary.get("versions")).items())
    columns = [("Run", run_facts), ("Hardware", machine_facts), ("Versions", version_facts)]
    return _columns([(title, facts) for title, facts in columns if "<dt>" in facts])


def _columns(columns: Sequence[tuple[str, str]]) -> str:
    if not columns:
        return ""
    return "<div class=cols>" + "".join(f"<div><h3>{title}</h3>{facts}</div>" for title, facts in columns) + "</div>"


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted name and value of every setting; the entries of a list are numbered."""
    if isinstance(value, Mapping) and value:
        return [
            pair for key, item in value.items() for pair in _flatten(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [pair for i, item in enumerate(value) for pair in _flatten(item, f"{prefix}[{i}]")]
    return [(prefix, str(value))]


def _settings(run: RunFiles) -> str:
    if not run.config:
        return ""
    rows = [
        [f"<code>{markup.text(name)}</code>", f"<code>{markup.text(value)}</code>"]
        for name, value in _flatten(run.config)
    ]
    return f"<details><summary>{len(rows)} settings of this run's config</summary>{markup.table([], rows)}</details>"
