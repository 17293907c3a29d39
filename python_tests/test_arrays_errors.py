"""What is refused of other libraries' arrays, in words that name the argument."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

import capmoe_kernels as cm

LOGITS = np.zeros((4, 8), np.float32)


def test_errors_name_the_argument(backend):
    with pytest.raises(TypeError, match="router_logits must be float32"):
        cm.route(np.zeros((3, 4)), cm.Gating(2))
    with pytest.raises(ValueError, match="router_logits"):
        cm.route(np.zeros(4, np.float32), cm.Gating(2))
    with pytest.raises(TypeError, match="router_logits must be a tensor, got list"):
        cm.route([[0.0, 1.0]], cm.Gating(1))


def test_an_array_without_a_namespace_is_refused():
    class Capsule:
        def __dlpack__(self, **options):
            raise AssertionError("not reached")

    with pytest.raises(TypeError, match="__array_namespace__"):
        cm.route(Capsule(), cm.Gating(1))


def unaligned(shape):
    return np.zeros(4 * np.prod(shape) + 1, np.uint8)[1:].view(np.float32).reshape(shape)


REFUSED = {
    "negative strides": (LOGITS[::-1], ValueError, "must not have negative strides"),
    "byte order": (LOGITS.astype(">f4"), TypeError, "cannot be shared .* native byte order"),
    "objects": (LOGITS.astype(object), TypeError, "cannot be shared with torch through DLPack"),
    "unaligned": (unaligned((4, 8)), ValueError, "must be aligned"),
    "masked": (np.ma.masked_array(LOGITS, LOGITS > 0), TypeError, "must be a plain .* MaskedArray"),
}
refused = pytest.mark.parametrize(("array", "error", "words"), REFUSED.values(), ids=REFUSED)


@refused
def test_refused_arguments(array, error, words):
    with pytest.raises(error, match=f"^router_logits {words}"):
        cm.route(array, cm.Gating(2))
    with pytest.raises(error, match=f"^selection_bias {words}"):
        cm.route(LOGITS, cm.Gating(2), selection_bias=array)
    routing = cm.route(LOGITS, cm.Gating(2))._replace(weights=array)
    with pytest.raises(error, match=rf"^routing\.weights {words}"):
        cm.combine(np.zeros((8, 4), np.float32), routing)


@refused
@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj", "gate_up_bias", "down_bias"])
def test_refused_weights(name, array, error, words):
    weights = {
        "gate_up_proj": np.zeros((2, 6, 4), np.float32),
        "down_proj": np.zeros((2, 4, 3), np.float32),
    }
    with pytest.raises(error, match=rf"^Experts\.{name} {words}"):
        cm.Experts(**{**weights, name: array})


def test_wrong_weights_are_named():
    with pytest.raises(TypeError, match=r"Experts\.down_proj must be float32.*, got float64"):
        cm.Experts(np.zeros((2, 6, 4)), np.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match=r"Experts\.gate_up_proj must have shape \[2, 6, 4\]"):
        cm.Experts(np.zeros((2, 5, 4), np.float32), np.zeros((2, 4, 3), np.float32))


def test_traced_arrays_are_sent_to_the_integration():
    words = r"^router_logits is traced by JAX.*capmoe_kernels\.integrations\.jax"
    for transform in (jax.jit, jax.vmap, jax.grad):
        with pytest.raises(TypeError, match=words):
            transform(lambda logits: cm.route(logits, cm.Gating(2)).weights.sum())(LOGITS)
    with pytest.raises(TypeError, match=r"^Experts\.gate_up_proj is traced by JAX"):
        jax.jit(cm.Experts)(LOGITS, LOGITS)


def test_wrong_calls_are_python_errors():
    """Also where the array is in a place that the function does not have."""
    with pytest.raises(TypeError, match="positional arguments"):
        cm.route(LOGITS, cm.Gating(2), None, LOGITS)
    with pytest.raises(TypeError, match="positional arguments"):
        cm.route(torch.zeros(4, 8), cm.Gating(2), *[None] * 7, LOGITS)
    with pytest.raises(TypeError, match="unexpected keyword argument 'bias'"):
        cm.route(torch.zeros(4, 8), cm.Gating(2), bias=LOGITS)
