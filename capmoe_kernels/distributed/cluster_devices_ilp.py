"""All layers' clusters onto devices at once, where links differ (HiGHS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cluster_devices import Order, slowest_links

# Variables beyond which HiGHS would not come far within any time one waits.
MOST_VARIABLES = 20_000


def num_variables(layers: int, devices: int) -> int:
    return layers * devices**2 + (layers - 1) * (devices**4 + 1)


def orders_ilp(
    traffic: Sequence[Tensor],
    bandwidth: Tensor,
    start: list[Order],
    bound: float,
    time_limit: float,
) -> tuple[list[Order], float]:
    """(orders, lower bound), never worse than ``start`` and ``bound``.

    y[l, c, g] says that cluster c of layer l stands on device g; w[l, c1, g1, c2, g2] is
    y[l, c1, g1] * y[l + 1, c2, g2], which its sums over g1 and over g2 make it; t[l] is the
    slowest link's time after layer l.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    layers, devices = len(traffic) + 1, len(bandwidth)
    now = slowest_links(traffic, bandwidth, start)
    scale = now / len(traffic)
    size, ones = num_variables(layers, devices), layers * devices**2
    cost = np.zeros(size)
    cost[size - len(traffic) :] = 1
    upper = np.ones(size)
    upper[size - len(traffic) :] = np.inf
    found = milp(
        cost,
        integrality=np.arange(size) < ones,
        bounds=Bounds(np.zeros(size), upper),
        constraints=[
            LinearConstraint(_one_to_one(layers, devices, size), 1, 1),
            LinearConstraint(_products(layers, devices, size), 0, 0),
            LinearConstraint(_slower_links(traffic, bandwidth, scale, size), -np.inf, 0),
        ],
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )
    proven = found.mip_dual_bound
    if proven is not None and np.isfinite(proven):
        bound = max(bound, float(proven) * scale * (1 - 1e-6))
    orders = start
    if found.x is not None:
        chosen = found.x[:ones].reshape(layers, devices, devices).argmax(axis=2).tolist()
        orders = min(start, chosen, key=lambda each: slowest_links(traffic, bandwidth, each))
    return orders, min(bound, slowest_links(traffic, bandwidth, orders))


def _matrix(entries: list[tuple[Any, Any, Any]], size: int) -> Any:
    """A sparse matrix of (row, column, value) triples."""
    from scipy.sparse import csr_array

    rows, columns, values = (np.array(part) for part in zip(*entries, strict=True))
    return csr_array((values, (rows, columns)), shape=(int(rows.max()) + 1, size))


def _y(layer: int, cluster: int, device: int, devices: int) -> int:
    return (layer * devices + cluster) * devices + device


def _one_to_one(layers: int, devices: int, size: int) -> Any:
    each = range(devices)
    entries = []
    for layer in range(layers):
        for cluster in each:
            for device in each:
                column = _y(layer, cluster, device, devices)
                entries.append(((2 * layer) * devices + cluster, column, 1.0))
                entries.append(((2 * layer + 1) * devices + device, column, 1.0))
    return _matrix(entries, size)


def _products(layers: int, devices: int, size: int) -> Any:
    """sum over g2 of w = y[l, c1, g1], sum over g1 of w = y[l + 1, c2, g2]."""
    entries: list[tuple[Any, Any, Any]] = []
    row = 0
    for layer in range(layers - 1):
        index = _w(layer, layers, devices)
        for c1, c2, g in np.ndindex(devices, devices, devices):
            sums = (
                (index[c1, g, c2, :], _y(layer, c1, g, devices)),
                (index[c1, :, c2, g], _y(layer + 1, c2, g, devices)),
            )
            for columns, product_of in sums:
                entries += [(row, column, 1.0) for column in columns]
                entries.append((row, product_of, -1.0))
                row += 1
    return _matrix(entries, size)


def _slower_links(traffic: Sequence[Tensor], bandwidth: Tensor, scale: float, size: int) -> Any:
    """Every link's time is at most t[l]."""
    devices, layers = len(bandwidth), len(traffic) + 1
    entries: list[tuple[Any, Any, Any]] = []
    row = 0
    for layer, step in enumerate(traffic):
        index = _w(layer, layers, devices)
        for g1, g2 in np.ndindex(devices, devices):
            if g1 == g2:
                continue
            times = (step / bandwidth[g1, g2] / scale).numpy()
            columns = index[:, g1, :, g2]
            pairs = zip(columns.ravel(), times.ravel(), strict=True)
            entries += [(row, column, time) for column, time in pairs]
            entries.append((row, size - len(traffic) + layer, -1.0))
            row += 1
    return _matrix(entries, size)


def _w(layer: int, layers: int, devices: int) -> Any:
    """Columns of w[layer], by c1, g1, c2, g2."""
    first = layers * devices**2 + layer * devices**4
    return (first + torch.arange(devices**4)).view([devices] * 4).numpy()
