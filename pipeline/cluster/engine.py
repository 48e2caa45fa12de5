"""A connection to Ray, quiet, and refused in one line: the only importer of Ray.

In: what was typed as `cluster`. Out: the module `ray`, connected. `local` starts Ray for this
command on this machine, without a dashboard, and ends it; any other address is of a cluster that
runs and goes on. Where nothing answers, Ray itself would try for minutes: a port is tried first.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import ClusterError, first_line
from pipeline.system.interrupts import at_once, check
from pipeline.system.progress import doing
from pipeline.system.provenance import DISTRIBUTION, PROJECT_DIR

LOCAL, AUTO, CLIENT = "local", "auto", "ray://"
ANSWER_S = 5.0
STORE_BYTES = 80 * 2**20
"""Of memory for what tasks are given and bring back, which is little."""
SHORT = 40
"""Letters of a temporary folder that leave room for the names of Ray's sockets."""
_TOKEN = secrets.token_hex(32)
"""Of `local`, for this process; Ray itself would keep one in the home folder."""
INSTALL = f'pip install "{DISTRIBUTION}[ray]"'


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def connected(address: str, workers: int) -> Iterator[Any]:
    """Ray, connected; a connection that was there before stays.

    `workers`: tasks at once that `local` must have room for.

    Raises:
        ClusterError: Ray is not installed, or nothing answers there.
    """
    ray = _library(address)
    if ray.is_initialized():
        yield ray
        return
    _check_answers(address)
    with doing("starting Ray" if address == LOCAL else f"connecting to Ray at {address}"):
        _connect(ray, address, workers)
    session = _session_folder(ray) if address == LOCAL else None
    try:
        check()
        yield ray
    finally:
        ray.shutdown()
        if session:
            shutil.rmtree(session, ignore_errors=True)


def _library(address: str) -> Any:  # noqa: ANN401
    try:
        ray = importlib.import_module("ray")
        if address.startswith(CLIENT):
            importlib.import_module("grpc")
    except ImportError as err:
        raise ClusterError(
            f"cluster={address} needs Ray, which is not installed ({first_line(err)}): {INSTALL}, "
            "or leave cluster and workers out: then this process does everything"
        ) from None
    _silence(importlib.import_module("ray._private.worker"))
    return ray


def _silence(worker: ModuleType) -> None:
    """Keep Ray from printing between our lines: what becomes of a task is told by us."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if hasattr(worker, "print_to_stdstream"):  # no setting turns it off
        vars(worker)["print_to_stdstream"] = lambda *_, **__: None


def _check_answers(address: str) -> None:
    """Refuse an address at which no port is open."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if not host:
        return
    try:
        with at_once():
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError as err:
        raise ClusterError(_no_answer(address, err)) from None


def _no_answer(address: str, err: BaseException) -> str:
    if address == LOCAL:
        what = "see to memory and disk, or leave cluster and workers out: Ray is not needed then"
        return f"cluster={address}: Ray could not be started ({first_line(err)}): {what}"
    return (
        f"cluster={address} cannot be used ({first_line(err)}): start one with "
        "`ray start --head`, check host, port and RAY_AUTH_TOKEN, or pass -P cluster=local for "
        "this machine alone"
    )


def _connect(ray: Any, address: str, workers: int) -> None:  # noqa: ANN401
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address == LOCAL:
            with _in_environment(_for_nodes()):
                ray.init(
                    address=LOCAL,
                    num_cpus=max(cores(), workers),
                    include_dashboard=False,
                    object_store_memory=STORE_BYTES,
                    configure_logging=False,
                    **quiet,
                    **_short_folder(),
                )
        else:
            _with_token()
            ray.init(address=address, **quiet)
    except (Exception, SystemExit) as err:  # noqa: BLE001 - Ray raises whatever it met
        ray.shutdown()
        raise ClusterError(_no_answer(address, err)) from None
    finally:
        if in_main:  # Ray has put one of its own
            signal.signal(signal.SIGTERM, handler)


def _for_nodes() -> dict[str, str]:
    """The environment in which `local` starts what runs our tasks."""
    path = os.pathsep.join(filter(None, [str(PROJECT_DIR), os.environ.get("PYTHONPATH")]))
    return {
        "PYTHONPATH": path,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": _TOKEN,  # other users of the machine run nothing here
    }


def _with_token() -> None:
    """Log in where Ray finds a token, as `ray start` does; of itself Ray does not."""
    with suppress(ImportError, AttributeError):
        setup = importlib.import_module("ray._private.authentication.authentication_token_setup")
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextmanager
def _in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*variables, "RAY_AUTH_MODE")}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _short_folder() -> dict[str, str]:
    """Where Ray keeps sockets and logs, if the temporary folder's name is too long for sockets."""
    given = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or ""
    return {"_temp_dir": "/tmp/ray"} if len(given) > SHORT else {}


def _session_folder(ray: Any) -> Path:  # noqa: ANN401
    about = ray.get_runtime_context()
    return Path(str(about.get_temp_dir())) / str(about.get_session_name())


def times_lost() -> int:
    """How often Ray has begun the task that runs here before; 0 where Ray does not tell."""
    from ray._private import worker

    core = getattr(worker.global_worker, "core_worker", None)
    return int(getattr(core, "get_current_task_attempt_number", int)())
