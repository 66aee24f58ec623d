"""What the crews of the tests carry out; in a module that their workers can import."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def square(x, say):
    time.sleep(0.01 * (x % 3))
    return x * x


def where(say):
    return os.getpid()


def environment(name, say):
    return os.environ[name]


def fails(say):
    raise ValueError("no\nsuch thing")


def ends(how, say):
    {"exit": sys.exit, "_exit": os._exit}[how](0)


def dies(folder, times, say):
    if len(list(Path(folder).iterdir())) < times:
        (Path(folder) / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def counts(n, say):
    for i in range(n):
        say(i)
    return n


def sleeps(seconds, say):
    time.sleep(seconds)


def cannot_be_sent(say):
    return lambda: 0
