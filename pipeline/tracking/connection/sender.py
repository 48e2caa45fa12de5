"""Metrics on their way to the store while training goes on.

In: what is to be asked of MLflow's client. Out: nothing; `wait` tells what became of it all. The
thread ends with the process, whatever it still has to send.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from pipeline.tracking.connection.patience import Patience


class Sender:
    """Sends one thing after the other, in a thread of its own that waits for servers."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._queue: SimpleQueue[tuple[Callable[[], object], Future[object]]] = SimpleQueue()
        self._sent: list[Future[object]] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def send(self, do: Callable[[], object]) -> None:
        """Send this once everything before is sent."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._sent.append(Future())
        self._queue.put((do, self._sent[-1]))

    def _work(self) -> None:
        self._patience.in_background(self._over)
        while True:
            do, sent = self._queue.get()
            if self._over.is_set():
                return
            try:
                sent.set_result(do())
            except BaseException as err:  # noqa: BLE001 - raised by `wait`
                sent.set_exception(err)

    def wait(self) -> None:
        """Wait until everything is sent.

        Raises:
            AwayError: a server has stayed away for too long.
            Exception: what MLflow raised.
        """
        for sent in self._sent:
            self._patience.wait_for(sent)
        self._sent.clear()

    def drop(self) -> None:
        """Send nothing more: the run has ended."""
        self._over.set()
        self._queue.put((lambda: None, Future()))
