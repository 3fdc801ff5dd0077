"""Every reference model through `load_pretrained`: outputs layer by layer, an empty account, and back bit for bit.

The references are folders and files as users have them; a file of parameters alone is written as its authors would.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vfm_jax.losses.reconstruction import masked_patch_mse, standardize_patches
from vfm_jax.nn.patches import patchify
from vfm_jax.weights.load import FAMILIES, as_variables, load_pretrained, read_weights
from vfm_jax.weights.rules import foreign_tensors

HERE = pathlib.Path(__file__).parent.parent
KEPT = HERE / "golden" / "models"
SHARED = HERE.parent.parent / "shared" / "golden" / "models"
HOME = SHARED if SHARED.is_dir() else KEPT
TOLERANCE = dict(rtol=1e-3, atol=1e-4)

FOLDERS = sorted(path.parent.name for path in HOME.glob("*/io.npz"))
TEXT_MODELS = ("hf_clip", "hf_siglip", "hf_siglip2_naflex")
# Made for this repository, with masks, or levels by other rules: test_swin.py and test_convnets.py compare them.
OF_OUR_OWN = ("hf_swin_odd", "timm_swin_odd", "timm_swinv2", "timm_mixer")
ELSEWHERE = (*TEXT_MODELS, "hf_vitmae", *OF_OUR_OWN)


def nhwc(pixels):
    return jnp.asarray(pixels.transpose(0, 2, 3, 1), jnp.float32)


def as_tokens(array):
    """A reference map (b c h w), or timm's Swin (b h w c), as our tokens; tokens as they are."""
    return array.transpose(0, 2, 3, 1).reshape(array.shape[0], -1, array.shape[1]) if array.ndim == 4 else array


def close(found, wanted, what):
    found = np.asarray(found)
    assert found.shape == wanted.shape, what
    np.testing.assert_allclose(found, wanted, **TOLERANCE, err_msg=what)


def apply(loaded, image, method=None, **kwargs):
    run = jax.jit(lambda variables, image: loaded.model.apply(variables, image, method=method, **kwargs))
    return run(loaded.variables, image)


def test_there_are_references():
    assert FOLDERS


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in ELSEWHERE])
def test_an_image_model_gives_what_its_library_gave(name):
    folder = HOME / name
    io = np.load(folder / "io.npz")
    if "hidden_state_0" in io or "intermediate_0" in io or "features_4" in io:
        check_levels(folder, io)
    else:
        check(load_pretrained(folder, **size_of(io)), io)


def size_of(io):
    return {"image_size": io["pixel_values"].shape[2:]}


def check(loaded, io, features=None):
    """Everything in `io` that a file of this kind may hold; an array nobody compares fails."""
    image = nhwc(io["pixel_values"])
    assert not loaded.account.fresh
    assert not loaded.account.unused, loaded.account
    kwargs = {"masked": jnp.asarray(io["bool_masked_pos"])} if "bool_masked_pos" in io else {}
    features = features or apply(loaded, image, **kwargs)
    networks = loaded.variables["params"]
    left = {name for name in io.files if not name.startswith(("hidden_state", "intermediate", "features_"))}
    left -= {"pixel_values", "bool_masked_pos", "avgpool"}
    for name in sorted(left):
        if name in ("last_hidden_state", "forward_features"):
            wanted = io[name]
            if wanted.ndim == 4 and wanted.shape[3] == features.tokens.shape[2]:  # timm's Swin is channels last
                wanted = wanted.reshape(wanted.shape[0], -1, wanted.shape[3])
            wanted = as_tokens(wanted)
            tokens = features.patch_tokens if wanted.shape[1] == features.patch_tokens.shape[1] else features.tokens
            close(tokens, wanted, name)
        elif name in ("pooler_output", "pre_logits"):
            if "distillation_head" in networks:
                close((features.tokens[:, 0] + features.tokens[:, 1]) / 2, io[name], name)
            else:
                close(features.pooled, io[name].reshape(io[name].shape[0], -1), name)
        elif name == "logits" and "head" not in networks and "token_head" not in networks:
            close(features.pooled, io[name], name)  # timm without a classifier passes the pooled vector on
        elif name == "logits":
            close(apply(loaded, image, "logits") if not kwargs else masked_logits(loaded, features), io[name], name)
        elif name in ("cls_logits", "distillation_logits"):
            role, token = (("head", 0), ("distillation_head", 1))[name.startswith("dist")]
            head = getattr(loaded.model, role)
            logits = head.apply({"params": networks[role]}, features.tokens[:, token], train=False)
            close(logits, io[name], name)
        else:
            raise AssertionError(f"nothing compares {name}")


def masked_logits(loaded, features):
    head = loaded.model.token_head
    return head.apply({"params": loaded.variables["params"]["token_head"]}, features.patch_tokens, train=False)


def check_levels(folder, io):
    hidden = sorted((n for n in io.files if n.startswith("hidden_state_")), key=lambda n: int(n.rsplit("_", 1)[1]))
    intermediate = sorted(n for n in io.files if n.startswith("intermediate_"))
    pooled = sorted((n for n in io.files if n.startswith("features_")), key=lambda n: int(n.rsplit("_", 1)[1]))
    if intermediate:
        count = len(intermediate)
        loaded = load_pretrained(folder, levels=tuple(range(-count, 0)), norm_levels=True, **size_of(io))
        wanted = [io[name] for name in intermediate]
    else:
        states = hidden[1:] or pooled
        swin = {"merged_levels": True} if "swin" in folder.name else {}  # theirs come after the merging of patches
        loaded = load_pretrained(folder, levels=tuple(range(len(states))), **swin, **size_of(io))
        wanted = [as_tokens(io[name]) for name in states]
    features = apply(loaded, nhwc(io["pixel_values"])) if "bool_masked_pos" not in io else None
    assert len(features.levels) == len(wanted)
    for i, (level, reference) in enumerate(zip(features.levels, wanted, strict=True)):
        level = level[:, -reference.shape[1] :] if intermediate else level
        close(level, reference, f"level {i}")
    check(loaded, io, features)


# ------------------------------------------------------------------------------------- authors' own files


def written(folder, params, format):
    if format == "npz":
        np.savez(folder / "weights.npz", **params)
        return folder / "weights.npz"
    save_file({name: np.ascontiguousarray(value) for name, value in params.items()}, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def original(name, tmp_path, prefix="param/", format="safetensors", **given):
    if not (HOME / f"{name}.npz").is_file():
        pytest.skip(f"needs ../shared/golden/models/{name}.npz, which is not here")
    golden = np.load(HOME / f"{name}.npz")
    meta = json.loads(str(golden["meta"]))["config"]
    params = {key.removeprefix(prefix): golden[key] for key in golden.files if key.startswith(prefix)}
    return golden, meta, load_pretrained(written(tmp_path, params, format), **given)


@pytest.mark.parametrize(
    "name", ["orig_dino", "orig_dinov2", "orig_dinov2_reg_interp", "orig_dinov2_swiglu", "orig_dinov3"]
)
def test_the_authors_own_file_gives_what_their_code_gave(name, tmp_path):
    path = HOME / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"needs ../shared/golden/models/{name}.npz, which is not here")
    heads = json.loads(str(np.load(path)["meta"]))["config"]["num_heads"]
    golden, meta, loaded = original(name, tmp_path, heads=heads, levels=(0, 1, 2)[: 2 + (name.endswith("swiglu"))])
    del meta
    assert loaded.account.family.startswith(f"original/{name.split('_')[1]}")
    assert not loaded.account.fresh
    assert not loaded.account.unused
    image = nhwc(golden["x_nchw"])
    features = apply(loaded, image)
    if name == "orig_dino":
        close(features.pooled, golden["y"], "y")
        encoder = loaded.model.encoder
        weights = encoder.apply({"params": loaded.variables["params"]["encoder"]}, image, method="attention")
        rows = golden["last_attention"][:, :, 0, 1:]
        close(weights, rows.reshape(weights.shape), "last_attention")
        return
    masked = apply(loaded, image, masked=jnp.asarray(golden["mask"]))
    for prefix, seen in (("", features), ("masked_", masked)):
        registers = seen.tokens[:, 1 : seen.num_prefix_tokens]
        close(seen.pooled, golden[f"{prefix}x_norm_clstoken"], f"{prefix}class")
        close(seen.patch_tokens, golden[f"{prefix}x_norm_patchtokens"], f"{prefix}patches")
        for other in ("x_norm_regtokens", "x_storage_tokens"):
            if prefix + other in golden.files:
                close(registers, golden[prefix + other], prefix + other)
        if f"{prefix}x_prenorm" in golden.files:
            close(seen.levels[-1], golden[f"{prefix}x_prenorm"], f"{prefix}x_prenorm")


@pytest.mark.parametrize("name", ["bigvision_vit_gap", "bigvision_vit_map", "bigvision_vit_tok"])
def test_a_big_vision_file_gives_what_big_vision_gave(name, tmp_path):
    path = HOME / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"needs ../shared/golden/models/{name}.npz, which is not here")
    golden = np.load(path)
    image = jnp.asarray(golden["x_nhwc"], jnp.float32)
    _, _, loaded = original(name, tmp_path, format="npz", image_size=image.shape[1:3])
    assert loaded.account.family == "big_vision/vit"
    np.testing.assert_allclose(apply(loaded, image, "logits"), golden["y"], rtol=1e-4, atol=1e-5)
    features = apply(loaded, image)
    np.testing.assert_allclose(features.pooled, golden["out/pre_logits"], rtol=1e-4, atol=1e-5)


def test_mae_of_hugging_face_reconstructs_what_it_did():
    folder = HOME / "hf_vitmae"
    if not folder.is_dir():
        pytest.skip("needs ../shared/golden/models/hf_vitmae, which is not here")
    io, config = np.load(folder / "io.npz"), json.loads((folder / "config.json").read_text())
    loaded = load_pretrained(folder)
    assert not loaded.account.fresh
    assert not loaded.account.unused

    def reconstruct(variables, image, noise):
        def run(model, image, noise):
            from vfm_jax.nn.masking import mask_by_noise

            keep, masked = mask_by_noise(noise, config["mask_ratio"])
            features = model.encoder(image, keep=keep)
            return model.decoder(features.tokens, keep, features.grid, 3 * config["patch_size"] ** 2), masked

        return loaded.model.apply(variables, image, noise, method=run)

    pixels, masked = jax.jit(reconstruct)(
        loaded.variables, nhwc(io["pixel_values"]), jnp.asarray(io["noise"], jnp.float32)
    )
    np.testing.assert_array_equal(masked, io["mask"].astype(bool))
    close(pixels, io["logits"], "logits")
    target = standardize_patches(patchify(nhwc(io["pixel_values"]), config["patch_size"]))
    loss = jnp.mean(masked_patch_mse(pixels, target, masked))
    np.testing.assert_allclose(loss, io["loss"], rtol=1e-3)


# ------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_read_and_written_again_is_equal_in_every_bit(name):
    tensors = load_file(HOME / name / "model.safetensors")
    weights = read_weights(HOME / name)
    leaves = {leaf: weights.read(leaf) for leaf in weights.rules}
    again = dict(foreign_tensors(list(weights.rules.values()), leaves))
    again |= {buffer.tensor: buffer.value for buffer in weights.family.buffers(weights.bundle)}
    weights.file.close()
    assert again.keys() == tensors.keys()
    for tensor, value in tensors.items():
        assert again[tensor].dtype == value.dtype, tensor
        np.testing.assert_array_equal(again[tensor], value, err_msg=tensor)
    assert as_variables(leaves)["params"]


def without_defaults(config, defaults):
    """The config as hub files often have it: what equals the default of its class is left out."""
    kept = {}
    for field, value in config.items():
        if isinstance(value, dict) and field.endswith("_config"):
            kept[field] = without_defaults(value, defaults.get(field, {}))
        elif field in ("model_type", "architectures") or field not in defaults or defaults[field] != value:
            kept[field] = value
    return kept


@pytest.mark.parametrize("name", [name for name in FOLDERS if name.startswith("hf_")])
def test_a_config_that_leaves_defaults_out_means_the_same(name, golden_directory):
    with read_weights(HOME / name).file as file:
        config = file.config
        defaults = json.loads((golden_directory / "hf_defaults.json").read_text())[config["model_type"]]
        short = without_defaults(config, defaults)
        assert len(json.dumps(short)) < len(json.dumps(config))
        family = next(f for f in FAMILIES.values() if f.matches(config, file.shapes))
        whole, again = (family.read(given, file.shapes, {}) for given in (config, short))
        assert whole.networks == again.networks
        assert whole.image_size == again.image_size
