"""The layer by Triton's kernels, emulated: every option, launches and nothing else, schedules."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import capmoe_kernels as cm
import oracle_mlp
from capmoe_kernels import reference
from cases import brief, make_experts, named, normal, router_logits
from checks import assert_close_to_truth, same_bits
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime.triton_operators import UseEmulatedTriton, why_absent
from test_cuda_moe import is_layer_float
from test_ops import moe_samples

if why_absent() is not None:
    pytest.skip(f"triton-emulated: {why_absent()}", allow_module_level=True)

CAPACITIES = [
    cm.Capacity(),
    cm.Capacity(1.0),
    cm.Capacity(limit=0),
    cm.Capacity(0.7, expand="local", local_experts=(2, 6), policy="random", seed=2**40),
    cm.Capacity(1.0, expand="rank", extra=2, max_experts_per_token=2),
    cm.Capacity(1.0, reroute_rounds=2),
    cm.Capacity(1.0, scope="device", experts_per_device=4),
]
capacities = pytest.mark.parametrize("capacity", CAPACITIES, ids=brief)
pytestmark = pytest.mark.usefixtures("poison")
KERNELS = ["gate_kernel", "select_kernel", *["grouped_gemm_kernel"] * 2, "combine_kernel"]
WITHOUT_ROWS = ["gate_kernel", "select_kernel", "combine_kernel"]


@contextmanager
def emulated(arch="sm_80", seed=0):
    """Every op runs its Triton kernels, of which the emulator has nothing to say."""
    with UseEmulatedTriton(), runtime.recording(arch=arch, seed=seed) as record:
        yield record
    assert record.warnings == []


@pytest.mark.parametrize(("arch", "seed"), [("sm_80", 0), ("sm_90", 3)])
def test_the_op_is_the_reference(arch, seed):
    """Every option at some value of its own, and no tokens."""
    for arguments in moe_samples():
        with emulated(arch, seed):
            out = torch.ops.capmoe.moe(*arguments)
        wide = [a.double() if is_layer_float(a, arguments) else a for a in arguments]
        assert_close_to_truth(out, reference.moe(*wide), reference.moe(*arguments))


@capacities
@pytest.mark.parametrize("tokens", [1, 70])
def test_five_launches_in_any_schedule(capacity, tokens):
    """The bits are those of the ops one after the other, whichever warp goes first."""
    experts, gating = make_experts(8, 32, 16, torch.bfloat16), cm.Gating(2)
    x, logits = normal((tokens, 32), torch.bfloat16), router_logits(tokens, 8, "levels")
    mask, priority = torch.arange(tokens) % 3 > 0, torch.arange(tokens) % 5
    for options in ({}, {"token_mask": mask, "token_priority": priority}):
        outs = []
        for seed in (0, 3):
            with emulated(seed=seed) as record:
                outs.append(cm.moe(x, logits, experts, gating, capacity, **options))
            expected = KERNELS if capacity.limit != 0 else WITHOUT_ROWS
            assert record.names == expected
        with emulated():
            routing = cm.route(logits, gating, capacity, **options)
            y = cm.grouped_mlp(cm.dispatch(x, routing), experts, routing)
            outs.append(cm.combine(y, routing))
        assert all(same_bits(out, outs[0]) for out in outs)


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [("sm_80", torch.float32), ("sm_80", torch.float16), ("sm_90", torch.bfloat16)],
)
@named("one_token", "capacity_zero", "ragged", "e60", "rows_of_one")
def test_cases(case, dtype, arch):
    experts, x, logits = case.experts(dtype, bias=True), case.hidden(dtype), case.logits()
    with emulated(arch):
        out = cm.moe(x, logits, experts, case.gating, case.capacity)
        routing = cm.route(logits, case.gating, case.capacity)
    truth = oracle_mlp.moe(x, experts, routing)
    assert_close_to_truth(out, truth, oracle_mlp.same_dtype_moe(x, experts, routing))


class Watch(TorchDispatchMode):
    """Within it it lists PyTorch's own operators."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_memory_and_nothing_else():
    """On a GPU any other operator of PyTorch would be a launch, or would wait for one."""
    for arguments in moe_samples():
        with Watch() as watch, emulated() as record:
            torch.ops.capmoe.moe(*arguments)
        assert watch.names <= {"moe", "new_empty", "empty", "empty_like", "view"}
        assert record.names == (KERNELS if len(arguments[0]) else [])


@capacities
def test_no_tokens(capacity):
    """Nothing is launched for nobody."""
    x, logits, experts = normal((0, 32)), router_logits(0, 8), make_experts(8, 32, 16)
    with emulated() as record:
        assert cm.moe(x, logits, experts, cm.Gating(2), capacity).shape == (0, 32)
        routing = cm.route(logits, cm.Gating(2), capacity)
        assert cm.combine(cm.dispatch(x, routing), routing).shape == (0, 32)
    assert record.names == []
    assert not routing.tokens_per_expert.any()
    assert not routing.expert_offsets.any()
