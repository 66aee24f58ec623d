"""How long methods take next to their base, measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..files import write_atomically
from ..judge.comparison import Comparison
from .entries import Bench, Entry
from .short import configs, train

UPDATES = 30
"""A multiple of all periods that there are, so that every row climbs as often as it does in the long run."""
ROUNDS = 5


def over_the_base(bench: Bench, rows: Mapping[str, Entry], found: Comparison, out: Path) -> dict[str, list[float]]:
    """Train shortly by every row in turn, and return its times over those of the base in the same round.

    What else the machine does is the same for all rows then, and so is the state of the weights: on a CPU, weights that
    have decayed to almost nothing slow a long training down, whatever the method.

    Args:
        bench: The task.
        rows: By name.
        found: The comparison, whose settings they have.
        out: A folder, where the times are kept for the next call with the same settings.
    """
    asked = configs(rows, found, UPDATES)
    kept, keys = out / "times.json", {name: config.key for name, config in asked.items()}
    if kept.is_file():
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known["keys"] == keys:
            return dict(known["times"])
    task = found.plan.source.task()
    times: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(ROUNDS + 1):
        seconds = {name: train(config, task) for name, config in asked.items()}
        if turn:  # the first round makes things that all later ones find
            for name, taken in seconds.items():
                times[name].append(taken / seconds[bench.base])
    write_atomically(kept, json.dumps({"keys": keys, "times": times}, indent=1) + "\n")
    return times
