"""Whether a fault of MLflow means that a server is away, and which server.

In: what MLflow, requests, SQLAlchemy or a store of artifacts raised. Out: an `Away`, None where
asking again would change nothing. A server that is at its limits, or in front of another that is
away (429, 500, 502, 503, 504), is away, too; a full disk, a wrong login or a certificate is not.
"""

from __future__ import annotations

import re
import ssl
from urllib.parse import urlsplit

from pipeline.errors import first_line
from pipeline.system.network.addresses import hidden, is_server, without_password
from pipeline.tracking.connection.faults import causes_of, fault_of_transport
from pipeline.tracking.connection.patience import Away

_IN_TROUBLE = {408, 429, 500, 502, 503, 504}
_STATUS = re.compile(r"too many (\d{3}) error responses|\b(\d{3}) (?:Server|Client) Error")
_ASKED = re.compile(r"API request to (https?://[^/\s]+)")
_TRANSPORT = re.compile(
    r"Max retries exceeded|Connection refused|Connection aborted|Connection reset|timed out"
    r"|Could not connect to the endpoint"
)
"""What is left of a fault where MLflow keeps only its text: downloads, uploads to a bucket."""
_OF_BUCKETS = {
    *("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError"),
    *("ConnectionClosedError",),
}
_OF_DATABASES = re.compile(
    r"connect|server closed|terminating|starting up|shutting down|translate host name"
    r"|Lost connection|gone away",
    re.IGNORECASE,
)
"""Words of an operational error that is about the connection, not about what was asked."""
_REFUSED = re.compile("password|authentication|does not exist|No space left|permission denied")


def away_of(err: BaseException, uri: str) -> Away | None:
    """The server that is away, if a fault of MLflow means that; `uri`: MLflow's address."""
    found = away_database(err, f"the tracking database at {without_password(uri)}")
    if found or not (reason := _reason(err)):
        return found
    place = urlsplit(uri).netloc.rpartition("@")[2] if is_server(uri) else ""
    where = next((m for c in causes_of(err) if (m := _ASKED.search(str(c)))), None)
    asked = without_password(where[1]) if where else ""
    if is_server(uri) and (not asked or urlsplit(asked).netloc.rpartition("@")[2] == place):
        return Away(f"the tracking server at {without_password(uri)}", reason)
    return Away(f"the artifact store{' at ' if asked else ''}{asked}", reason)


def _reason(err: BaseException) -> str:
    """How a server shows that it is away, or that what it needs is; empty if it is not."""
    import requests.exceptions as r
    import urllib3.exceptions as u

    causes = list(causes_of(err))
    text = " ".join(str(cause) for cause in causes)
    if status := _STATUS.search(text):
        code = int(status[1] or status[2])
        return f"{code}, it is in trouble" if code in _IN_TROUBLE else ""
    tls = [c for c in causes if isinstance(c, ssl.SSLError | r.SSLError | u.SSLError)]
    if tls and not any(isinstance(cause, ssl.SSLEOFError) for cause in tls):
        return ""
    if any(isinstance(c, r.InvalidURL | r.InvalidSchema | r.MissingSchema) for c in causes):
        return ""
    transport = (
        *(r.ConnectionError, r.Timeout, r.ChunkedEncodingError, ConnectionError),
        *(u.NewConnectionError, u.TimeoutError, u.ProtocolError, u.MaxRetryError),
    )
    if any(isinstance(cause, transport) for cause in causes):
        fault = fault_of_transport(err)
        return hidden(fault.reason) if fault else first_line(causes[-1])
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if names & _OF_BUCKETS:
        return hidden(first_line(causes[-1]))
    from mlflow.exceptions import MlflowException

    said = _TRANSPORT.search(text) if isinstance(err, MlflowException) else None
    return said[0] if said else ""


def away_database(err: BaseException, name: str) -> Away | None:
    """The database server of that name, if a fault means that it is away; a file never is."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

    for cause in causes_of(err):
        if not isinstance(cause, DBAPIError) or "sqlite3." in str(cause):
            continue
        said = re.sub(r"^\([\w.]+\) ", "", first_line(cause))
        if cause.connection_invalidated:
            return Away(name, hidden(said))
        is_about_connection = isinstance(cause, OperationalError | InterfaceError)
        if is_about_connection and _OF_DATABASES.search(said) and not _REFUSED.search(said):
            return Away(name, hidden(said))
    return None
