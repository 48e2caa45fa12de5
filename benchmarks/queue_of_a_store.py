"""Workers that share one store, simulated event by event from measured units.

In: what a unit (a pair or a trial) computes and asks the store for. Out: units an hour for so many
workers, and how busy the store is. A worker computes for a while, asks the store, waits for the
answer, and so on until its unit is done; the store has so many processes and serves who came
first. Times are exponential, which is harder on the store than even ones. The owner of every run
gives a sign of life every 15 seconds beside that.
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
SIMULATED_S = 40
"""Of these many times what a unit takes alone."""


def simulate(
    workers: int, unit_s: float, requests: int, request_s: float, stores: int, seed: int
) -> tuple[float, float, float]:
    """Units an hour, share of the time that the store is busy, and mean seconds of a request."""
    rng = random.Random(seed)
    alone_s = unit_s + requests * request_s
    end, warm = SIMULATED_S / 4 * alone_s, SIMULATED_S / 16 * alone_s
    think_s = unit_s / requests
    beats_s = request_s * workers / BEAT_S  # of the store's time, in each second
    served_s = request_s / max(1e-3, 1 - min(0.99, beats_s / stores))
    free = [0.0] * stores
    waiting = [(rng.expovariate(1 / think_s), rng.randrange(requests)) for _ in range(workers)]
    heapq.heapify(waiting)
    done, busy_s, took_s, asked = 0, 0.0, 0.0, 0
    while waiting[0][0] < end:
        now, number = waiting[0]
        begins = max(now, heapq.heappop(free))
        service_s = rng.expovariate(1 / served_s)
        heapq.heappush(free, begins + service_s)
        if now > warm:
            busy_s += service_s
            took_s += begins + service_s - now
            asked += 1
            done += number + 1 == requests
        after = begins + service_s + rng.expovariate(1 / think_s)
        heapq.heapreplace(waiting, (after, (number + 1) % requests))
    return 3600 * done / (end - warm), busy_s / (end - warm) / stores, took_s / max(1, asked)


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
                    rate, busy, _ = simulate(workers, computes, requests, request_s, stores, seed)
                    alone = 3600 / (computes + requests * request_s)
                    cells.append(f"{rate / alone:,.0f}x ({busy:.0%})")
                demand_s = request_s * (requests / (computes + requests * request_s) + 1 / BEAT_S)
                full = f"{stores / demand_s:,.0f}"
                shown = f"{computes:.1f} s{'' if unit_s else ' (measured)'}"
                lines.append(f"| {shown} | {stores} | {' | '.join(cells)} | {full} |")
    return "\n".join(lines)
