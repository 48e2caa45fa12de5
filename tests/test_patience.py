"""Servers that are away are asked again: for how long, what is said, what counts once."""

from __future__ import annotations

import errno
import os
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import requests
from mlflow.exceptions import TEMPORARILY_UNAVAILABLE, MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from pipeline.errors import AwayError
from pipeline.system.interrupts import begun, stopped_by_signals
from pipeline.system.variables import SERVER_WAIT
from pipeline.tracking.connection import patience as module
from pipeline.tracking.connection.away import away_of
from pipeline.tracking.connection.patience import RETRIES, TIMEOUT, Away, Patience, ask_briefly
from pipeline.tracking.connection.sender import Sender
from tests.postgres import free_port
from tests.served import NotHttp, Tracking

Serve = Callable[..., str]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the user's, and none of ours is left behind; the first pause is short."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in (TIMEOUT, RETRIES, SERVER_WAIT):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(module, "_given", [str(module.ANSWER_S)])
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.1)
    ask_briefly()


def ask(address: str) -> requests.Response:
    """A question as MLflow asks."""
    return http_request(  # type: ignore[no-untyped-call,no-any-return]
        get_default_host_creds(address),  # type: ignore[no-untyped-call]
        "/api/2.0/mlflow/x",
        "GET",
    )


def patience_with(address: str) -> Patience:
    return Patience(lambda err: away_of(err, address))


class Answers:
    """Gives these one after the other, the last for ever; raises those that are faults."""

    def __init__(self, *answers: object) -> None:
        self.answers, self.asked = list(answers), 0

    def __call__(self) -> object:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


GONE = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def always(_: BaseException) -> Away:
    return Away("the server", "gone")


@pytest.mark.slow
def test_a_server_that_is_refused_is_named_waited_for_and_greeted(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    there = serve(Tracking)
    addresses = iter([address, there])
    patience = patience_with(address)
    assert patience.call(lambda: ask(next(addresses))).ok
    away, back = capfd.readouterr().err.splitlines()
    assert re.search(
        f"tracking server at {address} is away .*Connection refused.*waits.*10 min", away
    )
    assert re.search(f"{address} is back after 0 s", back)


@pytest.mark.slow
def test_a_server_that_is_silent_is_noticed_and_then_given_more_time(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 1)
    monkeypatch.setattr(module, "_given", ["1"])
    monkeypatch.delenv(TIMEOUT)
    ask_briefly()
    silent, there = serve(partial(NotHttp, reply=b"H", pause_s=1.5)), serve(Tracking)
    addresses, given = iter([silent, there]), []

    def note_time() -> requests.Response:
        given.append(os.environ[TIMEOUT])
        return ask(next(addresses))

    assert patience_with(silent).call(note_time).ok
    assert given == ["1", "2"]
    assert os.environ[TIMEOUT] == "1"
    assert "takes too long to answer" in capfd.readouterr().err


def test_how_long_to_wait_for_an_answer_is_the_users_to_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TIMEOUT, "77")
    monkeypatch.setenv(RETRIES, "3")
    ask_briefly()
    assert (os.environ[TIMEOUT], os.environ[RETRIES]) == ("77", "3")


@pytest.mark.slow
def test_what_stays_away_is_given_up_and_then_asked_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SERVER_WAIT, "0.55")
    patience, gone = Patience(always), Answers(GONE)
    with pytest.raises(AwayError, match=r"the server has stayed away for 1 s \(gone\): .* again"):
        patience.call(gone)
    asked = gone.asked
    with pytest.raises(ConnectionRefusedError, match="refused"):  # it marks its runs, and ends
        patience.call(gone)
    assert gone.asked == asked + 1
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_other_faults_are_raised_at_once_also_while_a_server_comes_back() -> None:
    wrong = KeyError("wrong")

    def tell(err: BaseException) -> Away | None:
        return always(err) if err is GONE else None

    answers = Answers(wrong)
    with pytest.raises(KeyError, match="wrong"):
        Patience(tell).call(answers)
    assert answers.asked == 1
    with pytest.raises(KeyError, match="wrong"):
        Patience(tell).call(Answers(GONE, wrong))


@pytest.mark.slow
def test_what_was_done_though_its_answer_was_lost_is_not_done_again() -> None:
    done = Answers(GONE, "done twice")
    assert Patience(always).call(done, lambda: "found") == "found"
    assert done.asked == 1
    assert Patience(always).call(Answers(GONE, "done"), lambda: None) == "done"


@pytest.mark.slow
def test_of_calls_within_calls_the_outermost_is_repeated() -> None:
    patience = Patience(always)
    inner, outer = Answers(GONE, "inner"), Answers("outer")
    assert patience.call(lambda: (outer(), patience.call(inner))) == ("outer", "inner")
    assert (inner.asked, outer.asked) == (2, 2)


def test_a_thread_of_its_own_is_not_made_to_wait() -> None:
    patience, found = Patience(always), []

    def work() -> None:
        try:
            patience.call(Answers(GONE, "there"))
        except OSError as err:
            found.append(err)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [GONE]


def test_ctrl_c_ends_the_waiting_and_what_marks_the_runs_does_not_wait() -> None:
    patience = Patience(always)
    with stopped_by_signals(signal.signal):
        begun()
        presses = [
            threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]),
            threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]),
        ]
        for press in presses:
            press.start()
        with pytest.raises(KeyboardInterrupt):
            patience.call(Answers(GONE))
        for press in presses:  # one that came later would be of the tests that follow
            press.join()
        last = Answers(GONE)
        with pytest.raises(ConnectionRefusedError, match="refused"):
            patience.call(last)
        assert last.asked == 1


def sender_of(gone: Answers) -> tuple[Sender, list[int], Answers]:
    """A sender that waits for a server, what it has sent after that, and what it asks."""
    patience, sent = Patience(always), list[int]()
    sender = Sender(patience)
    sender.send(partial(patience.call, gone))
    sender.send(lambda: sent.append(2))
    while not gone.asked:
        time.sleep(0.01)
    return sender, sent, gone


@pytest.mark.slow
def test_metrics_wait_beside_the_training_until_the_command_waits_for_them(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.7)  # longer than until the command waits
    sender, sent, gone = sender_of(Answers(GONE, "there"))
    assert sent == []
    sender.wait()
    assert sent == [2]
    assert gone.asked == 2
    away, waits, back = capfd.readouterr().err.splitlines()
    assert "work goes on" in away
    assert "the command waits" in waits
    assert "is back" in back
    monkeypatch.setenv(SERVER_WAIT, "0.5")
    sender, sent, _ = sender_of(Answers(GONE))
    with pytest.raises(AwayError, match="stayed away"):
        sender.wait()


def test_what_a_run_that_has_ended_still_had_to_send_is_dropped() -> None:
    sender, sent, _ = sender_of(Answers(GONE))
    sender.drop()
    with pytest.raises(ConnectionRefusedError, match="refused"):
        sender.wait()
    assert sent == []


# What means that a server is away


@pytest.mark.parametrize(
    ("status", "is_away"),
    [(502, True), (503, True), (504, True), (500, True), (429, True), (401, False), (404, False)],
)
def test_statuses_that_pass_are_waited_for(status: int, is_away: bool, serve: Serve) -> None:
    address = serve(partial(Tracking, status=status, body="{}"))
    try:
        answer = ask(address)
        answer.raise_for_status()
    except (MlflowException, requests.RequestException) as err:
        away = away_of(err, address)
    assert (away is not None) == is_away
    if away:
        assert away.server == f"the tracking server at {address}"
        assert str(status) in away.reason


@pytest.mark.parametrize("reply", [b"", b"220 mail"])
def test_a_server_that_breaks_off_is_away(reply: bytes, serve: Serve) -> None:
    address = serve(partial(NotHttp, reply=reply))
    with pytest.raises(MlflowException) as caught:
        ask(address)
    assert away_of(caught.value, address) is not None


def test_the_server_that_is_away_is_the_one_that_was_asked() -> None:
    login, other = "http://me:s3cret@host:5000", f"http://127.0.0.1:{free_port()}"
    with pytest.raises(MlflowException) as caught:
        ask(other)
    away = away_of(caught.value, login)
    assert away is not None
    assert away.server == f"the artifact store at {other}"
    away = away_of(requests.ConnectionError("Connection aborted"), login)
    assert away is not None
    assert away.server == "the tracking server at http://me:***@host:5000"
    away = away_of(requests.ConnectionError("Connection aborted"), "sqlite:///mlflow.db")
    assert away is not None
    assert away.server == "the artifact store"


def test_a_database_that_refuses_connections_is_away() -> None:
    uri = f"postgresql://me:s3cret@127.0.0.1:{free_port()}/db"
    with pytest.raises(OperationalError) as caught:
        create_engine(uri).connect()
    wrapped = MlflowException(caught.value, TEMPORARILY_UNAVAILABLE)
    wrapped.__cause__ = caught.value
    away = away_of(wrapped, uri)
    assert away is not None
    assert "me:***@127.0.0.1" in away.server
    assert "s3cret" not in away.reason


@pytest.mark.parametrize(
    ("said", "is_away"),
    [
        ("server closed the connection unexpectedly", True),
        ("terminating connection due to administrator command", True),
        ("connection failed: FATAL: the database system is starting up", True),
        ("connection failed: FATAL: password authentication failed for user", False),
        ('connection failed: FATAL: database "x" does not exist', False),
        ("could not extend file: No space left on device", False),
    ],
)
def test_words_of_databases(said: str, is_away: bool) -> None:
    fault = OperationalError("SELECT 1", {}, Exception(said))
    assert (away_of(fault, "postgresql://host/db") is not None) == is_away


def test_a_database_in_a_file_is_never_away(tmp_path: object) -> None:
    with (
        create_engine("sqlite://").connect() as connection,
        pytest.raises(OperationalError) as caught,
    ):
        connection.execute(text("SELECT * FROM connections"))
    assert isinstance(caught.value.orig, sqlite3.OperationalError)
    assert away_of(caught.value, "sqlite:///mlflow.db") is None
