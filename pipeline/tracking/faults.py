"""MLflow's exceptions, and those of its transport, database and disk, as one of ours, told apart.

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
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Thread
from typing import Any

from pipeline.errors import TrackingError, first_line
from pipeline.system.addresses import hidden, is_server, without_password
from pipeline.system.files import storage_faults

QUESTION = "/api/2.0/mlflow/experiments/search?max_results=1"
CONNECT_S, ANSWER_S = 5.0, 30.0
"""How long a server may take to be reached, and to answer that question."""
_AGAIN = "then run the same command again; finished stages are reused"
_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_ADDRESS = "check host, port and path (a prefix such as /mlflow belongs to the address)"
_START = "start one with `mlflow server`, or unset MLFLOW_TRACKING_URI to record in ./mlflow.db"
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
"""MLflow's names of what a server refuses whoever asks, whatever is asked for."""
_DATABASES = ("sqlite", "postgres", "mysql", "mssql")
_STORES = "a database (sqlite:///mlflow.db, postgresql://host/db) or a server (http://host:5000)"
_OF_CONTENT = {
    *("RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "NOT_FOUND", "ALREADY_EXISTS"),
    *("INVALID_PARAMETER_VALUE", "INVALID_STATE", "BAD_REQUEST"),
}
"""And of what it refuses to do with these runs, names or values."""


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

    With its logins, certificates and proxies, but once, and without waiting for minutes.

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

    shown = f"MLFLOW_TRACKING_URI={without_password(uri)}"
    try:
        answer = _in_time(ask)
    except ImportError as err:
        fault = Fault(first_line(err), f"pip install {str(err.name).replace('_', '-')}")
    except UserWarning as err:
        fault = Fault(first_line(err), "correct MLFLOW_TRACKING_AUTH, or install its plugin")
    except (MlflowException, requests.RequestException) as err:
        fault = fault_of_transport(err) or Fault(
            " ".join(str(err).split()), "check MLflow's variables"
        )
    else:
        if answer.status_code == 200 and _is_json_object(answer.text):
            return
        fault = fault_of_status(answer.status_code, answer.text)
    where = shown if fault.answered else f"no tracking server answers at {shown}"
    raise TrackingError(f"{where} ({_hidden(fault.reason, uri)}): {fault.advice}")


def _in_time(ask: Callable[[], Any]) -> Any:  # noqa: ANN401 - what was asked for
    """What `ask` gives; a server that answers byte by byte has no more time than any other."""
    import requests

    answers: Queue[tuple[Any, Exception | None]] = Queue()

    def tell() -> None:
        try:
            answers.put((ask(), None))
        except Exception as err:  # noqa: BLE001 - raised below
            answers.put((None, err))

    Thread(target=tell, daemon=True).start()
    try:
        answer, err = answers.get(timeout=CONNECT_S + ANSWER_S)
    except Empty:
        raise requests.ReadTimeout from None
    if err:
        raise err
    return answer


def fault_of_transport(err: BaseException) -> Fault | None:
    """What kept a request from being answered; None for any other fault."""
    import requests.exceptions as r
    import urllib3.exceptions as u

    causes = list(_causes(err))
    if socks := next((c for c in causes if "dependencies for SOCKS" in str(c)), None):
        return Fault(f"the proxy is a SOCKS proxy: {first_line(socks)}", "pip install pysocks")
    told: list[tuple[tuple[type[BaseException], ...], Callable[[BaseException], Fault]]] = [
        (
            (r.InvalidURL, r.InvalidSchema, r.MissingSchema, u.LocationParseError),
            lambda bad: Fault(f"no address: {first_line(bad)}", "write it like http://host:5000"),
        ),
        ((r.ProxyError, u.ProxyError), lambda _: _fault_of_proxy(causes[-1])),
        ((ssl.SSLError, r.SSLError), _fault_of_tls),
        (
            (u.NameResolutionError,),
            lambda _: Fault("no machine of that name is known", _ADDRESS, answered=False),
        ),
        (
            (u.NewConnectionError,),
            lambda _: Fault(_words(causes[-1]), _START, answered=False),
        ),
        (
            (u.ConnectTimeoutError, r.ConnectTimeout),
            lambda _: Fault(f"not reached within {CONNECT_S:g} s", _START, answered=False),
        ),
        (
            (u.ReadTimeoutError, r.ReadTimeout),
            lambda _: Fault("it takes too long to answer", "see whether the server is at work"),
        ),
        ((r.HTTPError,), _fault_of_http),
        (
            (u.ProtocolError, r.ConnectionError, r.TooManyRedirects),
            lambda _: Fault(f"it answers as no server does: {_words(causes[-1])}", _ADDRESS),
        ),
    ]
    for kinds, fault in told:
        # the innermost says most
        if cause := next((c for c in reversed(causes) if isinstance(c, kinds)), None):
            return fault(cause)
    if missing := next((c for c in reversed(causes) if _INVALID_PATH in str(c)), None):
        return Fault(first_line(missing), "name a certificate's file that is there")
    return None


def _fault_of_proxy(cause: BaseException) -> Fault:
    return Fault(
        f"the proxy does not let us through: {_words(cause)}",
        "check http_proxy and https_proxy, or name the host in no_proxy",
    )


def _fault_of_http(err: BaseException) -> Fault:
    answer = getattr(err, "response", None)
    if answer is None:
        return Fault(first_line(err), _ADDRESS)
    return fault_of_status(answer.status_code, answer.text)


def _words(cause: BaseException) -> str:
    """What the system says, without its number."""
    return str(getattr(cause, "strerror", None) or first_line(cause))


def _fault_of_tls(err: BaseException) -> Fault:
    if isinstance(err, ssl.SSLCertVerificationError):
        return Fault(
            f"its certificate is not trusted: {err.verify_message.rstrip('.')}",
            "name the file of whoever signed it in MLFLOW_TRACKING_SERVER_CERT_PATH or "
            "REQUESTS_CA_BUNDLE; MLFLOW_TRACKING_INSECURE_TLS=true trusts any certificate",
        )
    said = first_line(err)
    if "CERTIFICATE_REQUIRED" in said or "ALERT_HANDSHAKE_FAILURE" in said:
        advice = "name your certificate's file in MLFLOW_TRACKING_CLIENT_CERT_PATH"
        return Fault(f"it wants a certificate of ours: {said}", advice)
    if "WRONG_VERSION_NUMBER" in said or "record layer" in said:
        return Fault("it does not speak TLS", "write http:// instead of https://")
    return Fault(f"TLS failed: {said}", "check the port and the certificates")


def fault_of_status(status: int, said: str) -> Fault:
    """What an HTTP status means; `said`: what came with it."""
    told = {
        401: ("it wants a login, or does not accept this one", _LOGIN),
        403: ("it forbids this", f"ask whoever keeps it for the right, or log in: {_LOGIN}"),
        407: ("the proxy wants a login", "check http_proxy and https_proxy"),
        429: ("it has too many requests", "wait a while"),
    }
    in_trouble = ("it is in trouble", "see the log of the server, and of any proxy before it")
    other = ("what answers there is no MLflow server", _ADDRESS)
    reason, advice = told.get(status, in_trouble if status >= 500 else other)
    said = _message(said)
    return Fault(f"{status}, {reason}{': ' if said else ''}{said}", advice)


def _fault_of_store(err: BaseException, uri: str) -> Fault:
    """What a server or a database says of a request that it has understood."""
    code, reason = str(getattr(err, "error_code", "")), first_line(err)
    is_database = uri.startswith(_DATABASES)
    if is_database and "database is locked" in reason:
        return Fault(reason, "another program holds the file: wait for that program, or end it")
    # MLflow says the same of a database that is away as of a server that answers 503
    status = None if is_database and code == "TEMPORARILY_UNAVAILABLE" else _STATUS_OF.get(code)
    if status:
        return fault_of_status(status, reason)
    if not is_database and not is_server(uri):
        return Fault(reason, f"set MLFLOW_TRACKING_URI to {_STORES}")
    return Fault(
        reason, "change what it names" if code in _OF_CONTENT else "check the server and the disk"
    )


def _causes(err: BaseException | None) -> Iterator[BaseException]:
    """A fault, and those that it came from; urllib3 keeps some in its arguments."""
    while err is not None:
        yield err
        inside = (part for part in err.args if isinstance(part, BaseException))
        err = err.__cause__ or err.__context__ or next(inside, None)


def _message(body: str) -> str:
    """What an answer says, on one line: of JSON its message, nothing of HTML."""
    try:
        found = json.loads(body)
        body = str(found.get("message", found)) if isinstance(found, dict) else body
    except ValueError:
        pass
    lines = body.strip().splitlines()
    return "" if not lines or lines[0].lstrip().startswith("<") else lines[0][:200]


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _hidden(text: str, uri: str = "") -> str:
    text = hidden(text, uri, os.environ.get("MLFLOW_TRACKING_URI", "").strip())
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        if secret := os.environ.get(name, "").strip():
            text = text.replace(secret, "***")
    return re.sub(r"\b(Bearer|Basic)\s+[^\s'\"]+", r"\1 ***", text, flags=re.IGNORECASE)
