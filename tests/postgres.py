"""A PostgreSQL server of the tests' own: a temporary folder, a free port, gone afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

USER = "postgres"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def find_binaries() -> Path | None:
    """The folder that holds `initdb` and `pg_ctl`, wherever the system keeps it."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


class Postgres:
    """A server; `url(name)` is a database in it, made at first use."""

    def __init__(self, binaries: Path) -> None:
        # not below pytest's folder, which is closed to the server's user
        self.folder = Path(tempfile.mkdtemp(prefix="tests-postgres-"))
        self.data, self.binaries, self.port = self.folder / "data", binaries, free_port()
        self.made: set[str] = set()
        if os.getuid() == 0:
            shutil.chown(self.folder, USER)
        self._run("initdb", "-D", str(self.data), "-U", USER, "-A", "trust", "--no-sync")
        self.start()

    def _run(self, program: str, *words: str) -> None:
        subprocess.run(
            [str(self.binaries / program), *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            user=USER if os.getuid() == 0 else None,  # PostgreSQL refuses to run as root
        )

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -c fsync=off"
        log = str(self.folder / "server.log")
        self._run("pg_ctl", "-D", str(self.data), "-o", options, "-l", log, "-w", "start")

    def stop(self) -> None:
        """Stop at once, as in a power cut: connections break, what was committed stays."""
        self._run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        """Stop it and leave nothing behind."""
        self.stop()
        shutil.rmtree(self.folder)

    def url(self, name: str) -> str:
        """The URL of a database; an empty one at first."""
        if name not in self.made:
            where = ("-h", "127.0.0.1", "-p", str(self.port), "-U", USER)
            self._run("createdb", *where, name)
            self.made.add(name)
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"
