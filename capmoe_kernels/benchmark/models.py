"""The sizes and gates of real models' Mixture-of-Experts layers, from their configurations."""

from __future__ import annotations

from typing import NamedTuple

from ..gating import Gating


class Shape(NamedTuple):
    """H, F, E and k of a layer; experts are SwiGLU."""

    hidden: int
    intermediate: int
    experts: int
    top_k: int


class Preset(NamedTuple):
    """A model's routed experts; shared ones are dense and not part of it."""

    shape: Shape
    gating: Gating


PRESETS = {
    "olmoe": Preset(Shape(2048, 1024, 64, 8), Gating(8)),
    "mixtral": Preset(Shape(4096, 14336, 8, 2), Gating(2, renormalize="topk")),
    "qwen3-30b-a3b": Preset(Shape(2048, 768, 128, 8), Gating(8, renormalize="topk")),
    "deepseek-v2-lite": Preset(Shape(2048, 1408, 64, 6), Gating(6)),
    "deepseek-v3": Preset(
        Shape(7168, 2048, 256, 8), Gating(8, "sigmoid", "topk", 2.5, 8, 4, "top2_sum")
    ),
    "demo": Preset(Shape(128, 40, 64, 4), Gating(4)),  # the model that ships
}
TINY = Preset(Shape(64, 64, 8, 2), Gating(2))  # to warm up
