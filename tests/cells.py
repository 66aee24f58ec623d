"""Cells of a notebook, without a notebook: code of ``__main__`` that is in no file, but whose text Python has."""

from __future__ import annotations

import json
import linecache
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

from commands import environment

_numbers = count()

_SESSION = """
import json, sys
from cells import run
for source in json.load(sys.stdin):
    run(globals(), source)
"""


def run(namespace: dict[str, Any], *sources: str) -> dict[str, Any]:
    """Run cells one after the other in a namespace, which is that of ``__main__``, and return it."""
    namespace.setdefault("__name__", "__main__")
    for source in sources:
        name = f"<ipython-input-{next(_numbers)}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        exec(compile(source, name, "exec"), namespace)
    return namespace


def in_a_fresh_session(folder: Path, *sources: str, **variables: str) -> str:
    """Run cells in a process of their own, and return what they print."""
    env = environment(**variables)
    env["PYTHONPATH"] += f":{Path(__file__).parent}"
    done = subprocess.run(
        [sys.executable, "-c", _SESSION],
        input=json.dumps(sources),
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
