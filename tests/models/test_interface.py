"""Everything registered in `MODELS` is asked the same questions: shapes, gradients, precision, sizes, channels."""

import functools
import inspect
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vfm_jax.core.errors import UserError
from vfm_jax.core.sharding import make_mesh
from vfm_jax.core.tables import build
from vfm_jax.core.trees import named_leaves
from vfm_jax.core.types import Features
from vfm_jax.models import MODELS

BATCH = 3
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling takes far longer than running here
CHANNELS = (4, 1, 6, 13, 3)  # taken in turn

VIT = dict(name="vit", variant="mu/4", width=16, depth=2, heads=2, mlp_dim=24)
CONVNEXT = dict(name="convnext", depths=(1, 1), widths=(6, 10), drop_path=0.3)
RESNET = dict(name="resnet", depths=(1, 2))
BIT = dict(name="bit", depths=(1, 2), widths=(32, 64), stem_width=16, groups=8)
SWIN = dict(name="swin", width=8, depths=(2, 2), heads=(2, 4), window=3, patch=2, mlp_ratio=2.0)
VGG = dict(name="vgg", depths=(1, 2), widths=(4, 6))
MIXER = dict(name="mixer", variant="S/4", width=10, depth=2, token_dim=7, channel_dim=12)
ENCODERS = {
    "ViT": VIT,
    "ViT, sincos, layer scale, drop path": VIT | dict(positions="sincos2d", layer_scale=0.1, drop_path=0.3),
    "ViT, sincos of big_vision, mean without class token": VIT
    | dict(positions="sincos2d_bigvision", pooling="mean", class_token=False, activation="gelu_tanh"),
    "ViT, norm of the mean, of colours one after another": VIT
    | dict(pooling="mean", norm_pooled=True, causal=True, color_levels=2, init_std=0.1),
    "ViT, attention pooling": VIT | dict(pooling="attention", class_token=False, representation=5),
    "ViT, attention pooling with class token, learned by linear": VIT
    | dict(pooling="attention", position_resampling="linear_corners"),
    "ViT as DeiT": VIT | dict(distillation_token=True, prefix_positions=2, qk_norm=True),
    "ViT as CLIP": VIT
    | dict(
        norm_input="tokens",
        patch_bias=False,
        prefix_positions=1,
        norm_pooled=True,
        projection=6,
        activation="quick_gelu",
    ),
    "ViT as DINOv2": VIT
    | dict(
        prefix_positions=1,
        registers=4,
        mask_token=True,
        layer_scale=1.0,
        mlp="swiglu",
        activation="silu",
        norm_levels=True,
        position_resampling="bicubic_offset",
        drop_path=0.3,
    ),
    "ViT as DINOv3": VIT
    | dict(
        positions="rope",
        registers=2,
        mask_token=True,
        key_bias=False,
        class_norm=True,
        local_class_norm=True,
        layer_scale=0.1,
        norm_epsilon=1e-5,
        rope_shift=0.2,
        rope_jitter=1.5,
        rope_rescale=2.0,
    ),
    "ViT as BEiT": VIT
    | dict(positions="none", relative_positions="block", key_bias=False, pooling="mean", norm_pooled=True),
    "ViT as AIMv2": VIT
    | dict(
        class_token=False,
        pooling="attention_aim",
        norm="rms_norm",
        norm_input="patches",
        mlp="swiglu",
        activation="silu",
        mlp_bias=False,
        qkv_bias=False,
        out_bias=False,
    ),
    "ViT, post-norm, shared relative positions, both poolings": VIT
    | dict(norm_order="post", final_norm=False, activation="relu", relative_positions="shared", pooling="class_mean"),
    "ViT, another kernel, rotary by periods": VIT
    | dict(
        kernel_size=3,
        positions="rope",
        rope_base=None,
        rope_min_period=0.5,
        rope_max_period=4.0,
        rope_normalize="max",
        norm="rms_norm",
        qk_norm=True,
    ),
    "ConvNeXt": CONVNEXT | dict(depths=(1, 2)),
    "ConvNeXt V2": CONVNEXT
    | dict(layer_scale=None, grn=True, stem_size=2, activation="gelu_tanh", final_norm_epsilon=1e-3),
    "ConvNeXt as DINOv3": CONVNEXT | dict(mean_token=True, norm_epsilon=1e-5),
    "ResNet, basic blocks": RESNET | dict(variant="18", widths=(8, 12), stem_width=6),
    "ResNet, bottlenecks": RESNET | dict(width=4, zero_init=False),
    "ResNet, bottlenecks, CIFAR stem": RESNET | dict(width=4, stem="cifar", bottleneck_width=2.0),
    "ResNet, basic blocks, CIFAR stem, striding first stage": RESNET
    | dict(variant="34", width=6, stem="cifar", downsample_first=True, inner_activation="silu"),
    "ResNet, version 1": RESNET | dict(width=4, stride_first=True, unbiased_variance=False, norm_momentum=0.7),
    "BiT": BIT | dict(drop_path=0.3),
    "BiT, padding of TensorFlow": BIT | dict(padding="same", stem_pool="same"),
    "BiT, CIFAR stem": BIT | dict(stem="cifar", activation="gelu"),
    "BiT, norms behind": BIT | dict(preactivation=False, stem_pool="zeros_same", drop_path=0.3),
    "BiT, dilated": BIT | dict(output_stride=4, stem_pool="none"),
    "Swin": SWIN | dict(drop_path=0.3),
    "Swin 2": SWIN | dict(version=2, drop_path=0.3),
    "Swin, learned positions, windows of each stage": SWIN
    | dict(positions="learned", window=((2, 3), 4), window_rule="separate", mask_token=True),
    "Swin 2, windows of another training": SWIN
    | dict(version=2, trained_window=(4, 5), qkv_bias=False, merged_levels=True, activation="gelu_tanh"),
    "VGG": VGG | dict(classifier_dim=40),
    "VGG, batch norm, sliding classifier": VGG | dict(batch_norm=True, classifier_dim=40, classifier="slide"),
    "VGG, batch norm, no classifier": VGG | dict(batch_norm=True, classifier_dim=None, norm_momentum=0.6),
    "VGG, no classifier": VGG | dict(depths=(1, 1, 1), widths=(4, 5, 6), classifier_dim=None, activation="gelu"),
    "Mixer": MIXER,
    "Mixer, drop path": MIXER | dict(activation="gelu", drop_path=0.3),
}
SIDES = {
    "VGG, batch norm, sliding classifier": (8, 9)
}  # of the images, in units of patch_size; the others' is (2, 3)
MARGINS = {"BiT, norms behind": [1, 1], "BiT, dilated": [-1, -1]}  # cells more, by their padding
POOLED = {  # widths that are not the tokens'
    "ViT, attention pooling": 5,
    "ViT as CLIP": 6,
    "ViT, post-norm, shared relative positions, both poolings": 32,
    "VGG": 40,
    "VGG, batch norm, sliding classifier": 40,
}
KEEPS = {"vit"}  # those that can leave patches out
NEEDS_WHOLE_PATCHES = {"vit", "mixer"}  # the others pad, or leave the rest out

TEXT = dict(name="text", width=16, depth=2, mlp_dim=24, heads=2, vocabulary=20, length=7)
DECODER = dict(name="masked_decoder", width=16, depth=2, heads=2)
PREDICTOR = dict(name="jepa_predictor", width=16, depth=2, heads=2)
OTHERS = {
    "text as CLIP": TEXT | dict(projection=6, activation="quick_gelu"),
    "text as SigLIP": TEXT
    | dict(causal=False, pooling="last", activation="gelu_tanh", projection=5, projection_bias=True, levels=(0, -1)),
    "text, end token": TEXT | dict(pooling="end_token", end_token=3),
    "two towers": dict(
        name="two_tower", image=VIT | dict(projection=6), text=TEXT | dict(projection=6), logit_bias=True
    ),
    "decoder of MAE": DECODER,
    "decoder of MAE, learned positions": DECODER | dict(positions="learned", prefix_positions=1, mlp_dim=20),
    "predictor of I-JEPA": PREDICTOR,
    "predictor of I-JEPA, learned positions": PREDICTOR | dict(positions="learned", qkv_bias=False),
    "decoder of FCMAE": dict(name="convnext_decoder", width=12, depth=2),
    "decoder of data2vec 2": dict(name="conv_decoder", width=10, depth=2, groups=5),
    "decoder of data2vec 2, another width": dict(name="conv_decoder", width=8, depth=2, kernel_size=5, groups=2),
    "head of SimMIM": dict(name="pixel_head"),
    "decoder of context encoders": dict(name="upsampling_decoder", width=12),
    "decoder of AIM": dict(name="token_decoder", width=12, depth=2),
    "decoder of iGPT": dict(name="token_decoder", depth=0, positions="none", init_std=0.1, use_bias=True),
    "head of DINO": dict(name="dino_head", out_dim=11, hidden_dim=12, bottleneck_dim=5),
    "head of DINO, learned scale": dict(
        name="dino_head", out_dim=11, hidden_dim=12, bottleneck_dim=5, num_layers=2, learned_scale=True
    ),
    "prototypes": dict(name="prototypes", num_prototypes=9),
    "projector of SimCLR": dict(name="projection_head", out_dim=6),
    "projector of MoCo v3": dict(
        name="projection_head", hidden_dim=12, out_dim=6, num_layers=3, last_norm="plain", unbiased=True
    ),
    "projector without last norm": dict(name="projection_head", hidden_dim=12, out_dim=6, last_norm="none"),
    "classifier": dict(name="linear_head", num_classes=7),
    "classifier, batch norm": dict(name="linear_head", num_classes=7, batch_norm=True),
    "classifier, layer norm": dict(name="linear_head", num_classes=7, layer_norm=True, use_bias=False),
}
ALL = ENCODERS | OTHERS


def _network(label, **fields):
    network = build(MODELS, ALL[label] | fields, "config.networks.encoder")
    # every level there is, and the last one once more
    return network.clone(levels=(*range(network.num_levels), -1)) if label in ENCODERS else network


def _image(label, channels=None, batch=BATCH):
    side = _network(label).patch_size
    rows, columns = SIDES.get(label, (2, 3))
    channels = channels or CHANNELS[list(ENCODERS).index(label) % len(CHANNELS)]
    return np.random.default_rng(1).standard_normal((batch, rows * side, columns * side, channels), np.float32)


def _inputs(label, batch=BATCH):
    """Arrays, and what is not an array."""
    if label in ENCODERS:
        return (_image(label, batch=batch),), {}
    random = np.random.default_rng(2)
    text = random.integers(0, 20, (batch, 6), np.int32)
    tokens = random.standard_normal((batch, 5, 10), np.float32)
    cells = random.standard_normal((batch, 6, 10), np.float32)
    keep = random.permuted(np.tile(np.arange(6, dtype=np.int32), (batch, 1)), axis=1)
    return {
        "text": ((text,), {}),
        "two_tower": ((random.standard_normal((batch, 8, 12, 3), np.float32), text[1:]), {}),
        "masked_decoder": ((tokens, keep[:, :4]), dict(grid=(2, 3), num_pixels=9)),
        "convnext_decoder": ((cells, keep < 3), dict(grid=(2, 3), num_pixels=9)),
        "conv_decoder": ((cells,), dict(grid=(2, 3))),
        **dict.fromkeys(
            ("pixel_head", "upsampling_decoder"), ((cells,), dict(grid=(2, 3), patch_size=4, channels=2))
        ),
        "token_decoder": ((tokens,), dict(grid=(2, 3), num_outputs=9)),
        "jepa_predictor": ((tokens, keep[None, :, :5], np.stack([keep[:, 4:], keep[:, 2:4]])), dict(grid=(2, 3))),
    }.get(OTHERS[label]["name"], ((random.standard_normal((batch, 10), np.float32),), {}))


def _run(network, variables, inputs, fixed, keys, train):
    """Outputs of all calls that use a parameter each, and the batch statistics after them."""
    known = inspect.signature(type(network).__call__).parameters
    given = {name: value for name, value in (("keys", keys), ("train", train)) if name in known}
    if getattr(network, "mask_token", False):
        patches = np.prod(inputs[0].shape[1:3]) // getattr(network, "patch", network.patch_size) ** 2
        given["masked"] = jnp.tile(jnp.arange(patches) % 3 == 1, (inputs[0].shape[0], 1))
    calls = [{}, {"local": True}] if train and getattr(network, "local_class_norm", False) else [{}]
    outputs, state = [], {}
    for call in calls:
        told = fixed | given | call
        if train:
            output, state = network.apply(variables, *inputs, **told, mutable=["batch_stats"])
        else:
            output = network.apply(variables, *inputs, **told)
        outputs.append(output)
    return outputs, state.get("batch_stats", {})


def _arrays(outputs):
    return [leaf for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]


class Trained(NamedTuple):
    outputs: Any
    statistics: Any
    gradients: Any


class Answer(NamedTuple):
    """What one program says of one network."""

    evaluated: Any
    trained: Trained
    half_trained: Any
    half_statistics: Any


def _train(label, variables, inputs, keys, **fields):
    """Outputs, batch statistics, and the gradient of a random projection of the outputs."""
    network, fixed = _network(label, **fields), _inputs(label)[1]
    others = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params):
        outputs, statistics = _run(network, {"params": params, **others}, inputs, fixed, keys, True)
        total = jnp.zeros((), jnp.float32)
        for i, array in enumerate(_arrays(outputs)):
            total = total + jnp.vdot(array, np.random.default_rng(i).standard_normal(array.shape, np.float32))
        return total, (outputs, statistics)

    gradients, (outputs, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
    return Trained(outputs, statistics, gradients)


@functools.cache
def _program(label):
    """(variables, inputs, keys) -> Answer: evaluation, gradients and half precision in one compilation."""

    def answer(variables, inputs, keys):
        fixed = _inputs(label)[1]
        evaluated, _ = _run(_network(label), variables, inputs, fixed, keys, False)
        half = _run(_network(label, dtype=jnp.bfloat16), variables, inputs, fixed, keys, True)
        return Answer(evaluated, _train(label, variables, inputs, keys), *half)

    return jax.jit(answer, compiler_options=QUICKLY)


def _keys(seed=5, batch=BATCH):
    return jax.random.split(jax.random.key(seed), batch)


def _close(ours, other, tolerance=1e-5):
    """Relative to the size of each array."""
    assert jax.tree.structure(ours) == jax.tree.structure(other)
    for (name, a), b in zip(named_leaves(ours).items(), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):  # and no relation between numbers that are zero but for rounding
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert np.linalg.norm(a - b) <= tolerance * max(np.linalg.norm(b), 1e-1), name


@pytest.fixture(scope="session")
def variables_of(random_variables):
    """label -> variables, none of them special, of the network in half precision."""

    @functools.cache
    def variables(label):
        inputs, fixed = _inputs(label)
        network = _network(label, dtype=jnp.bfloat16)
        if "train" in inspect.signature(type(network).__call__).parameters:
            fixed = fixed | {"train": False}
        return random_variables(network, *inputs, **fixed)

    return variables


@pytest.fixture(scope="session")
def answers(variables_of):
    """label -> Answer."""
    return functools.cache(lambda label: _program(label)(variables_of(label), _inputs(label)[0], _keys()))


def test_everything_registered_is_in_the_table():
    assert {spec["name"] for spec in ALL.values()} == set(MODELS)
    encoders = {name for name, network in MODELS.items() if hasattr(network, "num_levels")}
    assert {spec["name"] for spec in ENCODERS.values()} == encoders


@pytest.mark.parametrize("label", ENCODERS)
def test_features_have_the_shapes_of_the_interface(label, answers):
    network, image = _network(label), _image(label)
    (features,) = answers(label).evaluated
    assert isinstance(features, Features)
    rows, columns = features.grid
    expected = (image.shape[1] // network.patch_size, image.shape[2] // network.patch_size)
    assert features.grid == expected or np.subtract(features.grid, expected).tolist() == MARGINS[label]
    assert features.num_prefix_tokens == getattr(network, "num_prefix_tokens", int(getattr(network, "mean_token", 0)))
    assert features.tokens.shape[:2] == (BATCH, features.num_prefix_tokens + rows * columns)
    assert features.patch_tokens.shape[1] == rows * columns
    assert features.pooled.shape == (BATCH, POOLED.get(label, features.tokens.shape[2]))
    assert len(features.levels) == network.num_levels + 1
    if features.level_grids:
        assert [level.shape[:2] for level in features.levels] == [(BATCH, h * w) for h, w in features.level_grids]
        assert features.level_grids[-1] == features.grid
        assert sorted(features.level_grids, reverse=True) == list(features.level_grids)
    else:
        assert {level.shape for level in features.levels} == {features.tokens.shape}
    np.testing.assert_array_equal(features.levels[-1], features.levels[-2])
    assert all(np.isfinite(array).all() for array in _arrays(features))


@pytest.mark.parametrize("label", ALL)
def test_every_parameter_gets_a_gradient(label, answers):
    largest = {name: np.abs(leaf).max() for name, leaf in named_leaves(answers(label).trained.gradients).items()}
    assert np.isfinite(list(largest.values())).all()
    # An offset of all keys moves a query's logits alike, and batch norm takes the offset before it away.
    idle = r"k_norm/bias" + (r"|stage_\d+_conv_\d+/bias" if "VGG, batch norm" in label else "")
    without = {name for name, size in largest.items() if size < 1e-4}
    assert without == {name for name in largest if re.search(idle, name)}


@pytest.mark.parametrize("label", ALL)
def test_half_precision_is_close_and_parameters_statistics_and_outputs_stay_float32(label, answers, variables_of):
    answer = answers(label)
    kept = (variables_of(label), answer.half_statistics, _arrays(answer.half_trained))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(kept)} == {"float32"}
    _close(answer.half_trained, answer.trained.outputs, 5e-2)
    _close(answer.half_statistics, answer.trained.statistics, 5e-2)


@pytest.mark.parametrize(
    "label", [label for label in ALL if ALL[label]["name"] not in ("two_tower", "jepa_predictor")]
)
def test_an_example_has_the_same_outputs_in_any_batch_and_evaluation_draws_nothing(label, answers, variables_of):
    """Training too, but for batch norm: what is dropped depends on the example's own key."""
    answer, variables = answers(label), variables_of(label)
    inputs = [np.concatenate([a[:1], a[:0:-1], a[1:]])[:BATCH] for a in _inputs(label)[0]]
    assert (inputs[0][1] != _inputs(label)[0][0][1]).any()
    keys = jnp.concatenate([_keys()[:1], _keys(6)[1:]])
    others = _program(label)(variables, tuple(inputs), keys)
    pairs = [(answer.evaluated, others.evaluated)]
    if "batch_stats" not in variables:
        pairs.append((answer.trained.outputs, others.trained.outputs))
    for pair in pairs:
        for ours, other in zip(*map(_arrays, pair), strict=True):
            np.testing.assert_allclose(other[0], ours[0], rtol=1e-5, atol=1e-5)
            assert np.abs(other[1] - ours[1]).max() > 1e-3
    again = _program(label)(variables, _inputs(label)[0], keys)
    for ours, other in zip(_arrays(answer.evaluated), _arrays(again.evaluated), strict=True):
        np.testing.assert_array_equal(other, ours)


RANDOM = ("drop_path", "dropout", "rope_jitter")  # fields that make training random


@pytest.mark.parametrize("label", ALL)
def test_training_differs_where_there_is_something_to_draw_or_a_batch_to_measure(label, answers, variables_of):
    answer = answers(label)
    network, measures = _network(label), "batch_stats" in variables_of(label)
    draws = any(getattr(network, field, None) for field in RANDOM)
    pairs = zip(*map(_arrays, (answer.trained.outputs[:1], answer.evaluated)), strict=True)
    draws &= getattr(network, "classifier_dim", 1) is not None  # VGG's dropout is of its classifier
    if draws or measures:
        assert max(np.abs(a - b).max() for a, b in pairs) > 1e-3
    else:
        _close(answer.trained.outputs[:1], answer.evaluated)


@pytest.mark.parametrize(
    "label", [label for label in ALL if "norm" in label or "ResNet" in label or "projector" in label]
)
def test_training_moves_every_batch_statistic(label, answers, variables_of):
    before, after = (
        named_leaves(tree) for tree in (variables_of(label).get("batch_stats", {}), answers(label).trained.statistics)
    )
    assert set(after) == set(before)
    assert [name for name in after if np.array_equal(after[name], before[name])] == []


@pytest.mark.parametrize("label", [label for label in ALL if hasattr(_network(label), "scan")])
def test_a_scan_that_recomputes_equals_the_loop_in_value_and_gradient(label, answers, variables_of):
    step = jax.jit(functools.partial(_train, label, scan=True, remat="full"), compiler_options=QUICKLY)
    _close(step(variables_of(label), _inputs(label)[0], _keys()), answers(label).trained, 1e-4)


@pytest.mark.parametrize("label", [label for label in ENCODERS if hasattr(_network(label), "attention")])
def test_attention_is_a_map_of_weights_for_each_head(label, variables_of):
    network = _network(label, dtype=jnp.bfloat16)
    weights = jax.jit(functools.partial(network.apply, method="attention"))(variables_of(label), _image(label))
    assert (weights.shape, weights.dtype) == ((BATCH, 2, 2, 3), jnp.float32)
    total = np.sum(weights, axis=(2, 3))
    assert (np.asarray(weights) > 0).all() and (total < 1.02).all()  # weights of bfloat16
    if not network.num_prefix_tokens:  # nothing else to attend to
        np.testing.assert_allclose(total, np.ones((BATCH, 2)), rtol=0.02)


def _shapes(label, image, **fields):
    """Of parameters, features and patch tokens, or the message of the error that refuses such images."""

    def run(key, image):
        features, variables = _network(label, **fields).init_with_output(key, image)
        return variables, features, features.patch_tokens

    try:
        return jax.eval_shape(run, jax.random.key(0), image)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("label", ENCODERS)
def test_odd_images_are_taken_or_refused_by_their_size(label):
    side = _network(label).patch_size
    height, width = 7 * side + 3, 9 * side + 1
    found = _shapes(label, jnp.zeros((2, height, width, 2), jnp.float32))
    if ENCODERS[label]["name"] in NEEDS_WHOLE_PATCHES:
        assert f"{height} x {width}" in found
        return
    _, features, patch_tokens = found
    for cells, length in zip(features.grid, (height, width), strict=True):
        assert length // side <= cells <= -(-length // side)
    assert patch_tokens.shape[1] == features.grid[0] * features.grid[1]
    for level, grid in zip(features.levels, features.level_grids, strict=True):
        assert level.shape[1] == grid[0] * grid[1]


@pytest.mark.parametrize("label", ENCODERS)
def test_an_image_of_a_few_pixels_has_a_cell_or_is_refused_by_its_size(label):
    for height, width in ((1, 1), (1, 40), (2, 3)):
        found = _shapes(label, jnp.zeros((1, height, width, 2), jnp.float32))
        if isinstance(found, str):
            assert f"{height} x {width}" in found
        else:
            assert min(found[1].grid) > 0


@pytest.mark.parametrize("channels", [1, 4, 6, 13])
@pytest.mark.parametrize("label", {spec["name"]: label for label, spec in ENCODERS.items()}.values())
def test_images_have_any_number_of_channels(label, channels):
    variables, features, _ = _shapes(label, _image(label, channels))
    first = [
        leaf.shape for name, leaf in named_leaves(variables["params"]).items() if leaf.shape[-2:-1] == (channels,)
    ]
    assert len([shape for shape in first if len(shape) == 4]) >= 1
    assert features.pooled.shape[0] == BATCH


@pytest.mark.parametrize("label", ENCODERS)
def test_kept_patches_alone_give_tokens_or_are_refused(label):
    keep = jnp.array([[4, 0, 5, 1]] * BATCH)

    def run(key, image):
        return _network(label).init_with_output(key, image, keep=keep)[0]

    if ENCODERS[label]["name"] in KEEPS:
        features = jax.eval_shape(run, jax.random.key(0), _image(label))
        assert features.tokens.shape[:2] == (BATCH, features.num_prefix_tokens + 4)
        assert features.grid == (2, 3)
        assert {level.shape for level in features.levels} == {features.tokens.shape}
    else:
        with pytest.raises(UserError, match="ViT"):
            jax.eval_shape(run, jax.random.key(0), _image(label))


@pytest.mark.parametrize("label", {spec["name"]: label for label, spec in ENCODERS.items()}.values())
def test_a_level_that_is_not_there_is_refused(label):
    network = _network(label)
    for level in (network.num_levels, -network.num_levels - 1):
        with pytest.raises(UserError, match=f"levels names {level}"):
            jax.eval_shape(network.clone(levels=(level,)).init, jax.random.key(0), _image(label))


@pytest.mark.parametrize("label", ["ViT as DINOv2", "ResNet, bottlenecks"])
def test_a_batch_split_over_devices_gives_what_one_device_gives(label, variables_of):
    mesh, variables = make_mesh(), variables_of(label)
    inputs, keys = _inputs(label, batch=8)[0], _keys(batch=8)
    step = jax.jit(functools.partial(_train, label), compiler_options=QUICKLY)
    split = NamedSharding(mesh, P("data"))
    divided = step(jax.device_put(variables, NamedSharding(mesh, P())), *jax.device_put((inputs, keys), split))
    assert len(divided.outputs[0].tokens.sharding.device_set) == 8
    _close(divided, step(variables, inputs, keys), 1e-4)
