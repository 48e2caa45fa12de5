"""What is left when a process is killed while a database gets its tables, and whether eight can.

    python benchmarks/tables.py --out tables.md

For MLflow's and for Optuna's tables, in SQLite and, where it is installed, in PostgreSQL: a
process that opens an empty database is killed at moments spread over the time that this takes, and
for SQLite at moments spread over its writes as well (with strace, where it is installed). The same
process is started again and has to succeed, on a database that SQLite finds intact. Then eight
processes open one empty database together. Out: a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.postgres import Postgres, find_binaries  # noqa: E402

OPEN = """
import sys, time
from pathlib import Path
kind, url, gate = sys.argv[1:]
if kind == "MLflow":
    import mlflow.store.tracking.sqlalchemy_store
    from pipeline.tracking import Tracking
    use = lambda: Tracking.connect("a run", "images").find({"kind": "stage"})
else:
    from pipeline.tuning.storage.access import open_storage
    use = lambda: open_storage(url).get_all_studies()
print("ready", flush=True)
while gate and not Path(gate).exists():
    time.sleep(0.01)
assert use() == []
"""
WRITES = "pwrite64,fdatasync,fsync,ftruncate,unlink"
AT_ONCE = 8


def start(kind: str, url: str, before: list[str], gate: str = "") -> subprocess.Popen[str]:
    """A process that opens a database once it has said that it is ready."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": url}
    return subprocess.Popen(
        [*before, sys.executable, "-c", OPEN, kind, url, gate],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ready(process: subprocess.Popen[str]) -> None:
    """Wait until it has imported what it needs."""
    assert process.stdout
    while "ready" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]


def end(process: subprocess.Popen[str]) -> str:
    """What went wrong; empty if nothing did."""
    _, errors = process.communicate()
    return "" if process.returncode == 0 else (errors.strip() or "killed").splitlines()[-1]


def kill_after(kind: str, url: str, wait_s: float) -> None:
    """Open a database and be killed so many seconds later."""
    process = start(kind, url, [])
    ready(process)
    time.sleep(wait_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def strace(path: Path, *words: str) -> list[str]:
    """The words that start a program whose writes to a database are watched."""
    paths = [path, path.with_name(f"{path.name}-journal")]
    return ["strace", "-f", "-q", *[w for p in paths for w in ("-P", str(p))], *words]


def count_writes(kind: str, folder: Path) -> dict[str, int]:
    """How many writes of each kind an undisturbed process makes."""
    path, log = folder / "counted.db", folder / "calls.txt"
    watch = strace(path, "-o", str(log), "-e", f"trace={WRITES}")
    assert not end(start(kind, f"sqlite:///{path}", watch))
    lines = log.read_text().splitlines()
    return {call: sum(f" {call}(" in line for line in lines) for call in WRITES.split(",")}


def kill_at_write(kind: str, url: str, path: Path, call: str, number: int) -> None:
    """Open a database and be killed at the n-th of its writes of a kind."""
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    watch = strace(path, "-o", "/dev/null", "-e", f"trace={WRITES}", "-e", inject)
    assert end(start(kind, url, watch)), f"{call} {number} was not reached"


def moments(
    kind: str, folder: Path, count: int, of: str
) -> Iterator[tuple[str, Callable[..., None]]]:
    """Moments to be killed at, in words, and what does that to a database."""
    path = folder / "timed.db"
    process = start(kind, f"sqlite:///{path}", [])
    ready(process)
    started = time.monotonic()
    assert not end(process)
    whole_s = time.monotonic() - started
    by_write = count // 2 if of == "SQLite" and shutil.which("strace") else 0
    for number in range(count - by_write):
        wait_s = whole_s * (number + 0.5) / (count - by_write)
        yield f"after {wait_s:.2f} s", lambda url, _, s=wait_s: kill_after(kind, url, s)
    if by_write:
        counted = count_writes(kind, folder)
        calls = [(call, n + 1) for call, total in counted.items() for n in range(total)]
        for number in range(by_write):
            call, n = calls[number * (len(calls) - 1) // max(1, by_write - 1)]
            yield (
                f"at {call} {n} of {counted[call]}",
                lambda url, path, c=call, n=n: kill_at_write(kind, url, path, c, n),
            )


def intact(path: Path) -> str:
    """What SQLite says of a file."""
    with closing(sqlite3.connect(path)) as file:
        return str(file.execute("PRAGMA integrity_check").fetchone()[0])


def tables_in(path: Path) -> str:
    """What a kill has left."""
    if not path.exists():
        return "no file"
    with closing(sqlite3.connect(path)) as file:
        count = file.execute("SELECT count(*) FROM sqlite_master WHERE type='table'").fetchone()
    return f"{path.stat().st_size:,} bytes, {count[0]} tables"


@contextmanager
def server() -> Iterator[Postgres | None]:
    """PostgreSQL, where it is installed."""
    if not (binaries := find_binaries()):
        yield None
        return
    postgres = Postgres(binaries)
    try:
        yield postgres
    finally:
        postgres.remove()


def kills(kind: str, of: str, postgres: Postgres | None, count: int) -> list[tuple[str, ...]]:
    """A row for each kill: where, when, what was left, what the same process then came to."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for number, (words, kill) in enumerate(moments(kind, Path(name), count, of)):
            folder = Path(name, str(number))
            folder.mkdir()
            path = folder / "some.db"
            url = f"sqlite:///{path}"
            if postgres:
                url = postgres.url(f"{kind.lower()}{number}")
            kill(url, path)
            left = "-" if postgres else tables_in(path)
            result = end(start(kind, url, [])) or "works"
            if not postgres:
                state = intact(path)
                result += "" if state == "ok" else f", damaged: {state}"
                files = {p.name for p in folder.iterdir()} - {path.name, f".{path.name}.lock"}
                result += f", left behind: {', '.join(sorted(files))}" if files else ""
            rows.append((f"{kind} in {of}", words, left, result))
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


def together(kind: str, of: str, postgres: Postgres | None) -> tuple[str, ...]:
    """A row: eight processes that open one empty database at the same time."""
    with tempfile.TemporaryDirectory() as name:
        gate, path = Path(name, "gate"), Path(name, "some.db")
        url = postgres.url(f"{kind.lower()}_together") if postgres else f"sqlite:///{path}"
        processes = [start(kind, url, [], str(gate)) for _ in range(AT_ONCE)]
        for process in processes:
            ready(process)
        gate.touch()
        faults = [fault for process in processes if (fault := end(process))]
        left = "" if postgres or kind != "MLflow" else f"{experiments(path)} experiments"
    done = f"{AT_ONCE - len(faults)} of {AT_ONCE} work {faults[:1] or ''}".strip()
    return (f"{kind} in {of}", f"{AT_ONCE} at once", left, done)


def experiments(path: Path) -> int:
    """How many experiments there are beside `Default`."""
    with closing(sqlite3.connect(path)) as file:
        words = "SELECT count(*) FROM experiments WHERE name != 'Default'"
        return int(file.execute(words).fetchone()[0])


def main() -> None:
    """Kill, count, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--moments", type=int, default=12)
    parser.add_argument("--only", help="SQLite or PostgreSQL")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    with server() as postgres:
        places = {"SQLite": None, **({"PostgreSQL": postgres} if postgres else {})}
        for of, at in places.items():
            for kind in ("MLflow", "Optuna") if args.only in (None, of) else ():
                rows += kills(kind, of, at, args.moments)
                rows.append(together(kind, of, at))
    lines = ["| tables | killed | left | the same command again |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    killed = [row for row in rows if "at once" not in row[1]]
    for what in dict.fromkeys(row[0] for row in killed):
        of_it = [row for row in killed if row[0] == what]
        lines.append(
            f"\n{what}: {sum(r[-1] == 'works' for r in of_it)} of {len(of_it)} kills mend"
        )
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
