"""The database of a sweep: Optuna's, opened so that several processes may read and write it."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ..errors import RunError, UserError, one_line, shortened

GRACE = 3
"""How many heartbeats may fail to come before a worker is taken for dead."""

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
_AT_ONCE = ("already exists", "duplicate", "unique", "locked", "deadlock")  # somebody makes the tables too
_NO_SECRETS = ("application_name", "charset", "mode", "sslmode", "timeout", "uri")
_TRIES = 20
_WAITS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
_SQLITE_TIMEOUT = 120

_Result = TypeVar("_Result")


def open_storage(url: str, heartbeat: int) -> RDBStorage:
    """Open a database and make its tables if need be, also when several do so at the same instant.

    Args:
        url: As SQLAlchemy writes it.
        heartbeat: Seconds between two signs of life.

    Returns:
        The storage; close it with `close`.

    Raises:
        UserError: The URL is none, its driver is not installed, or the database cannot be used.
    """
    sqlite = _is_sqlite(url)
    options: dict[str, Any] = {"connect_args": {"timeout": _SQLITE_TIMEOUT}} if sqlite else {"pool_pre_ping": True}
    filled = url.replace("{", "{{").replace("}", "}}")  # Optuna takes it for a template
    try:
        with quiet():
            # First with connections that nobody keeps, since this may fail and leave them behind.
            _make_tables(filled, {**options, "poolclass": NullPool})
            storage = RDBStorage(
                filled,
                options,
                skip_table_creation=True,
                skip_compatibility_check=True,
                heartbeat_interval=heartbeat,
                grace_period=GRACE * heartbeat,
            )
    except ImportError as error:
        raise _missing_driver(url, error) from error
    except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:  # or tables of another version of Optuna
        reason = shortened(without_secrets(one_line(_root(error)), url))
        raise UserError(f"the storage {shown_url(url)} cannot be used: {reason}") from None
    if sqlite:
        _lock_before_reading(storage.engine)
    return storage


def file_url(path: Path) -> str:
    """Return the URL of a database in a file.

    Raises:
        UserError: No URL has room for this name.
    """
    url = sqlalchemy.URL.create("sqlite", database=str(path.resolve())).render_as_string()
    if sqlalchemy.make_url(url).database != str(path.resolve()):  # SQLAlchemy before 2.1 quotes nothing
        raise UserError(f"the folder {str(path.parent)!r} cannot have a database, since its name has a '?'; rename it")
    return url


def close(storage: RDBStorage) -> None:
    """Close all connections."""
    storage.remove_session()
    storage.engine.dispose()


def shown_url(url: str) -> str:
    """Return a URL without its password, nor anything in its query that may be one."""
    try:
        parsed = sqlalchemy.make_url(url)
        query = {name: value if name.lower() in _NO_SECRETS else "***" for name, value in parsed.query.items()}
        return parsed.set(query=query).render_as_string(hide_password=True).replace("%2A%2A%2A", "***")
    except (ArgumentError, ValueError):
        plain = not any(character in url for character in "@=?")
        return repr(url) if plain else "given, which is not shown since it may have a password,"


def without_secrets(text: str, url: str) -> str:
    """Return what a driver said without the secrets of a URL."""
    try:
        parsed = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        return text.replace(url, "***")
    values = [value for name, value in parsed.query.items() if name.lower() not in _NO_SECRETS]
    secrets = [
        str(parsed.password or ""),
        *(part for value in values for part in ([value] if isinstance(value, str) else value)),
    ]
    for secret in (url, *secrets, *map(quote, secrets)):
        text = text.replace(secret, "***") if secret else text
    return text


@contextmanager
def quiet() -> Iterator[None]:
    """Within this, Optuna does not report what it does, nor that heartbeats are experimental: they are meant."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def patiently(call: Callable[[], _Result], url: str) -> _Result:
    """Ask the database again after a moment if it fails, as when it restarts.

    Args:
        call: What to do; it may have been done although it failed.
        url: The database, for the message.

    Raises:
        RunError: It went on failing for a quarter of a minute.
    """
    for wait in (*_WAITS, None):
        try:
            return call()
        except (SQLAlchemyError, StorageInternalError) as error:
            if wait is None:
                reason = shortened(without_secrets(one_line(_root(error)), url))
                raise RunError(f"the storage {shown_url(url)} failed: {reason}") from None
            time.sleep(wait)
    raise AssertionError  # not reached


def _make_tables(url: str, options: dict[str, Any]) -> None:
    """Make the tables if need be, or see them made by somebody else at the same instant."""
    for left in reversed(range(_TRIES)):
        try:
            RDBStorage(url, options)
        except (SQLAlchemyError, StorageInternalError) as error:
            if not left or not any(word in str(_root(error)).lower() for word in _AT_ONCE):
                raise
            time.sleep(random.uniform(0.05, 0.3))
        else:
            return


def _is_sqlite(url: str) -> bool:
    try:
        parsed = sqlalchemy.make_url(url)
        backend = parsed.get_backend_name()
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise UserError(
            f"the storage {shown_url(url)} is no URL of a database; write for example sqlite:///FOLDER/sweep.db or "
            "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(
            f"the storage {shown_url(url)} is in the memory of one process; name a file: sqlite:///FOLDER/sweep.db"
        )
    return backend == "sqlite"


def _missing_driver(url: str, error: ImportError) -> UserError:
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    name = (cause.name or "").partition(".")[0] or "of this database"
    return UserError(
        f"the storage {shown_url(url)} needs the driver {name!r}, which is not installed; install it with: "
        f'pip install "{_PACKAGES.get(name, name)}"'
    )


def _root(error: BaseException) -> BaseException:
    """Return what the driver said."""
    while True:
        inner = getattr(error, "orig", None) or error.__cause__
        if not isinstance(inner, BaseException):
            return error
        error = inner


def _lock_before_reading(engine: sqlalchemy.Engine) -> None:
    """Let every transaction on SQLite have the database for itself from its beginning.

    Optuna reads a row and then writes it. Other databases lock the row in between because it asks for that; SQLite
    knows no such lock, so that two workers could both take the same trial.
    """

    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions on its own, which come too late

    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()
    sqlalchemy.event.listen(engine, "connect", connect)
    sqlalchemy.event.listen(engine, "begin", begin)
