"""Libraries that train say much each time, and a comparison trains many times."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HOSTS = ("accelerate", "lightning", "peft", "transformers")
"""The libraries, by the names of their packages."""


@contextmanager
def quiet_hosts() -> Iterator[None]:
    """Within this, Trainer, Lightning, accelerate and PEFT log errors alone, and nothing they warn of is shown.

    Only those that are imported already are quiet. What they print is not held back.
    """
    # Lightning's two parts have levels of their own.
    names = [name for name in (*HOSTS, "lightning.pytorch", "lightning.fabric") if name in sys.modules]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    # Its bars, of weights that are loaded, are no logs.
    bars: Any = sys.modules.get("transformers.utils.logging")
    shown = bars is not None and bars.is_progress_bar_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        if shown:
            bars.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=rf"({'|'.join(HOSTS)})\b")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()
