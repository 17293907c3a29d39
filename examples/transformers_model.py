"""A Hugging Face model whose MoE blocks run on these kernels, its prefill under a capacity.

    python examples/transformers_model.py [MODEL]

MODEL is a checkpoint's folder or name; without one it is the small model of this repository, which
reads bytes of Python. Shows loads of a long prompt before and after, what the model then writes,
and that undo gives the model back. Needs ``pip install 'capmoe-kernels[cli]'``.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import capmoe_kernels as cm
from capmoe_kernels.integrations.transformers import apply, capacity_scope, recording, undo


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else str(files("capmoe_kernels.demo") / "model")
    model = AutoModelForCausalLM.from_pretrained(name).eval()
    tokenizer = AutoTokenizer.from_pretrained(name)
    prompt = Path(__file__).read_text()  # this very file
    inputs = tokenizer(prompt[:600] + "\n\n\ndef ", return_tensors="pt")
    plain = write(model, inputs)

    apply(model, capacity=cm.Capacity(factor=1.0))  # prefill; decoding is dropless by default
    with recording(model) as records:
        bounded = write(model, inputs)
    first = records[0]
    print(f"prompt of {first.num_tokens} tokens, first MoE block, the five busiest experts")
    print("  asked for", sorted(first.demand_per_expert.tolist(), reverse=True)[:5])
    print("  kept     ", sorted(first.tokens_per_expert.tolist(), reverse=True)[:5])

    with capacity_scope(model, None):  # lifted for a while
        dropless = write(model, inputs)
    print("what it writes:")
    for how, ids in (("Transformers", plain), ("dropless", dropless), ("factor 1.0", bounded)):
        print(f"  {how:12} {tokenizer.decode(ids)!r}")

    undo(model)
    print("after undo as before:", torch.equal(write(model, inputs, 2), plain[:2]))


@torch.no_grad()
def write(model: torch.nn.Module, inputs: dict, tokens: int = 16) -> torch.Tensor:
    """The tokens that come next, greedily."""
    length = inputs["input_ids"].shape[1]
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0, length:]


if __name__ == "__main__":
    main()
