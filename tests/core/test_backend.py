"""The compiler that forms are chosen for."""

import jax
import pytest

from vfm_jax.core.backend import compiling_for, target_backend


def test_forms_are_chosen_for_the_default_device_or_the_named_backend():
    assert target_backend() == jax.default_backend()
    with compiling_for("tpu"):
        assert target_backend() == "tpu"
        with compiling_for("gpu"):
            assert target_backend() == "gpu"
        assert target_backend() == "tpu"
    assert target_backend() == jax.default_backend()


def test_the_default_device_is_restored_after_an_error():
    with pytest.raises(RuntimeError), compiling_for("tpu"):
        raise RuntimeError
    assert target_backend() == jax.default_backend()
