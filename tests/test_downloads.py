"""Downloads: a server that falls silent ends them, and nothing else notices."""

from __future__ import annotations

import socket

import pytest

from pipeline.system.network.downloads import FAULTS, SILENCE_S, downloading


def test_a_silent_server_is_a_fault_and_other_connections_keep_their_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.system.network.downloads.SILENCE_S", 0.1)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(FAULTS, match="timed out"),
        downloading(),
        socket.create_connection(silent.getsockname()) as connection,
    ):
        connection.recv(1)
    assert socket.getdefaulttimeout() is None
    assert SILENCE_S > 1
