"""Exports, loaded unchanged by transformers and timm: every tensor finds its place, and the outputs are ours.

Needs the extra `parity`. References are the golden models; beside them stand networks of our own in sizes and shapes
that no reference has, with random parameters.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vfm_jax.export.weights import export_weights
from vfm_jax.nn.masking import mask_by_noise
from vfm_jax.weights.family import Preprocessing
from vfm_jax.weights.load import abstract_leaves, as_variables, load_pretrained, make_model
from vfm_jax.weights.rules import Bundle
from vfm_jax.weights.save import export

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # other libraries' warnings are not ours

HERE = pathlib.Path(__file__).parent.parent
HOMES = [HERE / "golden" / "models", HERE.parent.parent / "shared" / "golden" / "models"]
TOLERANCE = dict(rtol=1e-3, atol=1e-4)

BACK = (  # into the format it came from
    *("hf_aimv2", "hf_beit", "hf_bit", "hf_convnext", "hf_convnext_b", "hf_convnextv2", "hf_deit_distilled"),
    *("hf_dinov2", "hf_dinov2_b", "hf_dinov2_interp", "hf_dinov2_masked", "hf_dinov2_reg", "hf_dinov2_swiglu"),
    *("hf_dinov2_swiglu_b", "hf_dinov3_convnext", "hf_dinov3_vit", "hf_ijepa", "hf_ijepa_b", "hf_resnet"),
    *("hf_resnet_b", "hf_siglip_vision_interp", "hf_siglip_vision_interp_b", "hf_swin", "hf_swin_b", "hf_swin_odd"),
    *("hf_swinv2", "hf_vit", "hf_vit_cls", "hf_vit_cls_b", "hf_vit_interp", "timm_beit", "timm_convnext"),
    *("timm_convnextv2", "timm_convnextv2_b", "timm_deit_distilled", "timm_deit_distilled_b", "timm_dinov3_vit"),
    *("timm_resnet", "timm_swin", "timm_swin_odd", "timm_swinv2", "timm_vit", "timm_vit_clip", "timm_vit_gap"),
    *("timm_vit_qknorm", "timm_vit_reg_dinov2", "timm_vit_siglip", "timm_vit_siglip_b"),
)
ACROSS = (  # from one library to the other
    *("hf_dinov2", "hf_dinov2_reg", "hf_dinov2_swiglu", "hf_dinov3_vit", "hf_dinov3_convnext"),
    *("hf_siglip_vision_interp", "hf_swin", "hf_swin_b", "timm_beit", "timm_convnext", "timm_convnextv2"),
    *("timm_deit_distilled", "timm_resnet", "timm_swin", "timm_vit", "timm_vit_reg_dinov2", "timm_vit_siglip"),
)
AUTHORS = ("orig_dino", "orig_dinov2", "orig_dinov2_swiglu", "orig_dinov3")


def golden(name):
    for home in HOMES:
        if (home / name).exists():
            return home / name
    pytest.skip(f"needs ../shared/golden/models/{name}, which is not here")
    return None


def library(name):
    """The package, or that of a format; the test is skipped where it is not installed."""
    name = {"hf": "transformers"}.get(name, name)
    return pytest.importorskip(name, reason=f"needs the extra `parity`: {name} is not installed")


def pixels_for(size, channels):
    return np.random.default_rng(0).standard_normal((2, *size, channels)).astype(np.float32)


# ------------------------------------------------------------------------------------------- what the libraries give


def tokens_of(array):
    """A map (b c h w) as tokens; tokens as they are."""
    return array.flatten(2).transpose(1, 2) if array.ndim == 4 else array


def of_transformers(folder, pixels, source=None):
    """Outputs of the class that config.json names, loaded strictly; and of AutoModel, which must take it too."""
    torch = library("torch")
    transformers = library("hf")
    config = json.loads((folder / "config.json").read_text())
    model = strictly(getattr(transformers, config["architectures"][0]), folder, source)
    assert transformers.AutoConfig.from_pretrained(folder).model_type == config["model_type"]
    with torch.no_grad():
        made = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    found = {}
    if getattr(made, "last_hidden_state", None) is not None:
        found["tokens"] = tokens_of(made.last_hidden_state)
    if getattr(made, "pooler_output", None) is not None:
        found["pooled"] = made.pooler_output.flatten(1)
    if getattr(made, "logits", None) is not None:
        found["logits"] = made.logits
    return {name: value.numpy() for name, value in found.items()}


def strictly(kind, folder, source=None):
    """The model with nothing missing, left over or mismatched, but for what the source's own folder leaves over."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    before = kind.from_pretrained(source, output_loading_info=True)[1] if source else {}
    assert not info["missing_keys"], info
    assert not info["mismatched_keys"], info
    assert set(info["unexpected_keys"]) <= set(before.get("unexpected_keys", ())), info
    return model.eval()


def of_timm(folder, pixels, width):
    """Outputs of timm's model of this folder, which has these tensors and no others."""
    torch = library("torch")
    timm = library("timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    written, loaded = load_file(folder / "model.safetensors"), model.state_dict()
    assert written.keys() == loaded.keys()
    for name, value in written.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)
    image = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        tokens = model.forward_features(image)
        if tokens.ndim == 4 and tokens.shape[-1] == width and tokens.shape[1] != width:
            tokens = tokens.permute(0, 3, 1, 2)  # Swin is channels last
        return {"tokens": tokens_of(tokens).numpy(), "output": model(image).numpy()}


def compare(folder, format, model, variables, pixels, source=None):
    """The library's outputs for the exported folder, beside those of our own network."""
    features = jax.jit(model.apply)(variables, jnp.asarray(pixels))
    ours = {"tokens": features.tokens, "pooled": features.pooled, "output": features.pooled}
    if "head" in variables["params"]:
        ours["logits"] = ours["output"] = jax.jit(
            lambda variables, image: model.apply(variables, image, method="logits")
        )(variables, jnp.asarray(pixels))
    if format == "hf":
        theirs = of_transformers(folder, pixels, source)
    else:
        theirs = of_timm(folder, pixels, features.tokens.shape[2])
        if getattr(model.encoder, "mean_token", False):
            del theirs["tokens"]  # an export's note says how they differ
    assert theirs
    for name, value in theirs.items():
        np.testing.assert_allclose(value, ours[name], **TOLERANCE, err_msg=name)


# ------------------------------------------------------------------------------------------- golden models


def check_golden(source, format, tmp_path):
    library(format)
    made = export_weights(source, format, tmp_path / "out")
    assert made.family.startswith(f"{format}/")
    loaded = load_pretrained(source)
    settings = loaded.preprocessing.settings
    pixels = pixels_for(settings.size, len(settings.mean))
    own = source if format == "hf" and (source / "config.json").is_file() and source.name.startswith("hf_") else None
    compare(made.folder, format, loaded.model, loaded.variables, pixels, own)


@pytest.mark.parametrize("name", BACK)
def test_a_model_of_theirs_goes_back(name, tmp_path):
    check_golden(golden(name), name.split("_")[0], tmp_path)


@pytest.mark.parametrize("name", ACROSS)
def test_a_model_of_one_library_goes_to_the_other(name, tmp_path):
    check_golden(golden(name), {"hf": "timm", "timm": "hf"}[name.split("_")[0]], tmp_path)


@pytest.mark.parametrize("format", ["hf", "timm"])
@pytest.mark.parametrize("name", AUTHORS)
def test_an_authors_file_goes_to_both_libraries(name, format, tmp_path):
    library(format)
    arrays = np.load(golden(f"{name}.npz"))
    heads = json.loads(str(arrays["meta"]))["config"]["num_heads"]
    params = {key.removeprefix("param/"): arrays[key] for key in arrays.files if key.startswith("param/")}
    source = tmp_path / "weights.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in params.items()}, source)
    made = export_weights(source, format, tmp_path / "out", heads=heads)
    loaded = load_pretrained(source, heads=heads)
    pixels = pixels_for(loaded.preprocessing.settings.size, 3)
    compare(made.folder, format, loaded.model, loaded.variables, pixels)


@pytest.mark.parametrize("name", ["hf_beit_mim", "hf_beit_mim_b"])
def test_beit_predicts_masked_patches_as_transformers_does(name, tmp_path):
    torch = library("torch")
    transformers = library("hf")
    source = golden(name)
    made = export_weights(source, "hf", tmp_path / "out")
    model = strictly(transformers.BeitForMaskedImageModeling, made.folder)
    io = np.load(source / "io.npz")
    with torch.no_grad():
        found = model(torch.from_numpy(io["pixel_values"]), bool_masked_pos=torch.from_numpy(io["bool_masked_pos"]))
    np.testing.assert_allclose(found.logits, io["logits"], **TOLERANCE)


def test_mae_reconstructs_as_transformers_does(tmp_path):
    torch = library("torch")
    transformers = library("hf")
    source = golden("hf_vitmae")
    made = export_weights(source, "hf", tmp_path / "out")
    model = strictly(transformers.ViTMAEForPreTraining, made.folder)
    io = np.load(source / "io.npz")
    with torch.no_grad():
        found = model(torch.from_numpy(io["pixel_values"]), noise=torch.from_numpy(io["noise"]))
    np.testing.assert_allclose(found.logits, io["logits"], **TOLERANCE)
    np.testing.assert_array_equal(found.mask, io["mask"])


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip"])
def test_both_towers_compare_images_and_texts_as_transformers_does(name, tmp_path):
    torch = library("torch")
    transformers = library("hf")
    source = golden(name)
    made = export_weights(source, "hf", tmp_path / "out")
    model = strictly(transformers.AutoModel, made.folder)
    io = np.load(source / "io.npz")
    inputs = {key: torch.from_numpy(io[key]) for key in ("pixel_values", "input_ids", "attention_mask") if key in io}
    with torch.no_grad():
        found = model(**inputs).logits_per_image
    loaded = load_pretrained(source)
    mask = jnp.asarray(io["attention_mask"], bool) if "attention_mask" in io else None
    image = jnp.asarray(io["pixel_values"].transpose(0, 2, 3, 1), jnp.float32)
    ours = jax.jit(loaded.model.apply)(loaded.variables, image, jnp.asarray(io["input_ids"], jnp.int32), mask)
    logits = np.asarray(ours.logits)
    np.testing.assert_allclose(found, logits if logits.shape == tuple(found.shape) else logits.T, **TOLERANCE)


def test_siglip2_takes_packed_images_as_transformers_does(tmp_path):
    torch = library("torch")
    transformers = library("hf")
    source = golden("hf_siglip2_naflex")
    made = export_weights(source, "hf", tmp_path / "out")
    model = strictly(transformers.AutoModel, made.folder)
    io = np.load(source / "io.npz")
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes", "input_ids", "attention_mask")
    with torch.no_grad():
        found = model(**{name: torch.from_numpy(io[name]) for name in names if name in io.files})
    np.testing.assert_allclose(found.logits_per_image, io["logits_per_image"], **TOLERANCE)


# ------------------------------------------------------------------------------------------- networks of ours


def small_vit(**fields):
    return {"name": "vit", "variant": "B/4", "width": 24, "depth": 2, "mlp_dim": 48, "heads": 3, **fields}


def classes(number):
    return {"name": "linear_head", "num_classes": number}


CONVNEXT = {"name": "convnext", "depths": (1, 2, 1, 1), "widths": (8, 12, 20, 28), "layer_scale": 0.1}
RESNET = {"name": "resnet", "block": "basic", "depths": (1, 2, 1, 1), "widths": (64, 24, 32, 40), "stem_width": 64}
SWIN = {"name": "swin", "width": 12, "depths": (2, 2), "heads": (2, 3), "window": 4, "patch": 2}
BIT = {"name": "bit", "widths": (128, 256, 256, 384), "stem_width": 64, "standardize_epsilon": 1e-8}
DECODER = {"name": "masked_decoder", "width": 20, "depth": 1, "heads": 2}

# name: networks, image height and width, channels, the family of each library (None: refused)
OURS = {
    "classifier": ({"encoder": small_vit(mlp_dim=40), "head": classes(5)}, (12, 20), 4, "vit", "vit"),
    "features": ({"encoder": small_vit(positions="sincos2d")}, (12, 12), 3, "dinov2", "vit"),
    "pooler": ({"encoder": small_vit(representation=24, prefix_positions=1)}, (16, 8), 1, "vit", None),
    "mean": ({"encoder": small_vit(pooling="mean", class_token=False)}, (8, 16), 3, "ijepa", "vit"),
    "mean_norm": ({"encoder": small_vit(pooling="mean", norm_pooled=True)}, (8, 16), 3, None, "vit"),
    "registers": ({"encoder": small_vit(registers=3, layer_scale=0.5)}, (8, 8), 3, "dinov2_with_registers", "vit"),
    "swiglu": (
        {"encoder": small_vit(mlp="swiglu", activation="silu", mlp_dim=64, layer_scale=1.0, mask_token=True)},
        (16, 16),
        3,
        "dinov2",
        "vit",
    ),
    "dinov3": (
        {"encoder": small_vit(positions="rope", registers=2, layer_scale=1.0, norm_epsilon=1e-5, key_bias=False)},
        (12, 20),
        3,
        "dinov3_vit",
        None,
    ),
    "distilled": (
        {"encoder": small_vit(distillation_token=True), "head": classes(4), "distillation_head": classes(4)},
        (12, 12),
        3,
        "deit",
        "vit",
    ),
    "siglip": ({"encoder": small_vit(class_token=False, pooling="attention", activation="gelu_tanh", mlp_dim=96)},
               (16, 16), 3, "siglip", "vit"),
    "qk_norm": ({"encoder": small_vit(qk_norm=True), "head": classes(3)}, (12, 16), 3, None, "vit"),
    "quick_gelu": ({"encoder": small_vit(activation="quick_gelu"), "head": classes(3)}, (12, 16), 3, "vit", "vit"),
    "relu": ({"encoder": small_vit(activation="relu"), "head": classes(3)}, (12, 16), 3, "vit", "vit"),
    "epsilon": ({"encoder": small_vit(norm_epsilon=1e-3), "head": classes(3)}, (12, 16), 3, "vit", None),
    "mae": ({"encoder": small_vit(positions="sincos2d"), "decoder": DECODER}, (16, 16), 3, "vit_mae", "vit"),
    "convnext": ({"encoder": CONVNEXT, "head": classes(5)}, (64, 96), 4, "convnext", "convnext"),
    "convnext_v2": (
        {"encoder": {**CONVNEXT, "grn": True, "layer_scale": None}}, (32, 64), 3, "convnextv2", "convnext",
    ),
    "resnet": ({"encoder": RESNET, "head": classes(5)}, (64, 32), 4, "resnet", "resnet"),
    "bottleneck": (
        {"encoder": {**RESNET, "block": "bottleneck", "widths": (32, 64, 96, 128)}}, (48, 64), 3, "resnet", "resnet",
    ),
    "swin": ({"encoder": SWIN, "head": classes(3)}, (32, 32), 4, "swin", "swin"),
    "swin_v2": ({"encoder": {**SWIN, "version": 2, "window_rule": "separate"}}, (32, 48), 3, "swinv2", "swinv2"),
    "bit": ({"encoder": BIT, "head": classes(3)}, (64, 96), 3, "bit", "bit"),
    "mixer": ({"encoder": {"name": "mixer", "variant": "S/32", "token_dim": 20, "activation": "gelu"},
               "head": classes(3)}, (96, 64), 3, None, "mixer"),
}  # fmt: skip


def random_leaves(networks, size, channels):
    shapes = abstract_leaves(make_model(networks), Bundle(networks, size, channels))
    generator = np.random.default_rng(1)
    leaves = {}
    for (collection, name), shape in shapes.items():
        value = generator.standard_normal(shape.shape).astype(np.float32)
        if name.endswith(("scale", "gamma", "/var")):
            value = 1 + np.float32(0.1) * np.abs(value)
        elif name.endswith("kernel"):
            value /= np.sqrt(np.float32(max(1, np.prod(shape.shape[:-1]))))
        else:
            value *= np.float32(0.1)
        leaves[collection, name] = value
    return leaves


def check_ours(name, format, tmp_path):
    networks, size, channels, *families = OURS[name]
    library(format)
    leaves = random_leaves(networks, size, channels)
    settings = Preprocessing(size, (0.5,) * channels, (0.25,) * channels, "bilinear", 0.9)
    made = export(tmp_path / "out", format, Bundle(networks, size, channels), leaves, settings)
    assert made.family == f"{format}/{families[format == 'timm']}"
    compare(made.folder, format, make_model(networks), as_variables(leaves), pixels_for(size, channels))
    return made


@pytest.mark.parametrize("name", [name for name, case in OURS.items() if case[3] and name != "mae"])
def test_a_network_of_ours_runs_in_transformers(name, tmp_path):
    made = check_ours(name, "hf", tmp_path)
    processor = library("hf").AutoImageProcessor.from_pretrained(made.folder)
    assert set(processor.image_std) == {0.25}


def reconstructed(model, image, noise):
    keep, masked = mask_by_noise(noise, 0.75)
    features = model.encoder(image, keep=keep)
    return model.decoder(features.tokens, keep, features.grid, 3 * model.encoder.patch_size**2), masked


def test_a_masked_autoencoder_of_ours_reconstructs_in_transformers_what_it_does_here(tmp_path):
    torch = library("torch")
    transformers = library("hf")
    networks, size, channels, *_ = OURS["mae"]
    leaves = random_leaves(networks, size, channels)
    settings = Preprocessing(size, (0.5,) * 3, (0.25,) * 3)
    made = export(tmp_path / "out", "hf", Bundle(networks, size, channels), leaves, settings)
    assert made.family == "hf/vit_mae"
    model, image = make_model(networks), pixels_for(size, channels)
    noise = np.random.default_rng(2).random((2, 16)).astype(np.float32)
    run = jax.jit(lambda *given: model.apply(*given, method=reconstructed))
    ours, masked = run(as_variables(leaves), jnp.asarray(image), jnp.asarray(noise))
    theirs = strictly(transformers.ViTMAEForPreTraining, made.folder)
    with torch.no_grad():
        found = theirs(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()), noise=torch.from_numpy(noise))
    np.testing.assert_array_equal(masked, found.mask.numpy().astype(bool))
    np.testing.assert_allclose(found.logits, ours, **TOLERANCE)


@pytest.mark.parametrize("name", [name for name, case in OURS.items() if case[4]])
def test_a_network_of_ours_runs_in_timm(name, tmp_path):
    made = check_ours(name, "timm", tmp_path)
    timm = library("timm")
    cfg = timm.create_model(f"local-dir:{made.folder}").pretrained_cfg
    _, size, channels, *_ = OURS[name]
    assert tuple(cfg["input_size"]) == (channels, *size)
    assert (set(cfg["std"]), cfg["interpolation"], cfg["crop_pct"]) == ({0.25}, "bilinear", 0.9)


@pytest.mark.slow
def test_the_papers_vgg_runs_in_timm(tmp_path):
    """timm has no smaller one: half a gigabyte."""
    library("timm")
    networks = {"encoder": {"name": "vgg", "variant": "11", "classifier": "slide", "batch_norm": True}}
    networks["head"] = classes(3)
    leaves = random_leaves(networks, (224, 224), 3)
    settings = Preprocessing((224, 224), (0.5,) * 3, (0.25,) * 3)
    made = export(tmp_path / "out", "timm", Bundle(networks, (224, 224), 3), leaves, settings)
    assert made.family == "timm/vgg"
    compare(made.folder, "timm", make_model(networks), as_variables(leaves), pixels_for((224, 224), 3))
