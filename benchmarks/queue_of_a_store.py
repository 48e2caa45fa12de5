"""Workers that share one store, simulated event by event from measured units.

In: what a unit (a pair or a trial) computes and asks the store for. Out: for a number of workers,
their throughput relative to one worker, and how busy the store is. A worker computes for a while,
asks the store, waits for the answer, and so on until its unit is done; the store has a given
number of processes and serves first come, first served. Times are exponential, which is harder on
the store than even times. Besides, the owner of every run gives a sign of life every 15 seconds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping

WORKERS = (1, 10, 30, 100, 300, 1000)
UNITS_S = (0.0, 60.0, 600.0)
"""Seconds that a unit computes; 0: as measured, with the tiny network of the measurement."""
STORES = (1, 8)
"""Processes that serve requests: `mlflow server --workers`."""
BEAT_S = 15.0
UNITS = 4
"""So many times what a unit takes alone is simulated, the first quarter not counted."""


def simulate(
    workers: int, unit_s: float, requests: int, request_s: float, stores: int, seed: int
) -> tuple[float, float]:
    """Units a second, and the share of the time that the store is busy."""
    rng = random.Random(seed)
    alone_s = unit_s + requests * request_s
    end, warm = UNITS * alone_s, UNITS * alone_s / 4
    think_s = unit_s / requests
    beats_s = request_s * workers / BEAT_S  # of the store's time, in each second
    served_s = request_s / max(1e-3, 1 - min(0.99, beats_s / stores))
    free = [0.0] * stores
    waiting = [rng.expovariate(1 / think_s) for _ in range(workers)]
    heapq.heapify(waiting)
    busy_s, asked = 0.0, 0
    while (now := waiting[0]) < end:
        begins = max(now, heapq.heappop(free))
        service_s = rng.expovariate(1 / served_s)
        heapq.heappush(free, begins + service_s)
        if now > warm:
            busy_s += service_s
            asked += 1
        heapq.heapreplace(waiting, begins + service_s + rng.expovariate(1 / think_s))
    return asked / requests / (end - warm), busy_s / (end - warm) / stores


def table(units: Mapping[str, Mapping[str, float]], seed: int) -> str:
    """A Markdown table for each kind of unit."""
    lines = []
    for name, unit in units.items():
        requests = max(1, round(unit["requests"]))
        request_s = (unit["server_ms_a_request"] + unit["postgres_ms_a_request"]) / 1000
        lines += [
            f"\n{name}: {requests} requests a unit, {1000 * request_s:.1f} ms of the store's "
            "processor time each\n",
            "| a unit computes | processes of the store | "
            + " | ".join(f"{n:,} workers" for n in WORKERS)
            + " | full at |",
            f"|---|---|{'---|' * (len(WORKERS) + 1)}",
        ]
        for unit_s in UNITS_S:
            computes = unit_s or unit["unit_s"]
            for stores in STORES:
                cells = []
                for workers in WORKERS:
                    rate, busy = simulate(workers, computes, requests, request_s, stores, seed)
                    gain = rate * (computes + requests * request_s)
                    cells.append(f"{gain:,.0f}x ({min(1.0, busy):.0%})")
                demand_s = request_s * (requests / (computes + requests * request_s) + 1 / BEAT_S)
                full = f"{stores / demand_s:,.0f}"
                shown = f"{computes:.1f} s{'' if unit_s else ' (measured)'}"
                lines.append(f"| {shown} | {stores} | {' | '.join(cells)} | {full} |")
    return "\n".join(lines)
