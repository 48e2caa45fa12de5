"""Addresses: shown without their secrets, the file that one means, where a file can be."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pipeline.system.network.addresses import (
    beside,
    file_of,
    hidden,
    misread,
    why_unwritable,
    without_password,
)

WITHOUT_SECRETS = (
    *("postgresql://me@host:5432/db", "http://127.0.0.1:5000", "http://host:abc", "./mlruns@home"),
    *("sqlite:////data/me:and@you.db", "sqlite:///optuna.db", "file:///data/a@b"),
)
MISTYPED = ("", "http:", "http:/", "http:///", "http//", "postgresql:/")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:s%40:e/c@host/db", "postgresql+psycopg://me:***@host/db"),
        ("postgresql://me@realm:secret@host/db", "postgresql://me@realm:***@host/db"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("postgresql://me:@host/db", "postgresql://me:***@host/db"),
        ("postgresql://u:p@s?w@host/db", "postgresql://u:***@host/db"),
        ("postgresql://host:5432/db?options=a@b", "postgresql://host:***@b"),
        ("HTTPS://me:secret@host:5000/mlflow", "HTTPS://me:***@host:5000/mlflow"),
        ("https://token@host:5000/mlflow", "https://***@host:5000/mlflow"),
        ("https://token:@host", "https://***@host"),
        *((f"http://me:p{sign}w@host", "http://me:***@host") for sign in ("/", "?", "#", "@")),
        ("http://me:p@ss/w@host", "http://me:***@host"),
        ("http://me@realm:secret@host", "http://***@host"),
        ("http://host/a@b", "http://***@b"),
        ("http:/alice:pw@h:5550", "http:/***@h:5550"),
        ("http:///alice:pw@h", "http:///***@h"),
        ("http//alice:pw@h", "http//***@h"),
        ("http:alice:pw@h", "***@h"),
        ("alice:pw@h", "***@h"),
        ("postgresql:/u:pw@h/db", "postgresql:/***@h/db"),
        ("postgresql://h/db?a=b&password=p@ss&c=d", "postgresql://***&c=d"),
        ("mssql://host?odbc_connect=x%3BPWD%3Dy", "mssql://host?odbc_connect=***"),
        ("pg://host/db?a=b&PASSWORD=secret&c=d", "pg://host/db?a=b&PASSWORD=***&c=d"),
        ("pg://host/db?sslpassword=secret", "pg://host/db?sslpassword=***"),
        ("mysql://host/db?passwd=secret", "mysql://host/db?passwd=***"),
        *((url, url) for url in WITHOUT_SECRETS),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
    assert without_password(shown) == shown


@pytest.mark.parametrize(
    ("url", "why"),
    [
        *((f"{start}alice:pw@h", "no address.*like http://host:5000") for start in MISTYPED),
        ("127.0.0.1:5550", "no address"),
        ("localhost", "no address"),
        ('"http://host:5000"', "no address"),
        *((f"http://alice:p{sign}w@h", "%2F, %3F, %23 or %40") for sign in ("/", "?", "#")),
        ("postgresql://u:1?w@h/db", "%40"),
    ],
)
def test_an_address_that_is_read_otherwise_than_meant_is_told(url: str, why: str) -> None:
    assert re.search(why, misread(url))


@pytest.mark.parametrize(
    "url",
    ["http://me:p%40@h:1/x", "sqlite:////a/b@c.db", "postgresql://me:pw@h/db", "./mlruns@home"],
)
def test_an_address_that_can_be_read_is_left_alone(url: str) -> None:
    assert misread(url) == ""


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///optuna.db", Path("optuna.db")),
        ("sqlite:////data/optuna.db", Path("/data/optuna.db")),
        ("sqlite:///runs/my optuna.db", Path("runs/my optuna.db")),
        ("sqlite:///a\nb.db", Path("a\nb.db")),
        ("sqlite:////data/optuna.db?timeout=5", Path("/data/optuna.db")),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("journal:////data/optuna.log", Path("/data/optuna.log")),
        ("postgresql://host/optuna.db", None),
        ("mlruns", None),
    ],
)
def test_the_file_of_a_url(url: str, path: Path | None) -> None:
    assert file_of(url) == path


@pytest.mark.parametrize(
    ("url", "other", "moved"),
    [
        ("sqlite:///optuna.db", "sqlite:////data/mlflow.db", "sqlite:////data/optuna.db"),
        ("sqlite:///a/optuna.db", "sqlite:////data/mlflow.db", "sqlite:////data/a/optuna.db"),
        ("sqlite:////own/optuna.db", "sqlite:////data/mlflow.db", "sqlite:////own/optuna.db"),
        ("sqlite:///optuna.db", "sqlite:///mlflow.db", "sqlite:///optuna.db"),
        ("sqlite:///optuna.db", "http://host:5000", "sqlite:///optuna.db"),
        ("postgresql://host/optuna", "sqlite:////data/mlflow.db", "postgresql://host/optuna"),
        ("journal:///o.log", "sqlite:////data/mlflow.db", "journal:////data/o.log"),
        ("sqlite:///o.db", "sqlite:////my%20data/50%/m.db", "sqlite:////my data/50%/o.db"),
        ("sqlite:///o%2041.db", "sqlite:////a%2541/m.db", "sqlite:////a%2541/o 41.db"),
    ],
)
def test_a_relative_file_moves_beside_an_absolute_one(url: str, other: str, moved: str) -> None:
    assert beside(url, other) == moved


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://me:s%40cret@host", "Basic me:s@cret failed at http://me:s%40cret@host/api/2.0"),
        ("http://tok3n@host", "request to http://tok3n@host/api failed: tok3n is no user"),
        ("postgresql://me:secret@host/db", 'connection "user=me password=secret" failed'),
        ("postgresql://host/db?password=secret", "no user for secret"),
        ("http:/me:secret@host", "No host supplied in http:/me:secret@host/api/2.0"),
        ("me:secret@host", "got unsupported URI 'me:secret@host', for me:secret"),
        ("http://host", "http://me:secret@proxy:3128 refused, see postgresql://a:secret@b/c"),
    ],
)
def test_what_others_say_is_told_without_secrets(url: str, text: str) -> None:
    told = hidden(text, url)
    assert "***" in told
    for secret in ("secret", "s%40cret", "s@cret", "tok3n"):
        assert secret not in told


def test_what_others_say_stays_as_it_is_without_secrets_in_it() -> None:
    text = "connection to http://127.0.0.1:5000/a refused: sqlite:////data/me:and@you.db"
    assert hidden(text, "http://127.0.0.1:5000", "postgresql://me@host/db", "") == text


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("file", ""),
        ("new.db", ""),
        ("", "{tmp} is a folder"),
        ("a/b.db", "there is no folder {tmp}/a"),
        ("file/b.db", "{tmp}/file is not a folder"),
    ],
)
def test_why_a_file_cannot_be_made_or_written(tmp_path: Path, path: str, why: str) -> None:
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / path) == why.format(tmp=tmp_path)
    if path != "a/b.db":
        assert why_unwritable(tmp_path / path, may_make_folders=True) == why.format(tmp=tmp_path)


def test_why_a_file_in_a_closed_folder_cannot_be_made_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / "a" / "b.db", may_make_folders=True) == ""
    folder = os.W_OK | os.X_OK
    monkeypatch.setattr(
        os, "access", lambda path, how: how != folder and Path(path).exists()
    )  # root may all
    for path in (tmp_path / "b.db", tmp_path / "a" / "b.db"):
        why = why_unwritable(path, may_make_folders=True)
        assert why == f"the folder {tmp_path} may not be written"
    monkeypatch.setattr(os, "access", lambda path, how: how in (folder, os.F_OK))
    assert why_unwritable(tmp_path / "file") == f"{tmp_path / 'file'} may not be written"
