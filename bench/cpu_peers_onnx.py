"""onnxruntime's MoE op: the weights are inputs, for a model file may not hold 2 GiB of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

import capmoe_kernels as cm

if TYPE_CHECKING:
    from .cpu_peers_cases import Given

TYPES = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}


def prepare(experts: cm.Experts) -> Callable[[Given], Tensor]:
    dtype = experts.down_proj.dtype
    if dtype not in TYPES:
        raise TypeError(f"no MoE kernel for {dtype}")
    num_experts, hidden, intermediate = experts.down_proj.shape
    gate, up = experts.gate_up_proj.chunk(2, dim=1)
    interleaved = torch.stack([gate, up], 2).view(num_experts, 2 * intermediate, hidden)
    weights = {"up": interleaved.numpy(), "down": experts.down_proj.numpy()}
    sessions: dict[int, onnxruntime.InferenceSession] = {}

    def run(given: Given) -> Tensor:
        top_k = given.ids.shape[1]
        if top_k not in sessions:
            sessions[top_k] = _session(num_experts, hidden, intermediate, top_k, TYPES[dtype])
        inputs = {"x": given.x.numpy(), "logits": given.logits.to(dtype).numpy(), **weights}
        return torch.from_numpy(sessions[top_k].run(None, inputs)[0])

    return run


def _session(
    num_experts: int, hidden: int, intermediate: int, top_k: int, element: int
) -> onnxruntime.InferenceSession:
    node = helper.make_node(
        "MoE",
        ["x", "logits", "up", "", "down"],
        ["y"],
        domain="com.microsoft",
        k=top_k,
        normalize_routing_weights=1,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
    )
    shapes = {
        "x": ["T", hidden],
        "logits": ["T", num_experts],
        "up": [num_experts, 2 * intermediate, hidden],
        "down": [num_experts, hidden, intermediate],
    }
    inputs = [helper.make_tensor_value_info(name, element, shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("y", element, ["T", hidden])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "moe", inputs, [output])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
