"""Settings of other libraries that these kernels lack: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# What vLLM and SGLang call the parts of a quantised layer, in any of their functions.
QUANTIZATION = frozenset(
    {
        "use_fp8_w8a8",
        "use_int8_w8a8",
        "use_int8_w8a16",
        "use_int4_w4a16",
        "use_mxfp4_w4a4",
        "ocp_mx_scheme",
        "per_channel_quant",
        "per_act_token_quant",
        "w1_scale",
        "w2_scale",
        "w1_zp",
        "w2_zp",
        "a1_scale",
        "a2_scale",
        "block_shape",
        "allow_deep_gemm",
        "allow_cutlass_block_scaled_grouped_gemm",
    }
)


def refuse_quantization(function: str, settings: Mapping[str, Any]) -> None:
    """Raise for every keyword argument that asks for something.

    Raises:
        TypeError: ``function`` never had an argument of that name.
        ValueError: it asks for quantised experts.
    """
    for name, value in settings.items():
        if name not in QUANTIZATION:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        refuse(name, value, "the experts are float32, bfloat16 or float16, not quantised")


def refuse_attributes(owner: str, config: Any, names: Iterable[str], reason: str) -> None:
    """Raise ValueError where ``config.<name>`` asks for something; it need not be there."""
    for name in names:
        refuse(f"{owner}.{name}", getattr(config, name, None), reason)


def refuse(name: str, value: Any, reason: str) -> None:
    """Raise ValueError unless ``value`` is None or False, which ask for nothing."""
    if value is not None and value is not False:
        raise ValueError(f"{name} must be None or False, got {_brief(value)}: {reason}")


def _brief(value: Any) -> str:
    simple = isinstance(value, bool | int | float | str | list | tuple)
    return repr(value) if simple else f"a {type(value).__name__}"
