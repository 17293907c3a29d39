"""Other libraries' functions on these kernels: their names, argument order and layouts.

For callers that own their weights and their loop. Nothing of those libraries is imported.
:mod:`capmoe_kernels.compat.sglang` has SGLang's forms of the names that are vLLM's here.
"""

from .megatron import apply_router_token_dropping, permute, select_from_map, unpermute
from .vllm import fused_experts, fused_moe

__all__ = [
    "apply_router_token_dropping",
    "fused_experts",
    "fused_moe",
    "permute",
    "select_from_map",
    "unpermute",
]
