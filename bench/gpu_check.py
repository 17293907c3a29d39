"""Is the answer right? Before anything is timed, on the very inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from capmoe_kernels import reference
from capmoe_kernels._op_options import gate_options, select_options

from .gpu_cases import Case, call, exact_experts


class Wrong(SystemExit):
    """An answer that does not hold; the message says which."""


def check_case(case: Case) -> str:
    """What was compared, in words.

    Raises:
        Wrong: at the first answer that differs.
    """
    _check_gate(case)
    _check_select(case)
    error, allowed = _check_experts(case)
    _check_graph(case)
    rows = int(case.routing.tokens_per_expert.sum())
    return f"routing exact, {rows} rows, error {error:.2g} of {allowed:.2g} allowed, graph = eager"


def check_rival(case: Case, out: Tensor) -> None:
    """That another way computes the same layer: loosely, for each rounds where it likes.

    Raises:
        ValueError: it computes something else.
    """
    ours = call(case, "moe")
    assert isinstance(ours, Tensor)
    error = _error(out, ours.double()) / ours.abs().max().item()
    if error > 0.05:
        raise ValueError(f"its answer is {error:.0%} off")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise Wrong(f"wrong: {what}")


def _check_gate(case: Case) -> None:
    options = gate_options(case.gating, case.capacity, case.shape.experts)
    expected = reference.gate(case.logits, None, *options)
    if case.gating.num_groups == 1:  # else sums of scores decide, and they round
        _require(torch.equal(case.gated[0], expected[0]), "expert ids of gate")
        for got, wanted in zip(case.gated[1:], expected[1:], strict=True):
            _require(torch.allclose(got, wanted, rtol=1e-5, atol=1e-9), "weights or scores of gate")


def _check_select(case: Case) -> None:
    shape = case.shape
    options = select_options(case.capacity, shape.experts)
    arguments = (*case.gated, None, None, shape.experts, shape.top_k, *options)
    expected = reference.select(*arguments, None, "packed", 1, case.num_rows)
    for got, wanted, name in zip(call(case, "select"), expected, case.routing._fields, strict=True):
        _require(torch.equal(got, wanted), f"{name} of select")


def _check_experts(case: Case) -> tuple[float, float]:
    truth = exact_experts(case, torch.float64)
    largest = truth.abs().max().item()
    same_dtype = exact_experts(case, torch.bfloat16).to(torch.bfloat16)
    allowed = 2 * (same_dtype.double() - truth).abs().max().item()
    allowed += torch.finfo(torch.bfloat16).eps * largest
    error = _error(call(case, "moe"), truth)
    _require(error <= allowed, f"moe: error {error:.3g}, allowed {allowed:.3g}")
    moved = call(case, "dispatch")
    live = case.routing.row_tokens >= 0
    wanted = case.hidden_states[case.routing.row_tokens[live].long()]
    _require(torch.equal(moved[live], wanted), "rows of dispatch")
    return error, allowed


def _error(out: Tensor, truth: Tensor) -> float:
    error = (out.double() - truth).abs().max().item()
    return error if error == error else float("inf")


def _check_graph(case: Case) -> None:
    """A replay on memory that something else has used gives the same bits."""
    eager = call(case, "moe")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(case, "moe")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(case, "moe")
    for _ in range(3):
        out.fill_(float("nan"))
        graph.replay()
        _require(torch.equal(out, eager), "moe in a CUDA graph")
