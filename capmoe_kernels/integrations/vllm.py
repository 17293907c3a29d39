"""vLLM's unquantised FusedMoE layers on these kernels, with a capacity: an out-of-tree plugin.

vLLM finds :func:`register` by its entry point (``vllm.general_plugins``) and calls it in every
process. It does nothing unless ``CAPMOE_VLLM_CAPACITY_FACTOR`` is set:

    CAPMOE_VLLM_CAPACITY_FACTOR=1.5 vllm serve MODEL

``CAPMOE_VLLM_CAPACITY_FACTOR``: of :class:`~capmoe_kernels.Capacity`; inf bounds nothing.
``CAPMOE_VLLM_POLICY``: which tokens an expert keeps; ``score`` where not set.
``CAPMOE_VLLM_MIN_TOKENS``: a step of fewer tokens is not bounded; 1 where not set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from ..capacity import Capacity

# Below "vllm", whose handler and level vLLM sets up: a logger of our own would be silent there.
_log = logging.getLogger("vllm.capmoe_kernels")

_PREFIX = "CAPMOE_VLLM_"
_FACTOR, _POLICY, _MIN_TOKENS = (_PREFIX + n for n in ("CAPACITY_FACTOR", "POLICY", "MIN_TOKENS"))
_VARIABLES = (_FACTOR, _POLICY, _MIN_TOKENS)
_METHOD = "UnquantizedFusedMoEMethod"
_METHOD_MODULE = "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method"


@dataclass(frozen=True)
class Settings:
    """What the environment asks for.

    Attributes:
        capacity: of every layer.
        min_tokens: a step of fewer tokens is not bounded.
    """

    capacity: Capacity
    min_tokens: int = 1


def settings(environment: Mapping[str, str]) -> Settings | None:
    """The plugin's settings; None where it is not asked for, but for a wrong one all the same.

    Raises:
        ValueError: naming the variable and what it expects.
    """
    factor = environment.get(_FACTOR)
    unknown = [n for n in environment if n.startswith(_PREFIX) and n not in _VARIABLES]
    if unknown:
        raise ValueError(f"{unknown[0]} is no setting: there are {', '.join(_VARIABLES)}")
    try:
        ratio = 1.0 if factor is None else float(factor)
        capacity = Capacity(factor=ratio, policy=environment.get(_POLICY, "score"))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{_FACTOR} and {_POLICY} must make a Capacity: {error}") from None
    least = environment.get(_MIN_TOKENS, "1")
    if not least.isdecimal() or int(least) < 1:
        raise ValueError(f"{_MIN_TOKENS} must be an int >= 1, got {least!r}")
    return None if factor is None else Settings(capacity, int(least))


def register() -> None:
    """Let vLLM build its unquantised FusedMoE layers on these kernels; vLLM calls this.

    Where vLLM is not there, or has no such layer to replace, this is said in the log and vLLM runs
    as it would without the plugin. Calling it again changes nothing.

    Raises:
        ValueError: the environment asks for something that there is not.
    """
    wanted = settings(os.environ)
    if wanted is None:
        return
    try:
        custom_op = import_module("vllm.model_executor.custom_op")
        method = getattr(import_module(_METHOD_MODULE), _METHOD)
        replaced, replace = custom_op.op_registry_oot, custom_op.CustomOp.register_oot
        known_variables = import_module("vllm.envs").environment_variables
    except (ImportError, AttributeError) as error:
        _log.error("capmoe_kernels serves no layer: this is not vLLM 0.32 (%s)", error)
        return
    if _METHOD in replaced:
        if replaced[_METHOD].__module__ != f"{__package__}.vllm_method":
            _log.error("capmoe_kernels serves no layer: another plugin replaced %s", _METHOD)
        return
    from .vllm_method import make_method

    # They are part of what vLLM's cache of compiled models is looked up by from here on.
    known_variables.update({name: partial(os.environ.get, name) for name in _VARIABLES})
    replace(name=_METHOD)(make_method(method, wanted))
