"""Backends under test, poisoned memory, and the rule by which floats are judged.

``CAPMOE_REQUIRE=reference,cpu,cuda-emulated,triton-emulated`` turns the skip of an absent backend
into a failure.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import hypothesis
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import capmoe_kernels as cm
from capmoe_kernels import reference
from capmoe_kernels.backends import _STATE
from capmoe_kernels.bounds import select_rows
from cuda_on_cpu import runtime
from cuda_on_cpu.runtime import operators as emulated
from cuda_on_cpu.runtime import triton_operators as emulated_triton

torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "capmoe",
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("capmoe")

OPS = ("gate", "select", "dispatch", "grouped_mlp", "combine")


class UseReference(TorchDispatchMode):
    """Within it every capmoe op is the reference function, whatever backend serves the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "capmoe":
            return getattr(reference, func.overloadpacket.__name__)(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class UseDevice(TorchDispatchMode):
    """Within it every capmoe op runs on a device, and its results come back to the CPU."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace != "capmoe":
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(torch.Tensor, lambda x: x.to(self.device), (args, kwargs))
        return tree_map_only(torch.Tensor, torch.Tensor.cpu, func(*args, **kwargs))


class Backend:
    """One implementation of the ops. The public API runs on it inside ``serving()``."""

    def __init__(self, name: str):
        self.name = name
        self.device = torch.device("cuda" if name == "cuda" else "cpu")

    def __repr__(self):
        return self.name

    def serving(self):
        """A context; tests may give CPU tensors to any backend in it."""
        if self.name == "reference":
            return UseReference()
        if self.name == "cuda-emulated":
            return emulated.UseEmulatedCuda()
        if self.name == "triton-emulated":
            return emulated_triton.UseEmulatedTriton()
        return UseDevice(self.device) if self.name == "cuda" else nullcontext()

    def gate(
        self, logits, gating, bias=None, drop_score="prob", expand="none", extra=0, local=(0, 0)
    ):
        """capmoe::gate with its options as the public dataclass."""
        g = gating
        groups = (g.num_groups, g.topk_groups, g.group_score)
        weighing = (g.top_k, g.scoring, g.renormalize, float(g.scaling))
        extra = min(extra, logits.shape[1] - g.top_k)
        with self.serving():
            return torch.ops.capmoe.gate(
                logits, bias, *weighing, *groups, drop_score, expand, extra, *local
            )

    def select(self, ids, weights, scores, num_experts, capacity, top_k=None, **options):
        """capmoe::select with its options as the public dataclass."""
        c = capacity
        columns = ids.shape[1]
        top_k = columns if top_k is None else top_k
        layout, alignment = options.pop("layout", "packed"), options.pop("row_alignment", 1)
        per_token = top_k if c.reroute_rounds > 1 else columns
        num_rows = select_rows(
            ids.shape[0],
            num_experts,
            top_k,
            min(per_token, c.max_experts_per_token or per_token),
            c.ratio,
            c.limit,
            c.rounding,
            c.experts_per_device or 1,
            layout,
            alignment,
        )
        with self.serving():
            return cm.Routing(
                *torch.ops.capmoe.select(
                    ids,
                    weights,
                    scores,
                    options.pop("token_mask", None),
                    options.pop("token_priority", None),
                    num_experts,
                    top_k,
                    c.ratio,
                    c.limit,
                    c.rounding,
                    c.policy,
                    c.expand_priority,
                    c.max_experts_per_token,
                    c.reroute_rounds,
                    c.experts_per_device or 1,
                    c.seed,
                    options.pop("kept_weight_sum", None),
                    layout,
                    alignment,
                    num_rows,
                    **options,
                )
            )

    def dispatch(self, *args):
        return self._op("dispatch", args)

    def grouped_mlp(self, *args):
        return self._op("grouped_mlp", args)

    def combine(self, *args):
        return self._op("combine", args)

    def _op(self, name, args):
        with self.serving():
            return getattr(torch.ops.capmoe, name)(*args)


def why_absent(name: str) -> str | None:
    """The reason a backend cannot be tested here, None where it can."""
    state = cm.backends()
    if name == "reference":
        return None
    if name == "cpu":
        served = state.serving["cpu"]
        return None if served == "cpu" else state.absent.get("cpu", f"cpu is served by {served}")
    if name == "cuda":
        if state.serving.get("cuda") != "cuda":
            return state.absent.get("cuda", "cuda is served by the reference")
        return None if torch.cuda.is_available() else "there is no GPU"
    if name == "cuda-emulated":
        return emulated.why_absent()
    if name == "triton-emulated":
        return emulated_triton.why_absent()
    raise ValueError(f"no backend is called {name}")


BACKENDS = ("reference", "cpu", "cuda", "cuda-emulated", "triton-emulated")


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Each backend in turn; within the test it also serves the public API."""
    reason = why_absent(request.param)
    if reason is not None:
        required = os.environ.get("CAPMOE_REQUIRE", "").split(",")
        if request.param in [name.strip() for name in required]:
            pytest.fail(f"CAPMOE_REQUIRE asks for {request.param}: {reason}")
        pytest.skip(f"{request.param}: {reason}")
    chosen = Backend(request.param)
    if request.param not in ("reference", "cpu"):  # which get CPU tensors, but pack nothing for it
        monkeypatch.setitem(_STATE.serving, "cpu", request.param)
    with chosen.serving(), runtime.recording() as record:
        yield chosen
    assert record.warnings == []  # such as a read of what no kernel has written


@pytest.fixture
def poison():
    """Uninitialised memory is NaN (or the largest integer): a row left unwritten is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def pytest_terminal_summary(terminalreporter):
    """Tables that tests have recorded: what kernels execute in the emulator."""
    for report in terminalreporter.stats.get("passed", []):
        for name, text in getattr(report, "user_properties", []):
            if name == "counts_table":
                terminalreporter.write_line(text)


def pytest_report_header():
    return [f"capmoe backends: {str(cm.backends()).replace(chr(10), '; ')}"]
