"""How often the upper end of ``capmoe calibrate`` is below the true loss, by simulation.

``python python_tests/test_calibrate_confidence.py`` prints the table of docs/calibrate.md.
"""

from __future__ import annotations

import math

import pytest
import torch

from capmoe_kernels.calibrate.confidence import _bootstrap, upper_limit

LEVEL = 0.975  # of each of two kinds of answers, for 95 % in all
DRAWS = 600
LOSS = 0.004


def draw(shape, number, random):
    """[number] losses with and without capacity, of documents whose relative loss is LOSS."""
    normal = torch.randn(2, number, generator=random, dtype=torch.float64)
    base = 50_000 * (0.6 * normal[0]).exp()
    factor = 1 + 0.5 * normal[1] if shape == "normal" else (normal[1] - 0.5).exp()
    return base * (1 + LOSS * factor), base


def misses(shape, number, limit=upper_limit, draws=DRAWS):
    """Share of the simulated texts whose upper end is below the true loss."""
    random = torch.Generator().manual_seed(number)
    return sum(limit(*draw(shape, number, random), LEVEL) < LOSS for _ in range(draws)) / draws


def bootstrap_alone(nats, dropless, confidence):
    return _bootstrap(nats.numpy(), dropless.numpy(), confidence)


def test_eight_normal_documents_are_covered():
    """Within three standard errors of what the level allows; the bootstrap alone is not."""
    allowed = (1 - LEVEL) + 3 * math.sqrt(LEVEL * (1 - LEVEL) / DRAWS)
    assert misses("normal", 8) <= allowed
    assert misses("normal", 8, bootstrap_alone) > allowed


def test_end_of_two_documents_is_student_s():
    """By hand: losses 1 % and 3 % of equal documents, t of one degree of freedom."""
    base = torch.tensor([1000.0, 1000.0]).double()
    end = upper_limit(base * torch.tensor([1.01, 1.03]).double(), base, 0.95)
    assert end == pytest.approx(0.02 + 6.313751514675 * 0.01, rel=1e-6)


def test_one_document_has_no_end():
    one = torch.tensor([1000.0]).double()
    assert upper_limit(1.01 * one, one, 0.95) == math.inf


if __name__ == "__main__":
    for kind in ("normal", "lognormal"):
        for documents in (5, 8, 20, 50, 100):
            both = [
                f"{100 * misses(kind, documents, limit):.1f} %"
                for limit in (upper_limit, bootstrap_alone)
            ]
            print(f"{kind}, {documents} documents: {both[0]}; bootstrap alone {both[1]}")
