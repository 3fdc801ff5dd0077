"""Values that several recipes share, and any recipe at toy size; a recipe stays one page."""

import re

import ml_collections

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

TINY_BATCH, TINY_STEPS, TINY_VIEWS = 64, 40, 4
# Blocks that begin as good as switched off, or are often left out, are for networks of many and runs of many steps.
TINY_FIELDS = dict(layer_scale=0.1, drop_path=0.1)
LEFT_OUT = ("weights", "part", "scan", "remat")  # the last two are for deep networks: three blocks are slower by them
TINY_NETWORKS = {
    "bit": dict(depths=(1, 1, 1, 1), widths=(32, 32, 48, 64), stem_width=16, groups=8),
    "conv_decoder": dict(width=48, depth=2, groups=4),
    "convnext": dict(depths=(1, 1, 2, 1), widths=(16, 32, 48, 64)),
    "convnext_decoder": dict(width=48),
    # DINOv3's prototypes of any length begin so short that they take tens of thousands of steps to tell images apart.
    "dino_head": dict(out_dim=256, hidden_dim=128, bottleneck_dim=32, unit_prototypes=True),
    "jepa_predictor": dict(width=48, depth=2, heads=2),
    "masked_decoder": dict(width=48, depth=1, heads=2),
    "projection_head": dict(hidden_dim=512, out_dim=128),
    "prototypes": dict(num_prototypes=64),
    "resnet": dict(variant="18", width=16),
    "swin": dict(variant="T", width=24, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), window=4),
    "text": dict(width=64, depth=2, heads=2, mlp_dim=128),
    "upsampling_decoder": dict(width=64),
    "vgg": dict(variant="11", widths=(16, 24, 32, 48, 64), classifier_dim=64),
    "vit": dict(variant="mu/4", width=96, depth=3, heads=3, mlp_dim=192),
}


def dinov2_crops(
    global_size: int, local_size: int, gram_size: int | None = None, flip: float = 0.5
) -> dict[str, dict | tuple]:
    """DINOv2's and DINOv3's views: two global crops, eight local ones, and those of DINOv3's Gram teacher.

    The blur has the probabilities that the authors' code has in effect: never for the first global crop, and 0.9 for
    the second. It hands 1 - p to torchvision, which applies an operation with the probability that it is given.
    """
    color = (
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8,
             random_order=True),
        dict(name="grayscale", probability=0.2),
    )  # fmt: skip
    blur = dict(name="gaussian_blur", kernel_size=9, sigma=(0.1, 2.0))
    solarize = dict(name="solarize", threshold=0.5, probability=0.2)
    normalize = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def cut(size: int, scale: tuple[float, float] = (0.32, 1.0)) -> tuple:
        crop = dict(name="random_resized_crop", size=size, scale=scale, interpolation="bicubic")
        return crop, dict(name="flip", probability=flip)

    small = cut(local_size, (0.05, 0.32))
    views = {
        "global": (
            dict(ops=(*cut(global_size), *color, normalize)),
            dict(ops=(*cut(global_size), *color, dict(blur, probability=0.9), solarize, normalize)),
        ),
        "local": dict(num_views=8, ops=(*small, *color, dict(blur, probability=0.5), normalize)),
    }
    if gram_size is not None:  # the global crops as they were before their colours changed
        views["gram"] = dict(num_views=2, same_draws_as="global", ops=(*cut(gram_size), normalize))
    return views


def dinov2_groups(freeze_steps: int) -> tuple[dict, ...]:
    """DINOv2's and DINOv3's parameters that learn slower, begin later or do not decay."""
    return (
        dict(match=r"^encoder/patch_embedding/.*bias$", lr_scale=0.2, weight_decay=0.0),
        dict(match=r"^encoder/patch_embedding/", lr_scale=0.2),
        dict(match=r"/prototypes/", freeze_steps=freeze_steps),
        dict(match=r"(^|/)(bias|scale|gamma)$", weight_decay=0.0),
        dict(match=r".*"),
    )


def dino_crops(global_scale: tuple[float, float], local_scale: tuple[float, float], num_local: int) -> dict:
    """The views of DINO and iBOT: two global crops that differ in blur and solarisation, and local ones.

    Reference: Caron et al., 2021 (arXiv:2104.14294), Sec. 3.2, and `DataAugmentationDINO` of their code.
    """
    colors = (
        dict(name="flip", probability=0.5),
        dict(name="color_jitter", brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8),
        dict(name="grayscale", probability=0.2),
    )
    blur = dict(name="gaussian_blur", kernel_size=13, sigma=(0.1, 2.0))  # to three deviations; PIL's has no edge
    solarize = dict(name="solarize", threshold=0.5, probability=0.2)
    normalize = dict(name="normalize", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    crop = dict(name="random_resized_crop", interpolation="bicubic")
    whole, local = dict(crop, size=224, scale=global_scale), dict(crop, size=96, scale=local_scale)
    return {
        "global": (
            dict(ops=(whole, *colors, dict(blur, probability=1.0), normalize)),
            dict(ops=(whole, *colors, dict(blur, probability=0.1), solarize, normalize)),
        ),
        "local": dict(num_views=num_local, ops=(local, *colors, dict(blur, probability=0.5), normalize)),
    }


def tiny(c: ml_collections.ConfigDict, image_size: int = 32) -> ml_collections.ConfigDict:
    """The same method at toy size on the embedded photographs: under a minute on two CPU cores, no download.

    Networks are narrow and shallow, batches have 64 images, of many local crops there are four, crops keep their
    proportions to the first view, which gets `image_size` pixels, and whatever lasted a share of the run lasts that
    share of 40 steps. Views of later stages grow by a quarter at most. What keeps so short a run from learning is
    left out: blocks that begin switched off and teachers that grow softer. Methods, losses, augmentations and the
    kinds of optimizer and schedule stay.
    """
    full = c.to_dict()
    pixels = _first_size(full["views"])
    if "eval_views" not in full:  # of data without a test split
        normalize = [op for field in full["views"].values() for op in _ops(field) if op["name"] == "normalize"]
        full["eval_views"] = dict(image=dict(ops=(dict(name="resize", size=pixels), normalize[0])))
    small = _in_percent(full, full) | {
        "title": f"{full.get('title', 'A recipe')}, at toy size",
        "dtype": "float32",
        "total_steps": TINY_STEPS,
        "log_every_steps": 10,
        "data": dict(name="photos", split="train", crop_size=64, batch_size=TINY_BATCH),
        "eval_data": dict(test=dict(split="test")),
        "evals": dict(knn=dict(num_neighbors=20)),
        "baselines": ("random_init",),
    }
    if full["data"]["name"] == "pairs":
        small["data"] |= dict(name="photo_pairs", tokenizer=dict(name="learned", vocabulary=600))
        small["evals"] = dict(retrieval=dict())
    if not full.get("eval_views"):  # a recipe whose authors evaluate elsewhere
        normalize = [op for views in full["views"].values() for op in _ops(views) if op["name"] == "normalize"][:1]
        crop = dict(name="center_crop", size=pixels, resize_shorter=pixels)
        small["eval_views"] = dict(image=dict(ops=(crop, *normalize)))
    whole_run = ("start_from", "branch_from", "carry", "checkpoints")
    for field in (*whole_run, "mesh", "sharding", "num_micro_batches", "eval_batch_size"):
        small.pop(field, None)
    small |= _shrunk(small, image_size / pixels)
    if full["data"]["name"] == "pairs":  # one width for both towers
        towers = small["networks"]
        towers["text_encoder"]["projection"] = towers["encoder"].get("projection") or towers["encoder"]["width"]
    stages = [_shrunk(stage, image_size / _stage_pixels(stage, pixels)) for stage in small.get("stages", ())]
    if stages:
        short = {"total_steps": TINY_STEPS // len(stages)}
        small["stages"] = tuple({f: v for f, v in stage.items() if f != "data"} | short for stage in stages)
    batch = full["data"]["batch_size"]
    proportional = small["optimizer"]["name"] in ("lars", "sgd")  # steps of Adam's kind do not shrink with batches
    rate = max(small["schedule"]["base"], small["schedule"].get("end") or 0.0)  # it may rise to the end
    ratio = TINY_BATCH / batch if proportional else 1e-3 / rate
    for end in ("base", "start", "end"):
        if end in small["schedule"]:
            small["schedule"][end] *= ratio
    return ml_collections.ConfigDict(small)


def _first_size(views: dict) -> int:
    """Pixels along one side of the first view that says."""
    return next(op["size"] for field in ("image", *views) for op in _ops(views.get(field, ())) if "size" in op)


def _stage_pixels(stage: dict, pixels: int) -> float:
    """Which pixels become `image_size` in a stage: the run's, or more where its views grow by over a quarter."""
    return max(pixels, _first_size(stage["views"]) / 1.25) if "views" in stage else pixels


def _ops(field: dict | tuple) -> list:
    return [op for part in ((field,) if isinstance(field, dict) else field) for op in part.get("ops", ())]


def _shrunk(fields: dict, scale: float) -> dict:
    """The networks, views and objective of a recipe or of a stage at toy size; others stay away."""
    made = {}
    for field in {"views", "eval_views"} & fields.keys():
        made[field] = _scaled(fields[field], scale)
    if "networks" in fields:
        made["networks"] = {role: _small(network) for role, network in fields["networks"].items()}
    if "objective" in fields:
        made["objective"] = {field: _as_it_starts(field, value) for field, value in fields["objective"].items()}
    return fields | made


def _small(network: dict | None) -> dict | None:
    if network is None:
        return None
    changes = TINY_FIELDS | TINY_NETWORKS.get(network.get("name"), {})
    network = {field: value for field, value in network.items() if field not in LEFT_OUT}
    optional = ("out_dim", *TINY_FIELDS)  # changed where they are, and not none or zero
    return network | {field: value for field, value in changes.items() if field not in optional or network.get(field)}


def _as_it_starts(field: str, value: object) -> object:
    """A teacher stays as sharp as it starts: softened within so few steps it holds every prototype for as likely."""
    softens = re.fullmatch(r"teacher(_patch)?_temperature", field) and isinstance(value, dict) and "start" in value
    return value["start"] if softens else value


def _scaled(value: object, scale: float) -> object:
    """A spec of views with every size in pixels scaled, to a multiple of four, and no more views than a few."""
    if isinstance(value, dict):
        sizes = {field: value[field] for field in ("size", "resize_shorter") if field in value}
        smaller = {field: max(12, 4 * round(size * scale / 4)) for field, size in sizes.items()}
        if value.get("num_views"):
            smaller["num_views"] = min(value["num_views"], TINY_VIEWS)
        return {field: _scaled(inner, scale) for field, inner in value.items()} | smaller
    return tuple(_scaled(inner, scale) for inner in value) if isinstance(value, tuple | list) else value


def _in_percent(value: object, full: dict) -> object:
    """The recipe with its durations in epochs, examples and steps as the same share of the run."""
    if isinstance(value, tuple | list):
        return tuple(_in_percent(inner, full) for inner in value)
    if not isinstance(value, dict):
        return value
    made = {}
    for field, inner in value.items():
        found = re.fullmatch(r"(?!total|log)(\w+)_(epochs|examples|steps)", field)
        if found and isinstance(inner, int | float):
            made[f"{found[1]}_percent"] = 100 * inner / _total(full, found[2])
        elif found and isinstance(inner, tuple):
            made[f"{found[1]}_percent"] = tuple(100 * one / _total(full, found[2]) for one in inner)
        elif not re.fullmatch(r"total_(epochs|examples|steps)", field):
            made[field] = _in_percent(inner, full)
    return made


def _total(full: dict, unit: str) -> float:
    """The length of the run in a unit, where the recipe tells it; ImageNet-1k's examples make the epochs."""
    batch, examples = full["data"]["batch_size"], 1_281_167
    seen = {
        "steps": full.get("total_steps", 0) * batch,
        "epochs": full.get("total_epochs", 0) * examples,
        "examples": full.get("total_examples", 0),
    }
    return sum(seen.values()) / {"steps": batch, "epochs": examples, "examples": 1}[unit]
