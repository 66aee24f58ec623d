"""Real processes on real databases, some of which are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from steppe.lab.crew.processes import Processes
from steppe.lab.errors import RunError
from steppe.lab.judge.points import points
from steppe.lab.sweeping import worker
from steppe.lab.sweeping.queue import Queue
from steppe.lab.sweeping.runner import run
from steppe.lab.trials.trial import run_trial

WORDS = ["sweep", "--method", "sam", "--base", "sgd", "--heartbeat", "1", "--jobs", "1"]


def wait_until(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def trained(folder: Path) -> int:
    """How many trainings have begun in worker processes."""
    path = folder / "trained.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def workers_of(process) -> list[int]:
    """The worker processes of a command."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"spawn_main" in (entry / "cmdline").read_bytes():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == process.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        except OSError:
            continue
    return found


def check_found(made, found):
    """Every setting is finished, with the numbers that it has wherever it is trained."""
    assert [point.state for point in found] == ["finished"] * made.definition.count
    loaded = made.source.load()
    for point in found:
        for result in point.seeds:
            alone = run_trial(made.trial(point.setting, result.seed), loaded)
            assert result.validation_metric == alone.final.validation_metric
            assert result.test_metric == alone.final.test_metric


def test_workers_that_are_killed_at_any_moment(planned, task, storage, tmp_path, request):
    """Nothing is lost, and nothing is done twice but what the dead had begun."""
    seeds = 2
    made = planned(
        ("rho=0.02:0.2:4log", "lr=0.01,0.03"),
        storage=storage,
        seeds=seeds,
        task=task(pause=0.004),
        name=request.node.name,
    )
    chance, killed, kills = random.Random(3), 0, 3 if storage is None else 2
    failures = multiprocessing.get_context("spawn").Pipe(duplex=False)
    queue = Queue(made)  # looks on
    with Processes() as crew:
        running = [crew.start(worker.main, made, "killed", failures[1]) for _ in range(2)]
        wait_until(lambda: trained(tmp_path) > 0)
        end = time.monotonic() + 150
        while running:
            assert time.monotonic() < end, "waited too long"
            for process in [process for process in running if process.exitcode is not None]:
                running.remove(process)
                if process.exitcode != 0:
                    assert process.exitcode == -signal.SIGKILL
                    running.append(crew.start(worker.main, made, "killed", failures[1]))
            settled = sum(point.settled for point in queue.points())
            if killed < kills and settled > 2 * killed and len(running) == 2:  # also one that has not begun yet
                os.kill(chance.choice(running).pid, signal.SIGKILL)
                killed += 1
            time.sleep(chance.uniform(0.0, 0.3))
    assert not failures[0].poll()
    for end_of_pipe in failures:
        end_of_pipe.close()
    found, trials = queue.points(), queue._trials()
    queue.close()
    assert killed == kills
    check_found(made, found)
    assert 8 * seeds <= trained(tmp_path) <= 8 * seeds + killed
    completed = [trial.user_attrs["slot"] for trial in trials if trial.state.name == "COMPLETE"]
    assert sorted(completed) == list(range(8))
    assert [point.state for point in points(trials, [], 8)] == ["finished"] * 8


OPEN = """
import sys, time
from pathlib import Path
from steppe.lab.store.database import close, open_storage

url, ready, go = sys.argv[1:]
Path(ready).touch()
while not Path(go).exists():
    pass
storage = open_storage(url, 1)
print(storage.get_all_studies())
close(storage)
"""


def test_several_make_the_tables_at_the_same_instant(storage, tmp_path):
    url = f"sqlite:///{tmp_path / 'new.db'}"
    if storage is not None:
        import psycopg

        with psycopg.connect(storage.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("CREATE DATABASE empty")
        url = storage.replace("/postgres", "/empty")
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OPEN, url, tmp_path / f"ready{i}", tmp_path / "go"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    try:
        wait_until(lambda: len(list(tmp_path.glob("ready*"))) == 4)
        (tmp_path / "go").touch()
        assert [process.communicate(timeout=60) for process in running] == [("[]\n", "")] * 4
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_two_commands_at_the_same_instant(start, task, tmp_path):
    """On one machine or on two: both take part, both wait for the end, and both write the whole report."""
    words = [*WORDS, "--task", task(pause=0.01), "--grid", "rho=0.05,0.1", "lr=0.01:0.1:4log", "--seeds", 1]
    words += ["--storage", f"sqlite:///{tmp_path / 'both.db'}"]
    both = [start([*words, "--out", tmp_path / name]) for name in ("one", "two")]
    said = [process.communicate(timeout=120) for process in both]
    assert [(process.returncode, error) for process, (_, error) in zip(both, said, strict=True)] == [(0, "")] * 2
    assert trained(tmp_path) == 8  # each of the settings once
    pids = (tmp_path / "trained.txt").read_text().split()
    assert len(set(pids)) == 2
    results = [json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("one", "two")]
    assert results[0]["points"] == results[1]["points"]
    assert results[0]["best"] == results[1]["best"]
    for out, _ in said:
        assert len(re.findall(r"^\d/8  rho \S+, lr \S+: validation squared error [\d.]+, [\d.]+ s$", out, re.M)) > 0
        assert "Best of 8: rho " in out


def test_ctrl_c_and_again(start, task, tmp_path):
    words = [*WORDS, "--task", task(pause=0.02), "--grid", "rho=0.05,0.1,0.2", "--seeds", 2, "--out", tmp_path / "out"]
    process = start(words)
    wait_until(lambda: trained(tmp_path) >= 4)  # the second setting's second seed runs
    (child,) = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    message = r"steppe: interrupted: 1 of 3 settings are done and kept in sqlite:\S+; the same command continues.*\n"
    assert re.fullmatch(message, error)
    assert not Path(f"/proc/{child}").exists()
    left = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'out/sweep.db'}").get_trials()
    assert {trial.state.name for trial in left} == {"FAIL", "COMPLETE", "WAITING"}  # nothing runs: back at once
    again = start(words)
    out, error = again.communicate(timeout=120)
    assert (again.returncode, error) == (0, "")
    assert out.startswith("1 of 3 settings were done before\n")
    assert trained(tmp_path) == 7  # six, and the one that was interrupted; what its first seed found was kept
    content = json.loads((tmp_path / "out/sweep.json").read_text())
    assert [(point["state"], point["lost"], len(point["seeds"])) for point in content["points"]] == [
        ("finished", 0, 2)
    ] * 3


def test_a_worker_that_dies_is_replaced_and_a_deadly_setting_given_up(command, task, tmp_path):
    deadly = task(also="if multiprocessing.parent_process() is not None: os._exit(9)")
    words = [*WORDS, "--task", deadly, "--grid", "rho=0.05", "--seeds", 1, "--heartbeat", 60, "--out", tmp_path / "out"]
    code, out, error = command(*words)
    assert (code, error) == (1, "steppe: 1 of 1 settings were given up, since workers died at them\n")
    assert out.count("warning: a worker process died (exit code 9); another one takes its place") == 3
    assert trained(tmp_path) == 3
    assert "1/1  rho 0.05: given up" in out
    assert "Of 1 settings, 1 given up (3 workers died at it)." in (tmp_path / "out/table.md").read_text()


def die(*rest):
    os._exit(9)


def test_workers_that_die_before_they_begin(planned, monkeypatch):
    made = planned()
    monkeypatch.setattr("steppe.lab.sweeping.runner.worker.main", die)
    message = (
        r"^worker processes die before they begin \(exit code 9\); is there memory for them\?; 0 of 4 settings are"
    )
    with pytest.raises(RunError, match=message):
        run(made)


def test_an_error_in_the_users_task_stops_and_keeps(command, task, tmp_path):
    wrong = task(also="if torch.initial_seed() == 1001: raise ValueError('no model')")
    out = tmp_path / "out"
    code, _, error = command(*WORDS, "--task", wrong, "--grid", "rho=0.05,0.1", "--seeds", 2, "--out", out)
    assert code == 1
    assert re.fullmatch(
        r"steppe: the trial sam, seed 1001 failed with ValueError: no model \(square.py, line \d+\), with rho 0.05; "
        r"0 of 2 settings are done and kept in sqlite:\S+; the same command continues from there\n",
        error,
    )
    assert not (out / "sweep.json").exists()
