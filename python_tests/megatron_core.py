"""Megatron-Core's routing functions, where ``make build/megatron/.installed`` has put them."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "build" / "megatron"


def moe_utils():
    """Megatron-Core's module, or a skip; ``CAPMOE_REQUIRE=megatron`` makes that a failure."""
    if not (FOLDER / "megatron").is_dir():
        reason = f"no Megatron-Core in {FOLDER}: make build/megatron/.installed"
        if "megatron" in os.environ.get("CAPMOE_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it would use on a GPU
        from megatron.core.transformer.moe import moe_utils

    return moe_utils
