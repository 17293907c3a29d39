"""Which experts the tokens of some steps ask for: recorded from a model, or kept in a file.

A trace file is safetensors. For every MoE layer i, from 0, it has one of

    layers.{i}.topk_ids        [T, k] int32 or int64, -1: not routed
    layers.{i}.router_logits   [T, E] float32, bfloat16 or float16

for the same T tokens, in order, and optionally ``step_tokens`` [steps] int64, how many of them each
forward pass has; without it all are of one. Its metadata are strings: ``num_experts`` (needed with
topk_ids), ``top_k`` (needed with router_logits), ``scoring``, ``num_groups``, ``topk_groups`` and
``group_score`` of the gate where they aren't Gating's defaults, ``hidden_size`` and ``dtype`` of
the tokens (optional: bytes on the wire), and ``source``, in words. A selection bias has no
place in it: write topk_ids where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..gating import Gating
from ..routing import route
from .errors import UsageError

_GATING_INTS = ("num_groups", "topk_groups")
_GATING_WORDS = ("scoring", "group_score")


@dataclass(frozen=True, eq=False)
class Trace:
    """Experts asked for.

    Attributes:
        source: what was recorded, in words.
        topk_ids: [T, k] int64 of each layer; outside [0, E) where a token isn't routed.
        step_tokens: tokens of each step; they sum to T.
        num_experts, top_k: E and k.
        hidden_size, dtype: of the tokens; None where not known.
    """

    source: str
    topk_ids: list[Tensor]
    step_tokens: list[int]
    num_experts: int
    top_k: int
    hidden_size: int | None = None
    dtype: torch.dtype | None = None

    def loads(self, devices: int) -> Tensor:
        """[steps * layers, S, E]: S ranks have the contiguous parts of a step's tokens each."""
        out = [
            torch.stack([_count(part, self.num_experts) for part in step.tensor_split(devices)])
            for ids in self.topk_ids
            for step in torch.split(ids, self.step_tokens)
        ]
        return torch.stack(out)


def _count(ids: Tensor, num_experts: int) -> Tensor:
    real = ids[(ids >= 0) & (ids < num_experts)]
    return torch.bincount(real, minlength=num_experts)


def save_trace(trace: Trace, path: Path) -> None:
    """Write the file described above, with topk_ids."""
    from safetensors.torch import save_file

    metadata = {
        "source": trace.source,
        "num_experts": str(trace.num_experts),
        "top_k": str(trace.top_k),
    }
    if trace.hidden_size is not None:
        metadata["hidden_size"] = str(trace.hidden_size)
    if trace.dtype is not None:
        metadata["dtype"] = str(trace.dtype).removeprefix("torch.")
    tensors = {f"layers.{i}.topk_ids": ids.int() for i, ids in enumerate(trace.topk_ids)}
    tensors["step_tokens"] = torch.tensor(trace.step_tokens)
    save_file(tensors, path, metadata=metadata)


def load_trace(path: Path) -> Trace:
    """Read one.

    Raises:
        UsageError: what is missing or does not fit.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: not a safetensors file: {error}") from None
    try:
        return _trace(path, tensors, metadata)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None


def _trace(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Trace:
    layers: list[Tensor] = []
    num_experts = _number(metadata, "num_experts")
    while (found := _layer(tensors, len(layers))) is not None:
        name, values = found
        if values.dim() != 2:
            raise ValueError(f"{name} must be [T, any], got {list(values.shape)}")
        if name.endswith("router_logits"):
            num_experts = values.shape[1] if num_experts is None else num_experts
            if values.shape[1] != num_experts:
                raise ValueError(f"{name} must have {num_experts} columns, got {values.shape[1]}")
            values = route(values, _gating(metadata)).expert_ids
        elif values.is_floating_point() or values.dtype == torch.bool:
            raise ValueError(f"{name} must be whole numbers, got {values.dtype}")
        layers.append(values.long())
    if not layers:
        raise ValueError("no tensor layers.0.topk_ids or layers.0.router_logits in it")
    if num_experts is None:
        raise ValueError("its metadata must say num_experts")
    shapes = {tuple(ids.shape) for ids in layers}
    if len(shapes) > 1:
        raise ValueError(f"every layer must have the same tokens and top-k, got {sorted(shapes)}")
    ((tokens, top_k),) = shapes
    return Trace(
        metadata.get("source", path.name),
        layers,
        _steps(tensors.get("step_tokens"), tokens),
        num_experts,
        top_k,
        _number(metadata, "hidden_size"),
        _dtype(metadata),
    )


def _layer(tensors: dict[str, Tensor], layer: int) -> tuple[str, Tensor] | None:
    for kind in ("topk_ids", "router_logits"):
        name = f"layers.{layer}.{kind}"
        if name in tensors:
            return name, tensors[name]
    return None


def _steps(step_tokens: Tensor | None, tokens: int) -> list[int]:
    steps: list[int] = [tokens] if step_tokens is None else step_tokens.flatten().tolist()
    if tokens == 0:
        raise ValueError("it has no tokens")
    if sum(steps) != tokens or min(steps) < 1:
        raise ValueError(f"step_tokens must be >= 1 and sum to {tokens} tokens, got {steps}")
    return steps


def _gating(metadata: dict[str, str]) -> Gating:
    top_k = _number(metadata, "top_k")
    if top_k is None:
        raise ValueError("its metadata must say top_k, to route router_logits")
    options: dict[str, Any] = {name: _number(metadata, name) or 1 for name in _GATING_INTS}
    options |= {name: metadata[name] for name in _GATING_WORDS if name in metadata}
    return Gating(top_k=top_k, **options)


def _number(metadata: dict[str, str], name: str) -> int | None:
    text = metadata.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"its metadata's {name} must be a number >= 1, got {text!r}")
    return int(text)


def _dtype(metadata: dict[str, str]) -> torch.dtype | None:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    text = metadata.get("dtype")
    if text is None:
        return None
    if text not in names:
        raise ValueError(f"its metadata's dtype must be one of {', '.join(names)}, got {text!r}")
    return names[text]
