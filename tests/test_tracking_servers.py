"""Tracking servers as MLflow knows them: logins, certificates, proxies, faults told apart."""

from __future__ import annotations

import os
import re
import ssl
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.errors import TrackingError
from pipeline.tracking import Tracking as Store
from pipeline.tracking.connection import faults
from pipeline.tracking.connection.address import usable_address
from tests.conftest import PointAt
from tests.postgres import free_port
from tests.served import NotHttp, Tracking, basic, certificate

Serve = Callable[..., str]
SECRET = "s3cret-w@rd"


def with_login(address: str, login: str) -> str:
    return address.replace("://", f"://{login}@")


def tls(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


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
    out, err = capfd.readouterr()
    assert "http://***@127.0.0.1" in err
    assert "t0ken" not in err + out


@pytest.mark.parametrize(
    ("name", "variables", "header"),
    [
        ("alice", {"PASSWORD": SECRET}, basic("alice", SECRET)),
        ("", {"USERNAME": "alice", "PASSWORD": SECRET}, basic("alice", SECRET)),
        ("", {"TOKEN": SECRET}, f"Bearer {SECRET}"),
    ],
)
def test_logins_in_mlflows_variables_are_sent(
    name: str,
    variables: dict[str, str],
    header: str,
    serve: Serve,
    point_at: PointAt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = serve(partial(Tracking, login=header))
    point_at(with_login(address, name) if name else address)
    with pytest.raises(TrackingError, match=r"401, it wants a login.*MLFLOW_TRACKING_USERNAME"):
        usable_address()
    for key, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{key}", value)
    assert usable_address() == address


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
    pem = certificate(tmp_path, "DNS:other.example")
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
    serve: Serve,
    point_at: PointAt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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


def test_a_proxy_is_asked_for_hosts_that_no_proxy_does_not_name(
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
        ("http://my host:5000", "no address: .*invalid character"),
        ("http://[::1", "no address"),
        ("http:///mlflow", "no address"),
        ("http://bücher..example", "no address"),
        ("http://", "no machine of that name"),
        ("http://nobody.invalid:5000", "no tracking server answers .*no machine of that name"),
        ("http://127.0.0.1:{port}", "no tracking server answers at MLFLOW_.*Connection r"),
        ("http://me:s3cret-w@rd/x@127.0.0.1", "it holds a /, .* as it is: write %2F"),
        ("http://me:s3cret-w@127.0.0.1:abc", "no address"),
        ("http:/me:s3cret-w@127.0.0.1", "no address: write it like http://host:5000"),
        ("me:s3cret-w@127.0.0.1", "no address: write it like"),
        ("http://127.0.0.1:5000/?x=1", r"has a \? or #: leave out"),
        ("foo://me:s3cret-w@host", "unsupported URI"),
        ("postgresql://me:s3cret-w@rd@host/db", "its login holds an @ as it is: write %40"),
        ("mysql://me:s3cret-w@host/db", "driver is not installed"),
        ("sqlite://", "is forgotten when this command ends: name a file"),
        ("sqlite:///:memory:", "is forgotten when this command ends: name a file"),
        ("uc", r"set MLFLOW_TRACKING_URI to a database \(sqlite:///mlflow.db"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line_without_its_password(
    address: str,
    why: str,
    point_at: PointAt,
    store: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    point_at(address.format(port=free_port()))
    capfd.readouterr()
    assert main(["gate", "--run_id", "x"]) == 2
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert re.search(f"^error: .*{why}", line)
    assert "127.0.0.1" in line or "127.0.0.1" not in address
    assert "s3cret" not in err + out


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (401, "You are not authenticated.", r"401, it wants a login, or .*: You are not auth"),
        (403, '{"message": "no right"}', r"403, it forbids this: no right\): ask the keeper"),
        (
            404,
            "<html>",
            r"404, what answers there is not an MLflow server\): check host, port and",
        ),
        (407, "", r"407, the proxy wants a login\): check http_proxy"),
        (429, "", r"429, it has too many requests\): wait"),
        (500, "", r"500, it is in trouble\): see the log"),
        (503, "<html>", r"503, it is in trouble\): see the log"),
        (
            200,
            "<html>",
            r"200, what answers there is not an MLflow server\): check host, port and",
        ),
        (200, "[]", r"200, what answers there is not an MLflow server: \[\]\): check host"),
    ],
)
def test_answers_are_told_apart(
    status: int, body: str, why: str, serve: Serve, point_at: PointAt
) -> None:
    address = serve(partial(Tracking, status=status, body=body))
    point_at(with_login(address, "me:s3cret"))
    with pytest.raises(TrackingError, match=why) as caught:
        usable_address()
    assert str(caught.value).startswith(f"MLFLOW_TRACKING_URI={address} (")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "reply", "why"),
    [
        ("http", b"220 mail.example ready\r\n", r"answers as no server does: .*220 mail"),
        ("http", b"", r"answers as no server does: .*closed connection"),
        ("https", b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS.: write http://"),
    ],
)
def test_something_else_that_answers(
    scheme: str, reply: bytes, why: str, serve: Serve, point_at: PointAt
) -> None:
    point_at(serve(partial(NotHttp, reply=reply)).replace("http", scheme))
    with pytest.raises(TrackingError, match=why):
        usable_address()


@pytest.mark.parametrize("pause_s", [1, 0.05], ids=["silent", "byte by byte"])
def test_a_server_that_is_silent_or_answers_byte_by_byte_is_not_waited_for(
    pause_s: float, serve: Serve, point_at: PointAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "CONNECT_S", 0.3)
    monkeypatch.setattr(faults, "ANSWER_S", 0.3)
    point_at(
        serve(partial(NotHttp, reply=b"HTTP/1.1 200 OK\r\n\r\n{" + b" " * 40, pause_s=pause_s))
    )
    begun = time.monotonic()
    with pytest.raises(TrackingError, match="takes too long to answer"):
        usable_address()
    assert time.monotonic() - begun < 2


def test_a_server_that_answers_with_nothing_is_none_of_mlflow(
    serve: Serve, point_at: PointAt
) -> None:
    point_at(serve(partial(Tracking, status=200, body="{}")))
    with pytest.raises(TrackingError, match="is not an MLflow server: check host"):
        Store.connect()


@pytest.mark.parametrize(
    ("body", "token", "why"),
    [
        ("bad Bearer s3cret-w", "", r"Bearer \*\*\*"),
        ('{"message": "Basic czNjcmV0LXc= bad"}', "", r"Basic \*\*\*"),
        ("{}", "s3cret-w\n", "MLFLOW_TRACKING_URI"),
        ("{}", " s3cret\nw", "MLFLOW_TRACKING_URI"),
    ],
)
def test_no_login_is_shown_that_an_answer_repeats_or_that_cannot_be_sent(
    body: str,
    token: str,
    why: str,
    serve: Serve,
    point_at: PointAt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point_at(serve(partial(Tracking, status=401, body=body)))
    if token:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    with pytest.raises(TrackingError, match=why) as caught:
        usable_address()
    assert "s3cret" not in str(caught.value)
    assert "czNj" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "-1", "Got -1.*check MLflow's variables"),
        ("MLFLOW_TRACKING_AUTH", "nope", "plugin for nope.*correct MLFLOW_TRACKING_AUTH"),
        ("MLFLOW_TRACKING_AWS_SIGV4", "true", "pip install requests-auth-aws-sigv4"),
        pytest.param(
            *("http_proxy", "socks5://127.0.0.1:1", "SOCKS proxy.*pip install pysocks"),
            marks=pytest.mark.skipif(
                find_spec("socks") is not None, reason="pysocks is installed"
            ),
        ),
    ],
)
def test_what_mlflow_cannot_ask_a_server_with_is_named(
    name: str,
    value: str,
    why: str,
    serve: Serve,
    point_at: PointAt,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point_at(serve(Tracking))
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "requests_auth_aws_sigv4", None)  # as not installed
    with pytest.raises(TrackingError, match=why):
        usable_address()


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
