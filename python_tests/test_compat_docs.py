"""docs/compat.md's example runs, and what it says of its results holds."""

from __future__ import annotations

from pathlib import Path

import torch

import capmoe_kernels as cm


def test_the_example_runs():
    text = (Path(__file__).parent.parent / "docs" / "compat.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    x, routing_map = names["hidden_states"], names["routing_map"]
    assert names["out"].shape == x.shape
    limit = cm.expert_capacity(512, 16, 4, 1.25)
    assert routing_map.sum(0).max() <= limit
    weighted = x * names["probs"].sum(1, keepdim=True)  # the rows came back as they went
    torch.testing.assert_close(names["out"], weighted)
