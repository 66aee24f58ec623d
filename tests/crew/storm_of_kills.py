"""A storm of kills over commands that train.

    python tests/crew/storm_of_kills.py --kills 102 [--seed 0] [--what compare sweep cluster]

While a command runs, one of its workers or the command itself is ended with SIGKILL, SIGTERM or SIGINT at a random
instant, and when the command has ended, it is started again, until that has happened so often. What it has written in the
end must be what an undisturbed run writes, number by number, with one record for each trial and no temporary file, and no
trial may have been trained more often than it was lost. On a cluster, its two workers are what dies. Prints as JSON how
many kills hit workers and commands, and what is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from commands import end, environment, started, wait_until, workers_of
from steppe import cli

TRIALS = 12
MOST_SECONDS = 90.0

TASK = """
import multiprocessing, os, time
from pathlib import Path
import torch
from torch import nn
from steppe.lab import Task

x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
y = (x ** 2).sum(1, keepdim=True)


class Model(nn.Linear):
    def forward(self, x):
        time.sleep(0.01)
        return super().forward(x)


def model():
    if multiprocessing.parent_process() is not None:
        with open({log!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
    return Model(3, 1)


def task():
    splits = list(zip(torch.split(x, 20), torch.split(y, 20)))
    return Task(model, *splits, nn.functional.mse_loss, metric_name="error", higher_is_better=False,
                metric=lambda o, t: float(((o - t) ** 2).mean()), batch_size=10, epochs=3)
"""

CLUSTER = """
import sys, time
from pathlib import Path
from distributed import LocalCluster

if __name__ == "__main__":
    # Nannies start each worker that dies anew.
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster:
        Path(sys.argv[1]).write_text(cluster.scheduler_address)
        time.sleep(100000)
"""

COMMON = ["--base", "sgd", "--jobs", "2"]
COMMANDS = {
    "compare": ["compare", *COMMON, "--tune", "0", "--methods", "sgd,sam", "--seeds", "6"],
    "sweep": ["sweep", *COMMON, "--grid", "lr=0.003:0.3:log", "--sampler", "tpe", "--trials", "6", "--seeds", "2"],
}
COMMANDS["cluster"] = [*COMMANDS["compare"][:3], *COMMANDS["compare"][5:]]
QUIETLY: dict[str, Any] = {"stdout": subprocess.DEVNULL, "env": environment(DASK_LOGGING__DISTRIBUTED="critical")}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def numbers(out: Path) -> dict[str, Any]:
    """All that a command found, without times."""
    found = {}
    for path in (out / "trials").glob("*.json"):
        record = json.loads(path.read_text())
        found[path.name] = {key: value for key, value in record.items() if key != "seconds"}
        del found[path.name]["curve"]["seconds"]
    return found


def storm(what: str, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    chance = random.Random(f"{what} {seed}")
    log = folder / "trained.txt"
    (folder / "task.py").write_text(TASK.format(log=str(log)))
    words = ["-m", "steppe", *COMMANDS[what], "--task", f"{folder / 'task.py'}:task"]
    with redirect_stdout(None):
        assert cli.main([*words[2:], "--out", str(folder / "whole")]) == 0
    whole = numbers(folder / "whole")
    cluster = None
    if what == "cluster":
        (folder / "cluster.py").write_text(CLUSTER)
        cluster = started(folder / "cluster.py", folder / "address", **QUIETLY)
        wait_until((folder / "address").exists, MOST_SECONDS)
        words += ["--crew", (folder / "address").read_text()]
    said: dict[str, Any] = {"what": what, "workers": 0, "commands": 0, "rounds": 0, "starts": 0, "wrong": []}
    try:
        while said["workers"] + said["commands"] < kills:
            said["rounds"] += 1
            _round(words, folder / f"round{said['rounds']}", kills, chance, cluster, log, whole, said)
    finally:
        if cluster is not None:
            end(cluster)
    return said


def _wait(command: subprocess.Popen[str], until: Callable[[], object], limit: float) -> None:
    while command.poll() is None and not until() and time.monotonic() < limit:
        time.sleep(0.02)


def _round(
    words: list[str],
    out: Path,
    kills: int,
    chance: random.Random,
    cluster: subprocess.Popen[str] | None,
    log: Path,
    whole: dict[str, Any],
    said: dict[str, Any],
) -> None:
    """Start a command again and again until it has done its work."""
    log.unlink(missing_ok=True)
    before = said["workers"] + said["commands"]
    while True:
        said["starts"] += 1
        command = started(*words, "--out", out, **QUIETLY)
        there, limit, begun = cluster or command, time.monotonic() + MOST_SECONDS, len(_trained(log))

        def at_work(command: subprocess.Popen[str] = command, begun: int = begun) -> bool:
            return bool(workers_of(command)) if cluster is None else len(_trained(log)) > begun

        try:
            while command.poll() is None and time.monotonic() < limit:
                if chance.random() < 0.8:  # and not on the way there
                    _wait(command, at_work, limit)
                strike = time.monotonic() + chance.uniform(0.0, 2.5)
                _wait(command, lambda strike=strike: time.monotonic() > strike, limit)
                if command.poll() is None and said["workers"] + said["commands"] < kills:
                    workers = workers_of(there, server=cluster is None)
                    if cluster is not None:  # a nanny whose worker dies before it has come gives up
                        workers = [pid for pid in workers if str(pid) in _trained(log)]
                    if workers and chance.random() < 0.6:
                        os.kill(chance.choice(workers), signal.SIGKILL)
                        said["workers"] += 1
                    else:
                        command.send_signal(chance.choice(SIGNALS))
                        said["commands"] += 1
            if command.poll() is None:
                said["wrong"].append("a command did not end")
                return
            code, error = command.returncode, command.stderr.read()  # type: ignore[union-attr]
        finally:
            end(command)
        if code == 0:
            break
        # Ended by a signal, told of one, or by workers that died three times at one trial.
        if code not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130) and "died" not in error:
            said["wrong"].append(f"exit code {code}: {error[-300:]}")
            return
    found = numbers(out)
    lost = said["workers"] + said["commands"] - before
    trained = len(_trained(log))
    if found != whole:
        said["wrong"].append(f"{sorted(found)} are not what an undisturbed run finds")
    if trained > TRIALS + 2 * lost:  # two trials run when a command dies
        said["wrong"].append(f"{trained} trainings, and {lost} kills")
    if left := [str(path) for path in out.rglob(".*")]:
        said["wrong"].append(f"left behind: {left}")


def _trained(log: Path) -> list[str]:
    """The processes that have begun with a trial, one a trial."""
    return log.read_text().splitlines() if log.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=102)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    asked = parser.parse_args()
    wrong = False
    for what in asked.what:
        with tempfile.TemporaryDirectory() as name:
            said = storm(what, -(-asked.kills // len(asked.what)), asked.seed, Path(name))
        print(json.dumps(said), flush=True)
        wrong = wrong or bool(said["wrong"])
    sys.exit(wrong)


if __name__ == "__main__":
    main()
