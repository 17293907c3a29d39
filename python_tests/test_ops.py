"""The ops as PyTorch sees them: opcheck, fakes, compile, export; on what serves the CPU."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import capmoe_kernels as cm
from capmoe_kernels.ops import OPS
from cases import brief, make_experts, normal, router_logits
from checks import same_bits

ops = torch.ops.capmoe
SOFTMAX = (2, "softmax", "none", 1.0, 1, 1, "max", "prob")
GROUPED = (3, "sigmoid", "kept", 2.5, 4, 2, "top2_sum", "weight")
TD = ([5, 4], None, "ceil", "score", "score", None, 1, 1, 0, None, "packed", 1)


def gate_samples():
    logits = router_logits(9, 8)
    return [
        (logits, None, *SOFTMAX, "none", 0, 0, 0),
        (logits.bfloat16(), normal((8,)), *GROUPED, "local", 0, 2, 5),
        (logits.half()[::2], None, *SOFTMAX, "rank", 3, 0, 0),
        (logits, None, *SOFTMAX, "none", 6, 0, 0),
        (router_logits(0, 8), None, *SOFTMAX, "none", 0, 0, 0),
        (router_logits(1, 8).t().contiguous().t(), None, *SOFTMAX, "local", 0, 0, 8),
    ]


NUM_ROWS = 128  # more than any of the samples keeps, and a multiple of their 8 experts


def select_samples():
    ids, weights, scores = ops.gate(router_logits(12, 8), None, *SOFTMAX, "rank", 2, 0, 0)
    mask, priority = torch.arange(12) % 3 > 0, torch.arange(12)
    pairs, plain = (ids, weights, scores), (None, None, 8, 2)
    samples = [
        (*pairs, *plain, *TD),
        (ids.long(), weights, scores, mask, priority, 8, 2, *TD),
        (*pairs, *plain, None, None, "ceil", *TD[3:]),
        (*pairs, *plain, None, 3, "floor", "random", "topk_first", 2, 1, 4, 7, 1.0, "packed", 8),
        (*pairs, *plain, None, 3, "ceil", "keep_last", "score", None, 2, 1, 0, None, "padded", 4),
        (*pairs, *plain, None, None, "ceil", "score", "score", None, 2, *TD[7:]),
        (*pairs, *plain, None, None, "ceil", "score", "score", 1, *TD[6:]),
        (ids[:0], weights[:0], scores[:0], *plain, *TD),
        (*(x.t().contiguous().t() for x in pairs), *plain, *TD),
    ]
    return [(*sample, NUM_ROWS) for sample in samples]


def layer_samples(name):
    """Without padding rows: opcheck compares every element, and padding is unspecified."""
    samples = []
    for dtype, activation, capacity in [
        (torch.float32, "silu", cm.Capacity(9.0)),
        (torch.bfloat16, "relu2_no_mul", cm.Capacity(limit=0)),
        (torch.float16, "swigluoai", None),
    ]:
        experts = make_experts(4, 10, 6, dtype, activation=activation, bias=True)
        routing = cm.route(router_logits(7, 4), cm.Gating(2), capacity)
        x = normal((7, 10), dtype)
        weights = (experts.gate_up_proj, experts.down_proj, experts.gate_up_bias, experts.down_bias)
        weights += (routing.expert_offsets, routing.tokens_per_expert)
        rows = normal((len(routing.row_tokens), 10), dtype)
        samples += {
            "dispatch": [(x, routing.row_tokens)],
            "combine": [(rows, routing.rows, routing.weights)],
            "grouped_mlp": [
                (x, *weights, routing.row_tokens, activation, "concat"),
                (rows, *weights, None, activation, "concat"),
            ],
        }[name]
    return samples


def moe_samples():
    """Every option at some value of its own, and rows that are too many."""
    plain, mask, priority = (None, None), torch.arange(9) % 3 > 0, torch.arange(9)
    bound, biased = ([5, 4], None, "ceil", "score", "score", None, 1, 1, 0), normal((8,))
    other = (None, 3, "floor", "random", "topk_first", 2, 1, 4, 7)
    samples = []
    for dtype, gate, tokens, select, activation in [
        (torch.float32, (None, *SOFTMAX, "none", 0, 0, 0), plain, bound, "silu"),
        (torch.bfloat16, (biased, *GROUPED, "local", 0, 2, 5), (mask, None), other, "relu_no_mul"),
        (torch.float16, (None, *SOFTMAX, "rank", 2, 0, 0), (None, priority), bound, "swigluoai"),
    ]:
        experts = make_experts(8, 10, 6, dtype, activation=activation, bias=dtype != torch.float32)
        weights = (experts.gate_up_proj, experts.down_proj, experts.gate_up_bias, experts.down_bias)
        for count in (9, 0):
            x, logits = normal((count, 10), dtype), router_logits(count, 8)
            per_token = [None if y is None else y[:count] for y in tokens]
            arguments = (x, logits, *gate, *per_token, *select, NUM_ROWS, *weights)
            samples.append((*arguments, activation, "concat"))
    return samples


def samples_of(name):
    made = {"gate": gate_samples, "select": select_samples, "moe": moe_samples}
    return made[name]() if name in made else layer_samples(name)


def test_every_op_is_sampled():
    assert sorted(OPS) == ["combine", "dispatch", "gate", "grouped_mlp", "moe", "select"]


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    for arguments in samples_of(name):
        torch.library.opcheck(getattr(ops, name).default, arguments)


@pytest.mark.parametrize("name", OPS)
def test_fakes_tell_the_truth(name):
    for arguments in samples_of(name):
        real = getattr(ops, name)(*arguments)
        with FakeTensorMode(allow_non_fake_inputs=False) as mode:
            faked = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
            fake = getattr(ops, name)(*faked)
        real, fake = (x if isinstance(x, (tuple, list)) else [x] for x in (real, fake))
        for a, b in zip(real, fake, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert a.stride() == b.stride()


@pytest.mark.parametrize("name", OPS)
def test_outputs_alias_nothing(name):
    """Functional: what comes back shares no memory with what went in, or with each other."""
    for arguments in samples_of(name):
        real = getattr(ops, name)(*arguments)
        outs = [x for x in (real if isinstance(real, (tuple, list)) else [real]) if x.numel()]
        tensors = [a for a in arguments if isinstance(a, torch.Tensor) and a.numel()]
        places = [x.untyped_storage().data_ptr() for x in outs]
        assert len(set(places)) == len(places)
        assert not set(places) & {x.untyped_storage().data_ptr() for x in tensors}


CAPACITIES = [
    None,
    cm.Capacity(1.25),
    cm.Capacity(limit=5, policy="keep_first"),
    cm.Capacity(0.7, expand="local", local_experts=(2, 6), policy="random", seed=2**40),
    cm.Capacity(1.0, expand="rank", extra=2, max_experts_per_token=2),
    cm.Capacity(1.0, reroute_rounds=2),
    cm.Capacity(1.0, scope="device", experts_per_device=4),
]
capacities = pytest.mark.parametrize("capacity", CAPACITIES, ids=brief)


@capacities
def test_compile_once_for_every_length(capacity):
    experts, gating = make_experts(8, 16, 12), cm.Gating(2, renormalize="topk")
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def layer(x, logits):
        return cm.moe(x, logits, experts, gating, capacity)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for tokens in [33, 5, 64, 257]:
            x, logits = normal((tokens, 16)), router_logits(tokens, 8, "skewed")
            assert same_bits(layer(x, logits), cm.moe(x, logits, experts, gating, capacity))
    for tokens in [0, 1]:  # PyTorch itself compiles these two sizes again
        x, logits = normal((tokens, 16)), router_logits(tokens, 8)
        assert same_bits(layer(x, logits), cm.moe(x, logits, experts, gating, capacity))


def test_compile_the_parts():
    """route and the three ops, with a mask, a class and a bias, give eager's Routing."""
    experts, gating, capacity = make_experts(8, 16, 12), cm.Gating(2), cm.Capacity(1.0)
    torch._dynamo.reset()

    def layer(x, logits, mask, priority, bias):
        routing = cm.route(
            logits,
            gating,
            capacity,
            token_mask=mask,
            token_priority=priority,
            selection_bias=bias,
            row_alignment=4,
        )
        y = cm.grouped_mlp(cm.dispatch(x, routing), experts, routing)
        return cm.combine(y, routing), routing

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in [9, 33]:
        arguments = (normal((tokens, 16)), router_logits(tokens, 8), torch.arange(tokens) % 3 > 0)
        arguments += (torch.arange(tokens, dtype=torch.int32), normal((8,)))
        out, routing = compiled(*arguments)
        expected, eager = layer(*arguments)
        assert isinstance(routing, cm.Routing)
        assert same_bits(out, expected)
        assert all(same_bits(a, b) for a, b in zip(routing, eager, strict=True))


class Layer(torch.nn.Module):
    def __init__(self, capacity):
        super().__init__()
        self.router = torch.nn.Linear(16, 8, bias=False)
        made = make_experts(8, 16, 12)
        self.gate_up, self.down = (
            torch.nn.Parameter(x, requires_grad=False) for x in (made.gate_up_proj, made.down_proj)
        )
        self.router.requires_grad_(False)
        self.capacity = capacity

    def forward(self, x):
        experts = cm.Experts(self.gate_up, self.down)
        return cm.moe(x, self.router(x), experts, cm.Gating(2), self.capacity)


@capacities
def test_export(capacity):
    layer = Layer(capacity)
    tokens = torch.export.Dim("tokens", min=2, max=4096)
    program = torch.export.export(layer, (normal((24, 16)),), dynamic_shapes=({0: tokens},))
    for count in [2, 24, 65]:
        x = normal((count, 16), seed=count)
        assert same_bits(program.module()(x), layer(x))
    targets = [str(node.target) for node in program.graph.nodes]
    assert [target for target in targets if "capmoe" in target] == ["capmoe.moe.default"]


@pytest.mark.parametrize("op", ["gate", "combine"])
def test_an_op_called_directly_refuses_to_record_a_backward(op):
    floats = torch.randn(4, 8, requires_grad=True)
    arguments = {
        "gate": (floats, None, 2, "softmax", "none", 1.0, 1, 1, "max", "prob", "none", 0, 0, 0),
        "combine": (floats, torch.zeros(2, 1, dtype=torch.int32), torch.ones(2, 1)),
    }[op]
    call = getattr(torch.ops.capmoe, op)
    name = {"gate": "router_logits", "combine": "y"}[op]
    with pytest.raises(RuntimeError, match=f"{name} requires grad"):
        call(*arguments)
    with torch.no_grad():
        call(*arguments)
