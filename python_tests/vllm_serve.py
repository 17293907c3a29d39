"""Serves a checkpoint by vLLM's offline engine and writes what came out as JSON.

python vllm_serve.py CHECKPOINT OUT.json: the prompts' log-probabilities, the tokens after them, and
(tokens, E, K, most asked for, most kept) of every call of a layer that the plugin serves.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

# One process, so that the layers' calls can be watched; nothing is downloaded.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
)

from vllm import LLM, SamplingParams

from capmoe_kernels.integrations import vllm_method

PROMPTS = [list(range(10, 70)), list(range(100, 130))]


def watch_layers() -> list[tuple[int, ...]]:
    calls: list[tuple[int, ...]] = []
    route = vllm_method.route_topk

    def watched(ids: Any, weights: Any, num_experts: int, *rest: Any, **options: Any) -> Any:
        routing = route(ids, weights, num_experts, *rest, **options)
        most = (int(routing.demand_per_expert.max()), int(routing.tokens_per_expert.max()))
        calls.append((ids.shape[0], num_experts, ids.shape[1], *most))
        return routing

    vllm_method.route_topk = watched
    return calls


def main() -> None:
    calls = watch_layers()
    model = LLM(
        model=sys.argv[1],
        dtype="float32",
        max_model_len=128,
        max_num_seqs=4,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    prompts = [{"prompt_token_ids": tokens} for tokens in PROMPTS]
    outputs = model.generate(
        prompts, SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, prompt_logprobs=0)
    )
    results = {
        "logprobs": [
            [next(iter(token.values())).logprob for token in output.prompt_logprobs[1:]]
            for output in outputs
        ],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
        "calls": calls,
    }
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
