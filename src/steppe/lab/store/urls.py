"""URLs of databases, and what may be said of them."""

from __future__ import annotations

from urllib.parse import quote

import sqlalchemy
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from ..errors import UserError, one_line, shortened

_PACKAGES = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pymysql": "pymysql",
    "pg8000": "pg8000",
    "oracledb": "oracledb",
    "cx_Oracle": "cx_Oracle",
    "pyodbc": "pyodbc",
}
_NO_SECRETS = ("application_name", "charset", "mode", "sslmode", "timeout", "uri")


def shown_url(url: str) -> str:
    """Return a URL without its password, nor anything in its query that may be one."""
    try:
        parsed = sqlalchemy.make_url(url)
        if _astray(parsed):
            raise ValueError
        query = {name: value if name.lower() in _NO_SECRETS else "***" for name, value in parsed.query.items()}
        return parsed.set(query=query).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
    except (ArgumentError, ValueError):
        plain = not any(character in url for character in "@=?")
        return repr(url) if plain else "given, which is not shown since it may have a password,"


def reason(error: BaseException, url: str) -> str:
    """Return what a driver said, in one line and without the secrets of a URL."""
    while True:
        inner = getattr(error, "orig", None) or error.__cause__
        if not isinstance(inner, BaseException):
            break
        error = inner
    text = one_line(error)
    for secret in _secrets(url):
        text = text.replace(secret, "***")
    return shortened(text)


def check_url(url: str) -> None:
    """Refuse what is no URL of a database that can be kept.

    Raises:
        UserError: It is none.
    """
    try:
        parsed = sqlalchemy.make_url(url)
        backend = parsed.get_backend_name()
        parsed.get_dialect()
        if _astray(parsed):
            raise ValueError
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise UserError(
            f"the storage {shown_url(url)} is no URL of a database; write for example sqlite:///FOLDER/sweep.db or "
            "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, with %40 for an @ in the password"
        ) from None
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(
            f"the storage {shown_url(url)} is in the memory of one process; name a file: sqlite:///FOLDER/sweep.db"
        )


def missing_driver(url: str, error: ImportError) -> UserError:
    """Return the error that says which package a database needs."""
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    name = (cause.name or "").partition(".")[0] or "of this database"
    return UserError(
        f"the storage {shown_url(url)} needs the driver {name!r}, which is not installed; install it with: "
        f'pip install "{_PACKAGES.get(name, name)}"'
    )


def _astray(parsed: sqlalchemy.URL) -> bool:
    """Return whether a part of a password may stand where others do."""
    where = f"{parsed.host or ''}{'' if parsed.get_backend_name() == 'sqlite' else parsed.database or ''}"
    return "@" in where


def _secrets(url: str) -> list[str]:
    found = [url]
    try:
        parsed = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        return found
    found.append(str(parsed.password or ""))
    for name, value in parsed.query.items():
        if name.lower() not in _NO_SECRETS:
            found += [value] if isinstance(value, str) else value
    return [text for secret in found if secret for text in (secret, quote(secret))]
