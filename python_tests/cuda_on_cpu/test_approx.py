"""The approximate functions within the errors that the PTX ISA states, and at their corners."""

from __future__ import annotations

import pytest
import torch

from cuda_on_cpu.float_reference import randoms
from cuda_on_cpu.ptx_snippets import run

POSITIVE = randoms("f32", 256, seed=40, spread=60).abs()
REAL = randoms("f32", 256, seed=41, spread=6)

CASES = {
    # name: (inputs, reference in f64, relative error, absolute error)
    "ex2.approx.f32": (REAL, torch.exp2, 2.0**-22, 2.0**-149),
    "ex2.approx.ftz.f32": (REAL.clamp(-120, 120), torch.exp2, 2.0**-22, 0),
    "lg2.approx.f32": (POSITIVE, torch.log2, 2.0**-22, 2.0**-22),
    "rsqrt.approx.f32": (POSITIVE, torch.rsqrt, 2.0**-22, 0),
    "sqrt.approx.f32": (POSITIVE, torch.sqrt, 2.0**-22, 0),
    "rcp.approx.ftz.f32": (REAL, torch.reciprocal, 2.0**-22, 0),
    "tanh.approx.f32": (REAL, torch.tanh, 2.0**-10.9, 0),
    "sin.approx.f32": (REAL.clamp(-3.14, 3.14), torch.sin, 0, 2.0**-20.5),
    "cos.approx.f32": (REAL.clamp(-3.14, 3.14), torch.cos, 0, 2.0**-20.5),
    "ex2.approx.ftz.f32 ": (torch.arange(-126.0, 128.0), torch.exp2, 2.0**-22, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_error(name):
    values, reference, relative, absolute = CASES[name]
    close = max(2 * relative, absolute, 2.0**-21)  # twice: both err
    got = run(f"{name.strip()} d, a;", "f32", ("f32", values), on_gpu=close)
    want = reference(values.double())
    representable = want.abs() < torch.finfo(torch.float32).max
    torch.testing.assert_close(
        got.double()[representable], want[representable], rtol=relative, atol=absolute
    )
    assert bool(got[~representable].isinf().all())


@pytest.mark.parametrize("name", ["div.approx.f32", "div.full.f32", "div.approx.ftz.f32"])
def test_division(name):
    """Two units in the last place."""
    a, b = REAL, POSITIVE
    got = run(f"{name} d, a, b;", "f32", ("f32", a), ("f32", b), on_gpu=2.0**-21)
    torch.testing.assert_close(got.double(), a.double() / b.double(), rtol=2.0**-22, atol=2.0**-126)


CORNERS = {
    "ex2.approx.f32": "-inf 0, inf inf, nan nan, 0 1, 1e-42 1, 200 inf, -200 0",
    "lg2.approx.f32": "0 -inf, -0 -inf, -1 nan, -inf nan, inf inf, nan nan, 1 0",
    "rsqrt.approx.f32": "0 inf, -0 -inf, -1 nan, -inf nan, inf 0, nan nan",
    "rcp.approx.ftz.f32": "0 inf, -0 -inf, inf 0, -inf -0, nan nan, 1e-40 inf, -1e-40 -inf",
    "sqrt.approx.f32": "0 0, -0 -0, -1 nan, inf inf, nan nan",
    "tanh.approx.f32": "0 0, inf 1, -inf -1, nan nan, 30 1, -30 -1",
    "lg2.approx.ftz.f32": "1e-40 -inf, -1e-40 -inf",
    "rsqrt.approx.ftz.f32": "1e-40 inf, -1e-40 -inf",
    "ex2.approx.ftz.f32": "-130 0, -149 0, 1e-42 1",
}


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name):
    pairs = [tuple(map(float, pair.split())) for pair in CORNERS[name].split(",")]
    values, want = (torch.tensor(v) for v in zip(*pairs, strict=True))
    got = run(f"{name} d, a;", "f32", ("f32", values))
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    numbers = ~want.isnan()
    assert torch.equal(torch.signbit(got[numbers]), torch.signbit(want[numbers]))
