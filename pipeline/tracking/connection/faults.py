"""Exceptions of MLflow, and of its transport, database and disk, as one of ours, told apart.

In: what MLflow, requests, urllib3 or SQLAlchemy raised, or what a server answered. Out: one line
that says what is wrong and what to do about that, without passwords.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Thread
from typing import TypeVar

from pipeline.errors import TrackingError, first_line
from pipeline.system.disk.databases import advice_on
from pipeline.system.disk.files import storage_faults
from pipeline.system.network.addresses import hidden, is_server, without_password
from pipeline.system.progress import doing

_Answer = TypeVar("_Answer")
QUESTION = "/api/2.0/mlflow/experiments/search?max_results=1"
CONNECT_S, ANSWER_S = 5.0, 30.0
"""How long a server may take to be reached, and to answer that question."""
_AGAIN = "then run the same command again; finished stages are reused"
_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_ADDRESS = "check host, port and path (a prefix such as /mlflow belongs to the address)"
_START = "start one with `mlflow server`, or unset MLFLOW_TRACKING_URI to record in ./mlflow.db"
_PROXY = "check http_proxy and https_proxy, or name the host in no_proxy"
_STATUSES = {
    401: ("it wants a login, or does not accept this one", _LOGIN),
    403: ("it forbids this", f"ask the keeper of the server for the right, or log in: {_LOGIN}"),
    407: ("the proxy wants a login", "check http_proxy and https_proxy"),
    429: ("it has too many requests", "wait a while"),
}
_INVALID_PATH = ", invalid path: "
"""How requests says that there is no such file of a certificate."""
_STATUS_OF = {
    "UNAUTHENTICATED": 401,
    "CUSTOMER_UNAUTHORIZED": 401,
    "PERMISSION_DENIED": 403,
    "ENDPOINT_NOT_FOUND": 404,
    "REQUEST_LIMIT_EXCEEDED": 429,
    "TEMPORARILY_UNAVAILABLE": 503,
}
"""MLflow's names of what a server refuses, whatever the request is about."""
_DATABASES = ("sqlite", "postgres", "mysql", "mssql")
_STORES = "a database (sqlite:///mlflow.db, postgresql://host/db) or a server (http://host:5000)"
_OF_CONTENT = {
    *("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "NOT_FOUND", "ALREADY_EXISTS"),
    *("INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST"),
}
"""MLflow's names of what a server refuses to do with these runs, names or values."""


@dataclass(frozen=True)
class Fault:
    """What is wrong, and what to do about it. `answered`: something answers at the address."""

    reason: str
    advice: str
    answered: bool = True


@contextmanager
def translated(doing: str, uri: str) -> Iterator[None]:
    """Raise TrackingError, naming what was being done and where, for any fault of MLflow.

    A full or read-only disk under its artifacts is a StorageError.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with storage_faults(f"MLflow's files ({doing})", uri):
            yield
    except (MlflowException, requests.RequestException, SQLAlchemyError) as err:
        fault = fault_of_transport(err) or _fault_of_store(err, uri)
        what = f"MLflow could not {doing} at {uri} ({_hidden(fault.reason)})"
        advice = fault.advice if fault.answered else "see whether the server still runs"
        raise TrackingError(f"{what}: {advice}, {_AGAIN}") from None


def contact(uri: str) -> None:
    """See whether an MLflow server answers there, asked as MLflow's own client asks.

    With the client's logins, certificates and proxies, but once, and without waiting for minutes.

    Raises:
        TrackingError: none does; says which of the things that can be wrong it is.
    """
    import requests
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import _validate_max_retries, http_request

    def ask() -> requests.Response:
        _validate_max_retries(MLFLOW_HTTP_REQUEST_MAX_RETRIES.get())  # type: ignore[no-untyped-call]
        with warnings.catch_warnings():  # MLflow would go on without a login
            warnings.filterwarnings("error", "Could not find any registered plugin")
            return http_request(  # type: ignore[no-untyped-call,no-any-return]
                get_default_host_creds(uri),  # type: ignore[no-untyped-call]
                QUESTION,
                "GET",
                max_retries=0,
                timeout=(CONNECT_S, ANSWER_S),
                raise_on_status=False,
            )

    try:
        with doing(f"asking the server at {without_password(uri)}"):
            answer = _in_time(ask)
    except ImportError as err:
        fault = Fault(first_line(err), f"pip install {str(err.name).replace('_', '-')}")
    except UserWarning as err:
        fault = Fault(first_line(err), "correct MLFLOW_TRACKING_AUTH, or install its plugin")
    except (MlflowException, requests.RequestException) as err:
        unknown = Fault(" ".join(str(err).split()), "check MLflow's variables")
        fault = fault_of_transport(err) or unknown
    else:
        if answer.status_code == 200 and isinstance(_read_json(answer.text), dict):
            return
        fault = fault_of_status(answer.status_code, answer.text)
    where = "" if fault.answered else "no tracking server answers at "
    shown = f"MLFLOW_TRACKING_URI={without_password(uri)} ({_hidden(fault.reason, uri)})"
    raise TrackingError(f"{where}{shown}: {fault.advice}")


def _in_time(ask: Callable[[], _Answer]) -> _Answer:
    """What `ask` gives; a server that answers byte by byte has no more time than any other."""
    import requests

    future: Future[_Answer] = Future()

    def tell() -> None:
        try:
            future.set_result(ask())
        except Exception as err:  # noqa: BLE001 - raised by `result`
            future.set_exception(err)

    Thread(target=tell, daemon=True).start()
    try:
        return future.result(CONNECT_S + ANSWER_S)
    except TimeoutError:
        raise requests.ReadTimeout from None


def fault_of_transport(err: BaseException) -> Fault | None:
    """What kept a request from being answered; None for any other fault."""
    import requests.exceptions as r
    import urllib3.exceptions as u

    causes = list(causes_of(err))  # the innermost, which says most, comes last
    if socks := next((c for c in causes if "dependencies for SOCKS" in str(c)), None):
        return Fault(f"the proxy is a SOCKS proxy: {first_line(socks)}", "pip install pysocks")

    def found(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in reversed(causes) if isinstance(cause, kinds)), None)

    if (tls := found(ssl.SSLError, r.SSLError)) and not found(r.ProxyError, u.ProxyError):
        return _fault_of_tls(tls)
    answer = getattr(found(r.HTTPError), "response", None)
    if answer is not None:
        return fault_of_status(answer.status_code, answer.text)
    system_says = str(getattr(causes[-1], "strerror", None) or first_line(causes[-1]))
    late, busy = f"not reached within {CONNECT_S:g} s", "see whether the server is at work"
    faults: list[tuple[Fault, tuple[type[BaseException], ...]]] = [
        (
            Fault("no address: {cause}", "write it like http://host:5000"),
            (r.InvalidURL, r.InvalidSchema, r.MissingSchema, u.LocationParseError),
        ),
        (Fault("the proxy does not let us through: {}", _PROXY), (r.ProxyError, u.ProxyError)),
        (Fault("no machine of that name is known", _ADDRESS, False), (u.NameResolutionError,)),
        (Fault("{}", _START, False), (u.NewConnectionError,)),
        (Fault(late, _START, False), (u.ConnectTimeoutError, r.ConnectTimeout)),
        (Fault("it takes too long to answer", busy), (u.ReadTimeoutError, r.ReadTimeout)),
        (Fault("{cause}", _ADDRESS), (r.HTTPError,)),
        (
            Fault("it answers as no server does: {}", _ADDRESS),
            (u.ProtocolError, r.ConnectionError, r.TooManyRedirects),
        ),
    ]
    for fault, kinds in faults:
        if cause := found(*kinds):
            return replace(fault, reason=fault.reason.format(system_says, cause=first_line(cause)))
    if missing := next((c for c in reversed(causes) if _INVALID_PATH in str(c)), None):
        return Fault(first_line(missing), "name a certificate's file that is there")
    return None


def _fault_of_tls(err: BaseException) -> Fault:
    if isinstance(err, ssl.SSLCertVerificationError):
        return Fault(
            f"its certificate is not trusted: {err.verify_message.rstrip('.')}",
            "name the signer's file in MLFLOW_TRACKING_SERVER_CERT_PATH or "
            "REQUESTS_CA_BUNDLE; MLFLOW_TRACKING_INSECURE_TLS=true trusts any certificate",
        )
    message = first_line(err)
    if "CERTIFICATE_REQUIRED" in message or "ALERT_HANDSHAKE_FAILURE" in message:
        advice = "name your certificate's file in MLFLOW_TRACKING_CLIENT_CERT_PATH"
        return Fault(f"it wants a certificate of ours: {message}", advice)
    if "WRONG_VERSION_NUMBER" in message or "record layer" in message:
        return Fault("it does not speak TLS", "write http:// instead of https://")
    return Fault(f"TLS failed: {message}", "check the port and the certificates, ours included")


def fault_of_status(status: int, body: str) -> Fault:
    """What an HTTP status means; `body`: what came with it."""
    in_trouble = ("it is in trouble", "see the log of the server, and of any proxy before it")
    other = ("what answers there is not an MLflow server", _ADDRESS)
    reason, advice = _STATUSES.get(status, in_trouble if status >= 500 else other)
    found = _read_json(body)
    text = str(found.get("message", found)) if isinstance(found, dict) else body.strip()
    # a page of HTML says nothing
    message = "" if text.startswith("<") else text.partition("\n")[0][:200]
    return Fault(f"{status}, {reason}{': ' if message else ''}{message}", advice)


def _fault_of_store(err: BaseException, uri: str) -> Fault:
    """What a server or a database says of a request that it has understood."""
    code, reason = str(getattr(err, "error_code", "")), first_line(err)
    is_database = uri.startswith(_DATABASES)
    if is_database and (advice := advice_on(reason)):
        return Fault(reason, advice)
    # MLflow says the same of a database that is away as of a server that answers 503
    status = None if is_database and code == "TEMPORARILY_UNAVAILABLE" else _STATUS_OF.get(code)
    if status:
        return fault_of_status(status, reason)
    if not is_database and not is_server(uri):
        return Fault(reason, f"set MLFLOW_TRACKING_URI to {_STORES}")
    return Fault(
        reason, "change what it names" if code in _OF_CONTENT else "check the server and the disk"
    )


def causes_of(err: BaseException | None) -> Iterator[BaseException]:
    """A fault, and those that it came from; urllib3 keeps some in its arguments."""
    while err is not None:
        yield err
        inside = (part for part in err.args if isinstance(part, BaseException))
        err = err.__cause__ or err.__context__ or next(inside, None)


def _read_json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _hidden(text: str, uri: str = "") -> str:
    text = hidden(text, uri, os.environ.get("MLFLOW_TRACKING_URI", "").strip())
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        if secret := os.environ.get(name, "").strip():
            text = text.replace(secret, "***")
    return re.sub(r"\b(Bearer|Basic)\s+[^\s'\"]+", r"\1 ***", text, flags=re.IGNORECASE)
