"""Tracking servers as MLflow knows them: logins, certificates, proxies, faults told apart."""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread

import pytest

from pipeline.cli import main
from pipeline.errors import TrackingError
from pipeline.tracking import faults
from pipeline.tracking.address import usable_address
from tests.conftest import PointAt
from tests.postgres import free_port
from tests.served import Tracking, basic, certificate

Serve = Callable[..., str]
SECRET = "s3cret-w@rd"


def with_login(address: str, login: str) -> str:
    return address.replace("://", f"://{login}@")


def tls(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


@contextmanager
def answering(reply: bytes) -> Iterator[int]:
    """A port of something that is no web server; says `reply` to the first who come."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(2):
            try:
                caller, _address = listener.accept()
            except OSError:
                return
            with closing(caller):
                caller.recv(4096)
                caller.sendall(reply)

    thread = Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


# What works


@pytest.mark.parametrize("around", ["{}", "  {} ", "{}/", "{}\n"])
def test_an_address_is_taken_with_what_stands_around_it(
    around: str, serve: Serve, point_at: PointAt
) -> None:
    address = serve(Tracking)
    point_at(around.format(address))
    assert usable_address().rstrip("/") == address == os.environ["MLFLOW_TRACKING_URI"].rstrip("/")


def test_a_path_before_mlflows_own_belongs_to_the_address(serve: Serve, point_at: PointAt) -> None:
    seen: list[str] = []
    address = serve(partial(Tracking, prefix="/team/mlflow", seen=seen))
    point_at(f"{address}/team/mlflow/")
    usable_address()
    assert seen == [f"/team/mlflow{faults.QUESTION}"]


def test_a_login_in_the_address_goes_where_mlflow_keeps_logins(
    serve: Serve, point_at: PointAt
) -> None:
    address = serve(partial(Tracking, login=basic("alice", SECRET)))
    point_at(with_login(address, "alice:s3cret-w%40rd") + "/")
    assert usable_address() == f"{address}/" == os.environ["MLFLOW_TRACKING_URI"]
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "alice"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET
    usable_address()  # and again, in a process that this one starts


def test_a_login_with_an_empty_password_is_sent_and_not_shown(
    serve: Serve, point_at: PointAt, capfd: pytest.CaptureFixture[str]
) -> None:
    point_at(with_login(serve(partial(Tracking, login=basic("t0ken", ""))), "t0ken:"))
    usable_address()
    point_at(with_login(serve(partial(Tracking, login=basic("other", ""))), "t0ken:"))
    assert main(["gate", "--run_id", "x"]) == 2
    said = capfd.readouterr()
    assert "http://***@127.0.0.1" in said.err
    assert "t0ken" not in said.err + said.out


def test_a_name_in_the_address_belongs_to_a_password_in_mlflows_variable(
    serve: Serve, point_at: PointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = serve(partial(Tracking, login=basic("alice", SECRET)))
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    point_at(with_login(address, "alice"))
    assert usable_address() == address


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({"USERNAME": "alice", "PASSWORD": SECRET}, basic("alice", SECRET)),
        ({"TOKEN": SECRET}, f"Bearer {SECRET}"),
    ],
)
def test_logins_in_mlflows_variables_are_sent(
    variables: dict[str, str],
    header: str,
    serve: Serve,
    point_at: PointAt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point_at(serve(partial(Tracking, login=header)))
    with pytest.raises(TrackingError, match=r"401, it wants a login.*MLFLOW_TRACKING_USERNAME"):
        usable_address()
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    usable_address()


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"])
def test_a_certificate_is_trusted_once_it_is_named(
    variable: str,
    serve: Serve,
    point_at: PointAt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pem = certificate(tmp_path)
    point_at(serve(Tracking, tls(pem)))
    with pytest.raises(TrackingError, match=r"not trusted: self-signed .*SERVER_CERT_PATH"):
        usable_address()
    monkeypatch.setenv(variable, str(pem))
    usable_address()
    monkeypatch.setenv(variable, str(tmp_path / "none.pem"))
    with pytest.raises(TrackingError, match=r"none\.pem.*: name a certificate's file"):
        usable_address()


def test_any_certificate_is_trusted_on_demand(
    serve: Serve, point_at: PointAt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path, "other.example")
    point_at(serve(Tracking, tls(pem)))
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(pem))
    with pytest.raises(TrackingError, match=r"not trusted: IP address mismatch"):
        usable_address()
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    with pytest.raises(TrackingError, match="only one of these"):
        usable_address()
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    with pytest.warns(match="Unverified HTTPS request"):
        usable_address()


def test_a_certificate_of_ours_is_sent_where_the_server_wants_one(
    serve: Serve, point_at: PointAt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path)
    context = tls(pem)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(pem)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # 1.3 tells the client after the handshake
    point_at(serve(Tracking, context))
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(pem))
    with pytest.raises(TrackingError, match=r"wants a certificate of ours.*CLIENT_CERT_PATH"):
        usable_address()
    monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(pem))
    usable_address()


def test_a_proxy_is_asked_but_for_hosts_that_no_proxy_names(
    serve: Serve, point_at: PointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = serve(Tracking)
    monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@127.0.0.1:{free_port()}")
    point_at(address)
    usable_address()  # `serve` put its host into no_proxy
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(TrackingError, match=r"proxy does not let us.*no_proxy") as caught:
        usable_address()
    assert SECRET not in str(caught.value)


# What does not, each called what it is


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://127.0.0.1:abc", r"no address: .*abc.* is not a valid host or port"),
        ("http://127.0.0.1:99999", "no address"),
        ("http://my host:5000", "no address: .*invalid character"),
        ("http://[::1", "no address"),
        ("http:///mlflow", "no address"),
        ("http://", "no machine of that name"),
        ("http://nobody.invalid:5000", "no tracking server answers .*no machine of that name"),
        ("http://bücher..example", "no address"),
        ("http://me:s3cret-w@rd/x@127.0.0.1", "it holds a /, .* as it is: write %2F"),
        ("http://me:s3cret-w/rd@127.0.0.1", "it holds a /, .* as it is: write %2F"),
        ("http://me:s3cret-w@127.0.0.1:abc", "no address"),
        ("http:/me:s3cret-w@127.0.0.1", "no address: write it like http://host:5000"),
        ("me:s3cret-w@127.0.0.1", "no address: write it like"),
        ("http://127.0.0.1:5000/?x=1", r"has a \? or #: leave out"),
        ("http://127.0.0.1:5000/#frag", r"has a \? or #: leave out"),
        ("foo://me:s3cret-w@host", "unsupported URI"),
        ("postgresql://me:s3cret-w@rd@host/db", "its login holds an @ as it is: write %40"),
        ("mysql://me:s3cret-w@host/db", "driver is not installed"),
    ],
)
def test_an_address_that_is_none_is_one_line_without_its_password(
    address: str,
    why: str,
    point_at: PointAt,
    store: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    point_at(address)
    capfd.readouterr()
    with pytest.raises(TrackingError, match=why):
        faults_of_connecting()
    assert main(["gate", "--run_id", "x"]) == 2
    said = capfd.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert "127.0.0.1" in line or "127.0.0.1" not in address
    assert "s3cret" not in said.err + said.out


def faults_of_connecting() -> None:
    from pipeline.tracking import Tracking as Store

    Store.connect()


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (401, "You are not authenticated.", r"401, it wants a login, or .*: You are not auth"),
        (403, '{"message": "no right"}', r"403, it forbids this: no right\): ask the keeper"),
        (404, "<html>", r"404, what answers there is no MLflow server\): check host, port and"),
        (407, "", r"407, the proxy wants a login\): check http_proxy"),
        (429, "", r"429, it has too many requests\): wait"),
        (500, "", r"500, it is in trouble\): see the log"),
        (503, "<html>", r"503, it is in trouble\): see the log"),
        (200, "<html>", r"200, what answers there is no MLflow server\): check host, port and"),
        (200, "[]", r"200, what answers there is no MLflow server: \[\]\): check host"),
    ],
)
def test_answers_are_told_apart_and_none_speaks_of_a_disk(
    status: int, body: str, why: str, serve: Serve, point_at: PointAt
) -> None:
    address = serve(partial(Tracking, status=status, body=body))
    point_at(with_login(address, "me:s3cret"))
    with pytest.raises(TrackingError, match=why) as caught:
        usable_address()
    assert str(caught.value).startswith(f"MLFLOW_TRACKING_URI={address} (")
    assert "disk" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_port_that_nothing_listens_on(
    point_at: PointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    point_at(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(
        TrackingError, match=r"no tracking server answers at MLFLOW_.*Connection r"
    ):
        usable_address()


def test_a_server_that_says_nothing_is_not_waited_for(
    point_at: PointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(faults, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(TrackingError, match="takes too long to answer"):
            usable_address()
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    ("scheme", "reply", "why"),
    [
        ("http", b"220 mail.example ready\r\n", r"answers as no server does: .*220 mail"),
        ("http", b"", r"answers as no server does: .*closed connection"),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS.: write http://"),
    ],
)
def test_something_else_that_answers(
    scheme: str, reply: bytes, why: str, point_at: PointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with answering(reply) as port:
        point_at(f"{scheme}://127.0.0.1:{port}")
        with pytest.raises(TrackingError, match=why):
            usable_address()


def test_a_server_that_answers_byte_by_byte_is_not_waited_for(
    point_at: PointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(faults, "CONNECT_S", 0.3)
    monkeypatch.setattr(faults, "ANSWER_S", 0.3)

    def drip(caller: socket.socket) -> None:
        with suppress(OSError), caller:
            caller.sendall(b"HTTP/1.1 200 OK\r\n\r\n{")
            for _ in range(40):
                caller.sendall(b" ")
                time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=lambda: drip(listener.accept()[0]))
        thread.start()
        point_at(f"http://127.0.0.1:{listener.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(TrackingError, match="takes too long to answer"):
            usable_address()
        assert time.monotonic() - begun < 3
        thread.join()


def test_a_server_that_answers_with_nothing_is_none_of_mlflow(
    serve: Serve, point_at: PointAt
) -> None:
    point_at(serve(partial(Tracking, status=200, body="{}")))
    with pytest.raises(TrackingError, match="is no MLflow server: check host"):
        faults_of_connecting()


@pytest.mark.parametrize("body", ["bad Bearer s3cret-w", '{"message": "Basic czNjcmV0LXc= bad"}'])
def test_an_answer_that_repeats_the_login_is_told_without_it(
    body: str, serve: Serve, point_at: PointAt
) -> None:
    point_at(serve(partial(Tracking, status=401, body=body)))
    with pytest.raises(TrackingError, match=r"(Bearer|Basic) \*\*\*") as caught:
        usable_address()
    assert "s3cret" not in str(caught.value)
    assert "czNj" not in str(caught.value)


@pytest.mark.parametrize("token", ["s3cret-w\n", " s3cret\nw"])
def test_a_token_that_cannot_be_sent_is_not_shown(
    token: str, serve: Serve, point_at: PointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = serve(partial(Tracking, status=200, body="{}"))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    point_at(address)
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI") as caught:
        usable_address()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("MLFLOW_TRACKING_INSECURE_TLS", "maybe"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "abc")],
)
def test_a_variable_that_mlflow_cannot_read_is_named(
    name: str, value: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TrackingError, match=f"{value}.*: correct {name}"):
        usable_address()
