"""An encoder and its heads as one module: which head has what before it, and what the logits are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfm_jax.core.errors import UserError
from vfm_jax.models.assembly import Assembly
from vfm_jax.models.resnet import ResNet
from vfm_jax.models.vit import ViT
from vfm_jax.nn.decoders import JepaPredictor, MaskedDecoder
from vfm_jax.nn.heads import DinoHead, LinearHead

VIT = functools.partial(ViT, "mu/4", 16, 2, 24, 2)
IMAGE = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 12, 4), np.float32))


def _answers(random_variables, assembly):
    """Variables, features and logits."""
    variables = random_variables(assembly, IMAGE, method="everything")

    def run(variables, image):
        return assembly.apply(variables, image), assembly.apply(variables, image, method="logits")

    return variables["params"], *jax.jit(run)(variables, IMAGE)


def _linear(params, x):
    return np.asarray(x) @ np.asarray(params["logits"]["kernel"]) + np.asarray(params["logits"]["bias"])


def test_the_parameters_of_each_network_stand_under_its_role(random_variables):
    roles = {
        "head": LinearHead(5),
        "distillation_head": LinearHead(5),
        "token_head": LinearHead(7),
        "decoder": MaskedDecoder(8, 1, 2),
        "predictor": JepaPredictor(8, 1, 2),
        "projector": DinoHead(9, 8, 4),
    }
    for role, network in roles.items():
        assembly = Assembly(VIT(distillation_token=True), **{role: network})
        params = random_variables(assembly, IMAGE, method="everything")["params"]
        assert set(params) == {"encoder", role}
        alone = random_variables(assembly.encoder, IMAGE)["params"]
        assert jax.tree.map(jnp.shape, params["encoder"]) == jax.tree.map(jnp.shape, alone)
    together = Assembly(VIT(distillation_token=True), **roles)
    assert set(random_variables(together, IMAGE, method="everything")["params"]) == {"encoder", *roles}


def test_networks_see_what_they_were_trained_on(random_variables):
    """The widths of their first layers tell: pooled features, a token, or pixels of a patch."""
    shapes = functools.partial(random_variables, method="everything")
    encoder = VIT(pooling="class_mean", projection=6)
    head = shapes(Assembly(encoder, head=LinearHead(5)), IMAGE)["params"]["head"]
    assert head["logits"]["kernel"].shape == (6, 5)
    tokens = shapes(Assembly(encoder, token_head=LinearHead(7)), IMAGE)["params"]["token_head"]
    assert tokens["logits"]["kernel"].shape == (16, 7)
    decoder = shapes(Assembly(encoder, decoder=MaskedDecoder(8, 1, 2)), IMAGE)["params"]["decoder"]
    assert decoder["pixels"]["kernel"].shape == (8, 4 * 4 * 4)
    predictor = shapes(Assembly(encoder, predictor=JepaPredictor(8, 1, 2)), IMAGE)["params"]["predictor"]
    assert predictor["out"]["kernel"].shape == (8, 16)


def test_features_are_the_encoders_and_logits_the_heads_on_what_it_pools(random_variables):
    assembly = Assembly(VIT(levels=(0,)), head=LinearHead(5))
    params, features, logits = _answers(random_variables, assembly)
    alone = jax.jit(assembly.encoder.apply)({"params": params["encoder"]}, IMAGE)
    for ours, expected in zip(jax.tree.leaves(features), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, _linear(params["head"], features.pooled), rtol=1e-4, atol=1e-5)


def test_with_a_distillation_head_logits_are_the_mean_of_both(random_variables):
    """DeiT's second head looks at the distillation token, which stands behind the class token."""
    encoder = VIT(distillation_token=True, registers=1)
    assembly = Assembly(encoder, head=LinearHead(5), distillation_head=LinearHead(5))
    params, features, logits = _answers(random_variables, assembly)
    own = _linear(params["head"], features.tokens[:, 0])
    taught = _linear(params["distillation_head"], features.tokens[:, 1])
    assert np.abs(own - taught).max() > 1e-2
    np.testing.assert_allclose(logits, (own + taught) / 2, rtol=1e-4, atol=1e-5)


def test_a_token_head_gives_logits_of_every_patch_and_none_of_prefix_tokens(random_variables):
    params, features, logits = _answers(random_variables, Assembly(VIT(registers=2), token_head=LinearHead(7)))
    assert logits.shape == (3, 6, 7)
    np.testing.assert_allclose(logits, _linear(params["token_head"], features.tokens[:, 3:]), rtol=1e-4, atol=1e-5)


def test_a_convolutional_encoder_has_logits_by_its_running_statistics(random_variables):
    assembly = Assembly(ResNet(depths=(1, 1), width=4), head=LinearHead(5))
    variables = random_variables(assembly, IMAGE, method="everything")
    assert set(variables) == {"params", "batch_stats"}
    assert set(variables["batch_stats"]) == {"encoder"}
    logits = jax.jit(functools.partial(assembly.apply, method="logits"))
    np.testing.assert_allclose(
        logits(variables, IMAGE)[:1], logits(variables, jnp.repeat(IMAGE[:1], 3, axis=0))[:1], rtol=1e-5, atol=1e-6
    )


def test_without_a_classifier_there_are_no_logits_and_the_message_says_so(random_variables):
    assembly = Assembly(VIT(), projector=DinoHead(9, 8, 4))
    variables = random_variables(assembly, IMAGE, method="everything")
    with pytest.raises(UserError, match="without a classifier"):
        assembly.apply(variables, IMAGE, method="logits")


def test_keywords_of_a_call_are_the_encoders(random_variables):
    assembly = Assembly(VIT(), head=LinearHead(5))
    keep = jnp.array([[4, 0], [1, 5], [2, 3]])
    shapes = jax.eval_shape(
        lambda: assembly.apply(random_variables(assembly, IMAGE, method="everything"), IMAGE, keep=keep)
    )
    assert shapes.tokens.shape == (3, 3, 16)
