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
from contextlib import suppress
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src"
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
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        Path(sys.argv[1]).write_text(cluster.scheduler_address)
        time.sleep(100000)
"""

COMMON = ["--base", "sgd", "--jobs", "2"]
COMMANDS = {
    "compare": ["compare", *COMMON, "--methods", "sgd,sam", "--seeds", "6"],
    "sweep": ["sweep", *COMMON, "--grid", "lr=0.003:0.3:log", "--sampler", "tpe", "--trials", "6", "--seeds", "2"],
}
COMMANDS["cluster"] = [*COMMANDS["compare"][:3], *COMMANDS["compare"][5:]]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Command:
    """One that runs, in a group of its own."""

    def __init__(self, words: list[str], **more: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell's background job ignores Ctrl-C, and so would everything that is started from it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            env={
                **os.environ,
                "PYTHONPATH": str(SOURCE),
                "OMP_NUM_THREADS": "1",
                "DASK_LOGGING__DISTRIBUTED": "critical",
            },
            **more,
        )

    def workers(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and b"spawn_main" in (entry / "cmdline").read_bytes():
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[1]) == self.process.pid and fields[0] != "Z":
                        found.append(int(entry.name))
            except OSError:
                continue
        return found

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


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
    done = subprocess.run(
        [sys.executable, *words, "--jobs", "2", "--out", str(folder / "whole")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        timeout=MOST_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    whole = numbers(folder / "whole")
    cluster = None
    if what == "cluster":
        (folder / "cluster.py").write_text(CLUSTER)
        cluster = Command([str(folder / "cluster.py"), str(folder / "address")])
        end = time.monotonic() + MOST_SECONDS
        while not (folder / "address").exists():
            assert time.monotonic() < end, "there is no cluster"
            time.sleep(0.1)
        words += ["--crew", (folder / "address").read_text()]
    said: dict[str, Any] = {"what": what, "workers": 0, "commands": 0, "rounds": 0, "starts": 0, "wrong": []}
    try:
        while said["workers"] + said["commands"] < kills:
            said["rounds"] += 1
            _round(words, folder / f"round{said['rounds']}", kills, chance, cluster, log, whole, said)
    finally:
        if cluster is not None:
            cluster.end()
    return said


def _wait(command: Command, until: Callable[[], object], end: float) -> None:
    while command.process.poll() is None and not until() and time.monotonic() < end:
        time.sleep(0.02)


def _round(
    words: list[str],
    out: Path,
    kills: int,
    chance: random.Random,
    cluster: Command | None,
    log: Path,
    whole: dict[str, Any],
    said: dict[str, Any],
) -> None:
    """Start a command again and again until it has done its work."""
    log.unlink(missing_ok=True)
    before = said["workers"] + said["commands"]
    while True:
        said["starts"] += 1
        command = Command([*words, "--out", str(out)])
        there, end = cluster or command, time.monotonic() + MOST_SECONDS
        try:
            while command.process.poll() is None and time.monotonic() < end:
                if chance.random() < 0.8:  # at work, and not on the way there
                    _wait(command, there.workers, end)
                strike = time.monotonic() + chance.uniform(0.0, 2.5)
                _wait(command, lambda strike=strike: time.monotonic() > strike, end)
                if command.process.poll() is None and said["workers"] + said["commands"] < kills:
                    workers = there.workers()
                    if workers and chance.random() < 0.6:
                        os.kill(chance.choice(workers), signal.SIGKILL)
                        said["workers"] += 1
                    else:
                        command.process.send_signal(chance.choice(SIGNALS))
                        said["commands"] += 1
            if command.process.poll() is None:
                said["wrong"].append("a command did not end")
                return
            code, error = command.process.returncode, command.process.stderr.read()  # type: ignore[union-attr]
        finally:
            command.end()
        if code == 0:
            break
        # Ended by a signal, told of one, or by workers that died three times at one trial.
        if code not in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 130) and "died" not in error:
            said["wrong"].append(f"exit code {code}: {error[-300:]}")
            return
    found = numbers(out)
    lost = said["workers"] + said["commands"] - before
    trained = len(log.read_text().splitlines()) if log.exists() else 0
    if found != whole:
        said["wrong"].append(f"{sorted(found)} are not what an undisturbed run finds")
    if trained > TRIALS + 2 * lost:  # two trials run when a command dies
        said["wrong"].append(f"{trained} trainings, and {lost} kills")
    if left := [str(path) for path in out.rglob(".*")]:
        said["wrong"].append(f"left behind: {left}")


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
