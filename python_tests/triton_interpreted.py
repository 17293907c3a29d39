"""Every op by Triton's interpreter, in a process of its own: ``python triton_interpreted.py``.

An extra beside the emulator, which runs what is compiled: the interpreter knows nothing of warps,
memory or PTX, but what it computes owes nothing to the compiler or to the emulator. Its tl.dot
multiplies the bits of bfloat16 as integers, so there are no products of bfloat16 here. It runs one
program after the other to its end, so select, whose programs wait for each other, has only one.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from itertools import product
from types import SimpleNamespace

import torch
import triton

import capmoe_kernels as cm
from capmoe_kernels import reference, triton_kernels
from capmoe_kernels._op_options import gate_options
from cases import normal, router_logits
from checks import assert_close_to_truth, same_bits
from cuda_select import OUTPUTS
from mlp_layer import MlpLayer
from triton_select import FEATURES, arguments, asking, options_of

EXACT = (torch.float32, torch.float16)  # what the interpreter multiplies
DTYPES = (*EXACT, torch.bfloat16)


class OneMultiprocessor:
    """Instead of a GPU's driver, which there is none of."""

    utils = SimpleNamespace(get_device_properties=lambda device: {"multiprocessor_count": 1})

    def get_current_device(self):
        return 0

    def get_current_target(self):
        return SimpleNamespace(backend="cuda", arch=80)


def gate():
    gatings = [
        (cm.Gating(3, renormalize="topk"), None),
        (cm.Gating(8, "sigmoid", "topk", 2.5, 4, 2, "top2_sum"), normal((24,))),
        (cm.Gating(2, num_groups=3, topk_groups=2), None),
    ]
    for (gating, bias), dtype, tokens in product(gatings, DTYPES, (0, 1, 37)):
        logits = router_logits(tokens, 24, "levels").to(dtype)
        for capacity in (cm.Capacity(), cm.Capacity(1.0, expand="local", local_experts=(2, 6))):
            options = gate_options(gating, capacity, 24)
            ids, *floats = triton_kernels.gate(logits, bias, *options)
            expected, *truths = reference.gate(logits, bias, *options)
            assert ids.equal(expected)
            for got, truth in zip(floats, truths, strict=True):
                torch.testing.assert_close(got, truth, rtol=3e-6, atol=1e-30)


def select():
    module = sys.modules["capmoe_kernels.triton_kernels.select"]
    for pairs, launch in module._LAUNCHES.items():
        module._LAUNCHES[pairs] = launch._replace(programs_per_multiprocessor=1)
    for feature, tokens in product(FEATURES, (0, 1, 33)):
        asked = asking(tokens, 12, **options_of(feature, tokens))
        out = triton_kernels.select(*arguments(asked))
        asked.assert_selected(dict(zip(OUTPUTS, out, strict=True)))


def dispatch():
    rows = torch.tensor([0, 3, -1, 6, 6, 2**31 - 1, 7], dtype=torch.int32)
    for dtype, hidden in product(DTYPES, (1, 40, 1040)):
        x = normal((7, hidden), dtype)
        out = triton_kernels.dispatch(x, rows)
        live = (rows >= 0) & (rows < 7)
        assert same_bits(out[live], x[rows[live].long()])
        assert out[~live].isnan().all()


def combine():
    rows = torch.tensor([[0, 3, 2], [-1, -1, -1], [5, 1, -1]], dtype=torch.int32)
    weights = normal((3, 3))
    for dtype, hidden in product(DTYPES, (1, 40, 2064)):
        y = normal((6, hidden), dtype)
        y[4] = torch.nan  # nobody's
        out = triton_kernels.combine(y, rows, weights)
        truth = reference.combine(y.double(), rows, weights.double())
        assert_close_to_truth(out, truth, reference.combine(y, rows, weights))


def grouped_mlp():
    kinds = [("silu", "concat"), ("swigluoai", "interleaved"), ("relu2", "none")]
    sizes = [([3, 0, 18], 48, 32), ([0, 70], 40, 33), ([1], 1, 1)]
    for (kind, gating), (counts, hidden, inner), dtype in product(kinds, sizes, EXACT):
        for more in (False, True):
            made = (dtype, counts, hidden, inner, kind, gating)
            layer = MlpLayer.make(*made, bias=more, gather=more)
            layer.check_output(triton_kernels.grouped_mlp(*layer.arguments(dtype)))


OPS = {f.__name__: f for f in (gate, select, dispatch, combine, grouped_mlp)}


def main():
    """A line for each op that is right; what is wrong goes to stderr."""
    triton.runtime.driver.set_active(OneMultiprocessor())
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN
    warnings.simplefilter("ignore")  # NumPy's, of infinities
    for name, check in OPS.items():
        try:
            check()
            print(name)
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    main()
