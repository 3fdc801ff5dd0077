"""CLIP and SigLIP files against what `transformers` gave, both ways; OpenAI's names against Hugging Face's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from vfm_jax.core.errors import UserError
from vfm_jax.core.tables import build
from vfm_jax.core.trees import map_named, named_leaves
from vfm_jax.models import MODELS
from vfm_jax.weights.rules import foreign_tensors, read_leaf
from vfm_jax.weights.two_tower import FAMILIES

CLOSE = {"rtol": 1e-3, "atol": 1e-4}


class Tensors:
    """Tensors by name, as a file's reader gives them."""

    def __init__(self, tensors):
        self.tensors = tensors
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def read(self, name):
        return self.tensors[name]


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    return config, Tensors(load_file(folder / "model.safetensors")), np.load(folder / "io.npz")


def recognise(config, shapes):
    found = [family for family in FAMILIES if family.matches(config, shapes)]
    assert len(found) == 1
    return found[0]


def built(family, bundle, source):
    """The model and its parameters, after checking that the leaves of the rules are those of the model."""
    ((role, spec),) = bundle.networks.items()
    leaves = {rule.leaf: read_leaf(rule, source) for rule in family.rules(bundle)}
    model = build(MODELS, spec, f"networks.{role}")
    inputs = [jnp.zeros((1, *bundle.image_size, bundle.channels), jnp.float32)]
    inputs += [jnp.zeros((1, model.text.length), jnp.int32)] if role == "towers" else []
    shapes = {role: jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]}
    assert {name: leaf.shape for name, leaf in leaves.items()} == {
        name: leaf.shape for name, leaf in named_leaves(shapes).items()
    }
    return model, map_named(lambda name, _: jnp.asarray(leaves[name]), shapes)[role], leaves


def goes_back(family, bundle, source, leaves):
    theirs = dict(foreign_tensors(family.rules(bundle), {("params", name): leaf for name, leaf in leaves.items()}))
    theirs |= {buffer.tensor: buffer.value for buffer in family.buffers(bundle)}
    assert set(theirs) == set(source.shapes)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor, source.read(name), strict=True)


def check_pairs(io, pairs):
    for name, ours in {
        "image_embeds": pairs.image,
        "text_embeds": pairs.text,
        "logits_per_image": pairs.logits,
        "vision_pooler": pairs.image_features.pooled,
        "text_last_hidden_state": pairs.text_features.tokens,
        "text_pooler": pairs.text_features.pooled,
    }.items():
        np.testing.assert_allclose(ours, io[name], **CLOSE, err_msg=name)


@pytest.mark.parametrize("name", ["hf_clip", "hf_siglip"])
def test_both_towers_give_what_transformers_gives(shared, name):
    config, source, io = load(shared / "golden/models" / name)
    family = recognise(config, source.shapes)
    assert family.name == name.replace("_", "/")
    bundle = family.read(config, source.shapes, {})
    model, params, leaves = built(family, bundle, source)
    image, text = jnp.asarray(io["pixel_values"].transpose(0, 2, 3, 1)), jnp.asarray(io["input_ids"], jnp.int32)
    mask = jnp.asarray(io["attention_mask"] > 0) if "attention_mask" in io else None
    pairs = jax.jit(model.apply)({"params": params}, image, text, mask)
    check_pairs(io, pairs)
    np.testing.assert_allclose(pairs.image_features.tokens, io["vision_last_hidden_state"], **CLOSE)
    goes_back(family, bundle, source, leaves)
    assert family.read(family.config(bundle), source.shapes, {}) == bundle


def test_images_of_their_own_aspect_ratios_give_what_transformers_gives(shared):
    config, source, io = load(shared / "golden/models/hf_siglip2_naflex")
    family = recognise(config, source.shapes)
    assert family.name == "hf/siglip2"
    bundle = family.read(config, source.shapes, {})
    model, params, leaves = built(family, bundle, source)
    valid = io["pixel_attention_mask"] > 0
    shapes = jnp.asarray(io["spatial_shapes"], jnp.int32)

    @jax.jit
    def run(params, patches, text):
        image = model.apply({"params": params}, patches, shapes, jnp.asarray(valid), method="encode_packed")
        words = model.apply({"params": params}, text, method="encode_text")
        return model.apply({"params": params}, image, words, method="pair")

    pairs = run(params, jnp.asarray(io["pixel_values"]), jnp.asarray(io["input_ids"], jnp.int32))
    check_pairs(io, pairs)
    tokens = np.asarray(pairs.image_features.tokens)
    np.testing.assert_allclose(tokens[valid], io["vision_last_hidden_state"][valid], **CLOSE)
    goes_back(family, bundle, source, leaves)
    assert family.read(family.config(bundle), source.shapes, {}) == bundle


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize("name", ["hf_siglip_vision_interp", "hf_siglip_vision_interp_b"])
def test_an_image_tower_alone_is_an_encoder_for_other_image_sizes_too(shared, name, prefix):
    config, source, io = load(shared / "golden/models" / name)
    source = Tensors({prefix + key: tensor for key, tensor in source.tensors.items()})
    family = recognise(config, source.shapes)
    bundle = family.read(config, source.shapes, {})
    model, params, leaves = built(family, bundle, source)
    goes_back(family, bundle, source, leaves)
    assert family.read(family.config(bundle), source.shapes, {}) == bundle
    if not prefix:
        features = jax.jit(model.apply)({"params": params}, jnp.asarray(io["pixel_values"].transpose(0, 2, 3, 1)))
        np.testing.assert_allclose(features.tokens, io["last_hidden_state"], **CLOSE)
        np.testing.assert_allclose(features.pooled, io["pooler_output"], **CLOSE)


def test_the_end_token_is_the_highest_id_where_the_config_is_of_before_it_was_written(shared):
    config, source, _ = load(shared / "golden/models/hf_clip")
    family = recognise(config, source.shapes)
    old = config | {"text_config": config["text_config"] | {"eos_token_id": 2}}
    text = family.read(old, source.shapes, {}).networks["towers"]["text"]
    assert text["pooling"] == "argmax"
    silent = {k: v for k, v in config["text_config"].items() if k != "eos_token_id"}
    text = family.read(config | {"text_config": silent}, source.shapes, {}).networks["towers"]["text"]
    assert (text["pooling"], text["end_token"]) == ("end_token", 49407)


def as_openai(source):
    """The tensors of a Hugging Face CLIP under OpenAI's names and in their layout."""
    tensors = source.tensors
    renamed = {
        "logit_scale": tensors["logit_scale"],
        "visual.class_embedding": tensors["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": tensors["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": tensors["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": tensors["visual_projection.weight"].T,
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "text_projection": tensors["text_projection.weight"].T,
    }
    for kind in ("weight", "bias"):
        renamed[f"visual.ln_pre.{kind}"] = tensors[f"vision_model.pre_layrnorm.{kind}"]
        renamed[f"visual.ln_post.{kind}"] = tensors[f"vision_model.post_layernorm.{kind}"]
        renamed[f"ln_final.{kind}"] = tensors[f"text_model.final_layer_norm.{kind}"]
        for theirs, ours in (("vision_model", "visual."), ("text_model", "")):
            for i in range(2):
                old, new = f"{theirs}.encoder.layers.{i}", f"{ours}transformer.resblocks.{i}"
                parts = [tensors[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                renamed[f"{new}.attn.in_proj_{kind}"] = np.concatenate(parts)
                renamed[f"{new}.attn.out_proj.{kind}"] = tensors[f"{old}.self_attn.out_proj.{kind}"]
                renamed[f"{new}.mlp.c_fc.{kind}"] = tensors[f"{old}.mlp.fc1.{kind}"]
                renamed[f"{new}.mlp.c_proj.{kind}"] = tensors[f"{old}.mlp.fc2.{kind}"]
                for norm in "12":
                    renamed[f"{new}.ln_{norm}.{kind}"] = tensors[f"{old}.layer_norm{norm}.{kind}"]
    return renamed


def test_openais_names_make_the_same_leaves_as_hugging_faces(shared):
    config, source, _ = load(shared / "golden/models/hf_clip")
    hf = recognise(config, source.shapes)
    wanted = {rule.leaf: read_leaf(rule, source) for rule in hf.rules(hf.read(config, source.shapes, {}))}
    scalars = {"input_resolution": np.array(32), "context_length": np.array(12), "vocab_size": np.array(99)}
    openai = Tensors(as_openai(source) | scalars)
    family = recognise(None, openai.shapes)
    assert family.name == "original/clip"
    bundle = family.read(None, openai.shapes, {"heads": 3, "text_heads": 2})
    assert bundle.networks["towers"]["image"]["activation"] == "quick_gelu"
    _, _, leaves = built(family, bundle, openai)
    assert leaves.keys() == wanted.keys()
    for leaf, value in leaves.items():
        np.testing.assert_array_equal(value, wanted[leaf], err_msg=leaf)
    goes_back(family, bundle, openai, leaves)


def test_an_open_clip_file_asks_for_its_activation(shared):
    _, source, _ = load(shared / "golden/models/hf_clip")
    openai = Tensors(as_openai(source))
    family = recognise(None, openai.shapes)
    with pytest.raises(UserError, match="activation='gelu'"):
        family.read(None, openai.shapes, {})
    bundle = family.read(None, openai.shapes, {"activation": "gelu"})
    assert bundle.networks["towers"]["text"]["activation"] == "gelu"
