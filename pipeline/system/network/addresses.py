"""Addresses of databases and servers: shown without their secrets, and the file that one means.

In: a URL as SQLAlchemy, MLflow and Optuna write them; `journal:///FILE` is a file of Optuna's
journal, written like SQLite's: three slashes before a relative path, four in all before `/data`.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote

_FILE = re.compile(r"(sqlite(?:\+\w+)?:///|journal:///)([^?]*)(.*)", re.DOTALL)
_IN_QUERY = re.compile(
    r"([?&;][^=&;]*(?:passw(?:or)?d|passphrase|pwd|token|secret|odbc_connect)[^=&;]*=)([^&;]*)",
    re.IGNORECASE,
)
_IN_TEXT = re.compile(r"[a-zA-Z][\w.+-]*:/+[^\s'\"<>]+")
_START = re.compile(r"[a-zA-Z][\w.+-]*(?::/+|//+)")
"""What an address begins with, slashes or a colon forgotten perhaps."""


def without_password(url: str) -> str:
    """The URL with `***` for its secrets: a password, a server's only login, words in the query.

    Whatever stands before the last @ of an address that is mistyped may be a password, and is
    hidden; so is a password that holds @, /, ? or # as they are.
    """
    if login := _login(url):
        url = f"{url[: login.start]}***{url[login.stop :]}"
    return _IN_QUERY.sub(r"\1***", url)


def hidden(text: str, *urls: str) -> str:
    """Text of another library without the secrets of these URLs, or of any that stand in it."""
    for url in urls:
        text = text.replace(url, without_password(url))
        login = _login(url)
        secrets = {url[login] if login else "", *(found[1] for found in _IN_QUERY.findall(url))}
        for secret in sorted(secrets | {unquote(s) for s in secrets}, key=len, reverse=True):
            text = text.replace(secret, "***") if secret not in ("", "***") else text
    return _IN_TEXT.sub(lambda found: without_password(found[0]), text)


def _login(url: str) -> slice | None:
    """Where the secret part of the login stands in a URL; None without any."""
    last = url.rfind("@")
    if last < 0 or _is_local(url):
        return None
    # an @ in a query's secret ends where that does
    ends = [m.end(2) for m in _IN_QUERY.finditer(url) if m.start(2) <= last < m.end(2)]
    stop = max([last, *ends])
    start = _START.match(url)
    begin = start.end() if start else 0
    user, colon, password = url[begin:last].partition(":")
    if not start or not start[0].endswith("://") or re.search("[/?#]", user):
        return slice(begin, stop)
    if is_server(url):
        named = colon and password and "@" not in user
        return slice(begin + (len(user) + 1 if named else 0), stop)
    return slice(begin + len(user) + 1, stop) if colon else None


def misread(url: str, like: str = "http://host:5000 or postgresql://host/db") -> str:
    """Why a URL cannot be read as it is meant, and what to write; empty if it can be."""
    start = _START.match(url)
    if _is_local(url):
        return ""
    if not start or not re.fullmatch(r"[^:/]+://", start[0]):
        return f"no address: write it like {like}"
    if re.search("[/?#].*@", url[start.end() :]):
        return "it holds a /, ?, # or @ as it is: write %2F, %3F, %23 or %40"
    return ""


def _is_local(url: str) -> bool:
    """Whether it is a file's or a folder's, in which an @ is a letter like any other."""
    return bool(_FILE.fullmatch(url)) or url.startswith(("/", "./", "../", "~", "file:"))


def is_server(url: str) -> bool:
    """Whether it is an MLflow server's address, not a database's."""
    return url.lower().startswith(("http://", "https://"))


def file_of(url: str) -> Path | None:
    """The file of a SQLite or journal URL; None for any other URL."""
    found = _FILE.fullmatch(url)
    if not found or found[2] in ("", ":memory:"):
        return None
    return Path(unquote(found[2]))  # as SQLAlchemy does


def with_file(url: str, path: Path) -> str:
    """The URL of another file; of its path as little is written in another way as can be."""
    escaped = re.sub(r"%(?=[0-9a-fA-F]{2})", "%25", str(path)).replace("?", "%3F")
    return _FILE.sub(lambda found: f"{found[1]}{escaped}{found[3]}", url)


def is_same_database(one: str, other: str) -> bool:
    """Whether two URLs name one database, by whatever path."""
    first, second = file_of(one), file_of(other)
    if first and second:
        return first.resolve() == second.resolve()
    return without_password(one) == without_password(other)


def beside(url: str, other: str) -> str:
    """`url`, a relative file moved to the folder of `other`'s if that is an absolute one.

    So the two databases lie side by side wherever a launcher has set the working directory.
    """
    path, anchor = file_of(url), file_of(other)
    if path is None or path.is_absolute() or anchor is None or not anchor.is_absolute():
        return url
    return with_file(url, anchor.parent / path)


def why_unwritable(path: Path, *, may_make_folders: bool = False) -> str:
    """Why a file cannot be made there, or written if it is there; empty if it can be."""
    folder = path.parent.absolute()
    # `Path.exists` raises where a folder above may not be searched
    while may_make_folders and not os.access(folder, os.F_OK) and folder != folder.parent:
        folder = folder.parent
    if not os.access(folder, os.F_OK):
        return f"there is no folder {folder}"
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} may not be written"
    if path.is_dir():
        return f"{path} is a folder"
    if path.exists() and not os.access(path, os.W_OK):
        return f"{path} may not be written"
    try:  # a system may refuse what its permissions allow
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as err:
        return f"{path if path.exists() else f'the folder {folder}'}: {err.strerror}"
    return ""
