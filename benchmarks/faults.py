"""Every table of docs/reliability.md, made again: what breaks, and what it came to.

    python benchmarks/faults.py --out faults.md            # hours
    python benchmarks/faults.py --brief                    # a part of each, half an hour
    python benchmarks/faults.py --only servers

Each part is a script of its own, run here one after another. Out: their tables under headings, and
the exit code 1 if a script failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class Part:
    """A script, and the words that make it a brief one."""

    title: str
    words: tuple[str, ...] = ()
    brief: tuple[str, ...] = ()


PARTS = {
    "kills": Part(title="A stopped stage goes on", brief=("--kills", "3")),
    "tables": Part(title="First seconds", brief=("--moments", "4")),
    "once": Part(title="Once", brief=("--store", "SQLite", "--entry", "stage1")),
    "servers": Part(title="Servers that go away", brief=("--absences", "10", "--wait", "20")),
    "serving": Part(title="Serving", brief=("--rounds", "1")),
    "fuzz": Part(title="Damaged bytes", words=("--minutes", "60"), brief=("--minutes", "2")),
}


def run(name: str, *, brief: bool) -> tuple[str, bool]:
    """The section of a part, and whether its script came to an end; progress goes to stderr."""
    part = PARTS[name]
    words = [sys.executable, str(HERE / f"{name}.py"), *(part.brief if brief else part.words)]
    started = time.perf_counter()
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    took = f"`{' '.join([f'{name}.py', *words[2:]])}`, {time.perf_counter() - started:.0f} s"
    failed = f"\n\nThe script failed with exit code {done.returncode}." * bool(done.returncode)
    return f"## {part.title}\n\n{took}\n\n{done.stdout.strip()}{failed}\n", not done.returncode


def main() -> int:
    """Print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--brief", action="store_true", help="a part of each table")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sections, fine = [], True
    for name in args.only or PARTS:
        section, ended = run(name, brief=args.brief)
        fine &= ended
        sections.append(section)
        sys.stdout.write(f"{section}\n")
        sys.stdout.flush()
    if args.out:
        args.out.write_text("\n".join(sections), encoding="utf-8")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
