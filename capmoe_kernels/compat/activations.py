"""vLLM's and SGLang's names of activations, in this package's terms."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..experts import Activation, Layout

# GPT-OSS's: alpha, beta and limit of (clamp(up) + beta) * gate * sigmoid(alpha * gate).
_GPT_OSS = (1.702, 1.0, 7.0)

_SAME: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu_no_mul": "silu_no_mul",
    "gelu_no_mul": "gelu_no_mul",
    "gelu_tanh_no_mul": "gelu_tanh_no_mul",
    "relu2_no_mul": "relu2_no_mul",
}


class ExpertActivation(NamedTuple):
    activation: Activation
    layout: Layout


def expert_activation(
    activation: Any,
    alpha: float | None = None,
    beta: float | None = None,
    limit: float | None = None,
) -> ExpertActivation:
    """What ``activation`` is here, and how w1's rows lie for it.

    Args:
        activation: vLLM's name, or a member of its ``MoEActivation``. ``"swigluoai"`` has gate and
            up rows in turns, ``"swigluoai_uninterleave"`` all gate rows first, as all others have.
        alpha, beta, limit: vLLM's ``gemm1_alpha``, ``gemm1_beta`` and ``gemm1_clamp_limit``.

    Raises:
        TypeError: ``activation`` is neither a name nor an enum of names.
        ValueError: there is no such activation here, or not with these constants.
    """
    name = getattr(activation, "value", activation)
    if not isinstance(name, str):
        raise TypeError(
            f"activation must be a name such as 'silu', got {activation!r}"
            " (vLLM up to 0.10 had inplace in its place: give that by name)"
        )
    given = (alpha, beta, limit)
    if name == "swigluoai":
        if not all(value in (None, fixed) for value, fixed in zip(given, _GPT_OSS, strict=True)):
            raise ValueError(_constants(name, given))
        return ExpertActivation("swigluoai", "interleaved")
    if name == "swigluoai_uninterleave":
        if given != _GPT_OSS:  # None is something else there: alpha 1 and beta 0
            raise ValueError(_constants(name, given))
        return ExpertActivation("swigluoai", "concat")
    if name not in _SAME:
        known = ", ".join([*_SAME, "swigluoai", "swigluoai_uninterleave"])
        raise ValueError(f"activation must be one of {known}, got {name!r}")
    if given != (None, None, None):
        raise ValueError(_constants(name, given))
    return ExpertActivation(_SAME[name], "concat")


def _constants(name: str, given: tuple[float | None, ...]) -> str:
    wanted = _GPT_OSS if name.startswith("swigluoai") else (None, None, None)
    return (
        "gemm1_alpha, gemm1_beta and gemm1_clamp_limit must be"
        f" {', '.join(map(str, wanted))} for activation {name!r},"
        f" got {', '.join(map(str, given))}"
    )
