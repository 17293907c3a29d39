"""Launches of the CUDA backend's route kernels, and of the gate that they contain, on the CPU."""

from __future__ import annotations

import ctypes

import torch

from cuda_on_cpu import Const, emulate
from cuda_select import OUT, SELECTION, Asked, constant, poisoned, with_headers
from cuda_sources import per_sources

LAYOUTS = {8: (1, 8), 64: (8, 8)}  # of the gate, by the experts that they hold

PLAN = """
extern "C" __global__ void plan(const __grid_constant__ capmoe::Select select, int masked,
                                int warps, int experts, int* out) {
  capmoe::Gate gate{};
  gate.columns = select.columns;
  const int64_t bytes = experts == 8 ? gate_scratch_bytes<GateLayout<1, 8>>(gate)
                                     : gate_scratch_bytes<GateLayout<8, 8>>(gate);
  *reinterpret_cast<RoutePlan*>(out) = RoutePlan(select, masked != 0, warps, bytes);
  out[31] = sizeof(RoutePlan);
  out[30] = reinterpret_cast<RoutePlan*>(out)->words;
}
"""
ROUTE = """
extern "C" __global__ void __launch_bounds__(256) route_{experts}_{by_score}(
    const float* logits, const float* bias, const __grid_constant__ capmoe::Gate gate,
    const bool* mask, const int64_t* priority, const __grid_constant__ capmoe::Select select,
    const __grid_constant__ RoutePlan plan, {out}) {{
  extern __shared__ uint4 shared[];
  const capmoe::Selection out{{{selection}}};
  auto* memory = reinterpret_cast<uint32_t*>(shared);
  const RouteState state(select, plan, memory, mask, priority, out);
  route_tokens<float, GateLayout<{lanes}, {each}>, {by_score}>(logits, bias, gate, state);
}}
extern "C" __global__ void gate_{experts}_{by_score}(
    const float* logits, const float* bias, const __grid_constant__ capmoe::Gate gate,
    int32_t* ids, float* weights, float* scores) {{
  extern __shared__ uint4 shared[];
  using Layout = GateLayout<{lanes}, {each}>;
  for (int first = 0; first < gate.tokens; first += Layout::kRows) {{
    const int rows = min(Layout::kRows, static_cast<int>(gate.tokens) - first);
    gate_rows<float, Layout, {by_score}>(
        logits + first * gate.num_experts, bias, gate, rows, shared,
        [&](int row, int column, int expert, float weight, float score) {{
          const int64_t pair = (first + row) * gate.columns + column;
          ids[pair] = expert;
          weights[pair] = weight;
          scores[pair] = score;
        }});
  }}
}}
"""


@per_sources
def kernel(name: str):
    if name == "plan":
        return emulate(with_headers(("route.cuh",), PLAN), name)
    _, experts, by_score = name.split("_")
    lanes, each = LAYOUTS[int(experts)]
    place = {"experts": experts, "lanes": lanes, "each": each, "by_score": by_score}
    entry = ROUTE.format(**place, out=OUT, selection=SELECTION)
    return emulate(with_headers(("route.cuh",), entry), name)


class Gate(ctypes.Structure):
    """struct Gate of options.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "num_experts", "columns", "top_k")),
        *((name, ctypes.c_int64) for name in ("num_groups", "topk_groups")),
        *((name, ctypes.c_int64) for name in ("local_start", "local_stop")),
        *((name, ctypes.c_int) for name in ("expand", "renormalize")),
        *((name, ctypes.c_bool) for name in ("sigmoid", "top2_sum", "drop_by_weight")),
        ("scaling", ctypes.c_float),
    )


def gated(logits, gate: Gate, bias=None) -> tuple[torch.Tensor, ...]:
    """What the device's own gate says: (ids, weights, scores), and the instructions it took."""
    shape = (gate.tokens, gate.columns)
    ids, weights = poisoned(*shape), torch.full(shape, float("nan"))
    scores = weights.clone()
    launch = kernel(_gate_name("gate", gate, bias))[1, 32, 40 * 1024]
    report = launch(Const(logits), constant(bias), bytes(gate), ids, weights, scores)
    return ids, weights, scores, report.counts["warp_instructions"]


def routed(logits, gate: Gate, asked: Asked, bias=None, seed: int = 0):
    """The outputs of route, and its report."""
    experts = next(n for n in LAYOUTS if gate.num_experts <= n)
    rows = 32 // LAYOUTS[experts][0]
    most = max(-(-gate.tokens // rows), -(-gate.tokens * gate.columns // 128))
    bounded = asked.capacity.ratio is not None or asked.capacity.limit is not None
    warps = 8 if bounded else min(8, most)
    plan = torch.zeros(32, dtype=torch.int32)
    masked, config = int(asked.token_mask is not None), bytes(asked.config())
    kernel("plan")[1, 1](config, masked, warps, experts, plan)
    out = asked.poisoned_outputs()
    launch = kernel(_gate_name("route", gate, bias))[1, 32 * warps, 4 * int(plan[30])]
    report = launch(
        *(Const(logits), constant(bias), bytes(gate), constant(asked.token_mask)),
        *(constant(asked.token_priority), config, plan.numpy().tobytes()[: int(plan[31])]),
        *out.values(),
        seed=seed,
    )
    assert report.warnings == []
    return out, report


def _gate_name(what: str, gate: Gate, bias) -> str:
    experts = next(n for n in LAYOUTS if gate.num_experts <= n)
    by_score = bias is not None or gate.num_groups > 1
    return f"{what}_{experts}_{str(by_score).lower()}"
