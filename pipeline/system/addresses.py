"""Addresses of databases and servers: shown without their secrets, and the file that one means.

In: a URL as SQLAlchemy, MLflow and Optuna write them; `journal:///FILE` is a file of Optuna's
journal, written like SQLite's: three slashes before a relative path, four in all before `/data`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

_FILE = re.compile(r"(sqlite(?:\+\w+)?:///|journal:///)([^?]*)(.*)", re.DOTALL)
_IN_QUERY = re.compile(
    r"([?&;][^=&;]*(?:passw(?:or)?d|passphrase|pwd|token|secret|odbc_connect)[^=&;]*=)([^&;]*)",
    re.IGNORECASE,
)
_IN_TEXT = re.compile(r"[a-zA-Z][\w.+-]*://[^\s'\"<>]+")
_PORT = re.compile(r"\d*(?:[/?#]|$)")


def without_password(url: str) -> str:
    """The URL with `***` for its secrets: a password, a server's only login, words in the query.

    A password that holds @, / or ? as they are, which nothing can read, is hidden as well: up to
    the last @ that may end it.
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
    scheme, mark, rest = url.partition("://")
    begin, last = len(scheme + mark), len(url) - len(rest) + rest.rfind("@")
    if not mark or "@" not in rest or rest.startswith("/"):
        return None
    user, colon, tail = rest.partition(":")
    if is_server(url):
        host = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if "@" not in host and _PORT.match(tail if ":" in host else ""):
            return None  # the @ belongs to the path
        named = colon and not tail.startswith("@") and "@" not in user and "/" not in user
        return slice(begin + (len(user) + 1 if named else 0), last)
    if not colon or "/" in user or "@" not in tail:
        return None
    if "@" not in tail.partition("?")[0] and _PORT.match(tail):
        return None  # the @ belongs to an option
    return slice(begin + len(user) + 1, last)


def is_server(url: str) -> bool:
    """Whether it is an MLflow server's address, not a database's."""
    return url.partition("://")[0].lower() in ("http", "https")


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
    if path.is_dir():
        return f"{path} is a folder"
    while may_make_folders and not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.exists():
        return f"there is no folder {folder}"
    if not folder.is_dir():
        return f"{folder} is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the folder {folder} may not be written"
    if path.exists() and not os.access(path, os.W_OK):
        return f"{path} may not be written"
    return ""
