"""Experiment trackers that trials may be logged to."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UserError, require

TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")


def check_installed(trackers: Sequence[str]) -> None:
    """Refuse trackers that cannot be written to here.

    Raises:
        UserError: One is not installed, or unknown to the accelerate that is; says what to install.
    """
    if not trackers:
        return
    require("accelerate.tracking", *trackers)
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"accelerate is too old for {name}; update it with: pip install --upgrade accelerate")
