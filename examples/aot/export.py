"""Exports a Mixture-of-Experts layer and compiles it to a package that C++ runs without Python.

    python examples/aot/export.py build/aot

writes moe.pt2, and for two lengths the tokens beside what Python makes of them, for main.cpp.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch._inductor import aoti_compile_and_package

import capmoe_kernels as cm

E, H, F = 16, 64, 32


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = torch.nn.Linear(H, E, bias=False).requires_grad_(False)
        weights = torch.randn(E, 2 * F, H) * H**-0.5, torch.randn(E, H, F) * F**-0.5
        self.experts = cm.Experts(*weights).pack()  # the layout that the CPU reads fastest

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        gating, capacity = cm.Gating(top_k=2), cm.Capacity(factor=1.25)
        return cm.moe(tokens, self.router(tokens), self.experts, gating, capacity)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    layer = Layer()
    length = torch.export.Dim("tokens", min=0, max=4096)
    program = torch.export.export(layer, (torch.randn(8, H),), dynamic_shapes=({0: length},))
    # What C++ must know of the operator before it loads its kernels; and, here, a size.
    schema = str(torch.ops.capmoe.moe.default._schema)
    metadata = {"schema": schema, "hidden_size": str(H)}
    package = aoti_compile_and_package(
        program,
        package_path=str(folder / "moe.pt2"),
        inductor_configs={"aot_inductor.metadata": metadata},
    )
    print(package)
    for count in (7, 300):
        tokens = torch.randn(count, H)
        case = folder / f"case_{count}.bin"
        case.write_bytes(torch.stack([tokens, layer(tokens)]).numpy().tobytes())
        print(case)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
