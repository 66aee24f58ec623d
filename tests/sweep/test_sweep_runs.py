"""Real commands and real processes, some of which are killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from commands import wait_until, workers_of
from steppe.lab.sweeping.sweeping import run
from steppe.lab.trials.trial import run_trial

WORDS = ["sweep", "--method", "sam", "--base", "sgd"]


def trained(folder: Path) -> int:
    """How many trainings have begun in worker processes."""
    path = folder / "trained.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def check_found(made, found):
    """Every setting is finished, with the numbers that it has wherever it is trained."""
    assert [point.state for point in found] == ["finished"] * made.count
    loaded = made.source.load()
    for point in found:
        for result in point.seeds:
            alone = run_trial(made.trial(point.setting, result.seed), loaded)
            assert result.validation_metric == alone.final.validation_metric
            assert result.test_metric == alone.final.test_metric


def test_workers_that_are_killed_at_any_moment(start, task, planned, tmp_path):
    """Nothing is lost, and nothing is done twice but what the dead had begun."""
    seeds, kills = 2, 3
    out = tmp_path / "out"
    words = [*WORDS, "--jobs", 2, "--task", task(pause=0.004), "--grid", "rho=0.02:0.2:4log", "lr=0.01,0.03"]
    process = start([*words, "--seeds", seeds, "--out", out])
    chance, killed, dead = random.Random(3), 0, set()
    wait_until(lambda: trained(tmp_path) > 0)
    end = time.monotonic() + 150
    while process.poll() is None:
        assert time.monotonic() < end, "waited too long"
        began = (tmp_path / "trained.txt").read_text().split()  # three newcomers would die at the same trial
        there = [pid for pid in workers_of(process) if pid not in dead and began.count(str(pid)) > 1]
        if killed < kills and len(list((out / "trials").glob("*.json"))) > 3 * killed and there:
            dead.add(pid := chance.choice(there))
            os.kill(pid, signal.SIGKILL)
            killed += 1
        time.sleep(chance.uniform(0.0, 0.2))
    said, error = process.communicate()
    assert (process.returncode, error, killed) == (0, "", kills)
    assert said.count("; another one begins with it anew") <= kills  # some had nothing to do
    made = planned(("rho=0.02:0.2:4log", "lr=0.01,0.03"), seeds=seeds, task=f"{tmp_path / 'square.py'}:task")
    before = trained(tmp_path)
    found = run(made).points
    assert trained(tmp_path) == before <= 8 * seeds + killed
    check_found(made, found)
    assert list((out / "trials").glob(".*")) == []


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_command_that_is_killed_and_again(start, command, task, tmp_path, sampler):
    what = ["--grid", "lr=0.01:0.1:6log"] if sampler == "grid" else ["--grid", "lr=0.01:0.1:log", "--trials", 6]
    words = [*WORDS, "--task", task(pause=0.002), *what, "--sampler", sampler, "--seeds", 2, "--prune", "--jobs", 2]
    for count in (3, 7):
        process = start([*words, "--out", tmp_path / "killed"])
        wait_until(lambda count=count: len(list((tmp_path / "killed/trials").glob("*.json"))) >= count)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    points = []
    for name in ("killed", "whole"):
        code, out, error = command(*words, "--out", tmp_path / name)
        assert (code, error) == (0, "")
        assert out.startswith("3 of 6 settings were done before\n") or name == "whole" or "settings were done" in out
        content = json.loads((tmp_path / name / "sweep.json").read_text())["points"]
        points.append([(point["setting"], point["state"], point["validation"]) for point in content])
    assert points[0] == points[1]
    assert not list((tmp_path / "killed").rglob(".*.tmp"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_again(start, command, task, tmp_path, how):
    words = [*WORDS, "--task", task(pause=0.02), "--grid", "rho=0.05,0.1,0.2", "--seeds", 2, "--jobs", 1]
    words += ["--out", tmp_path / "out"]
    process = start(words)
    wait_until(lambda: trained(tmp_path) >= 4)  # the second setting's second seed runs
    (child,) = workers_of(process)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    message = r"steppe: interrupted: 1 of 3 settings are done and kept in \S+; the same command continues from there\n"
    assert re.fullmatch(message, error)
    assert not Path(f"/proc/{child}").exists()
    code, out, error = command(*words)
    assert (code, error) == (0, "")
    assert out.startswith("1 of 3 settings were done before\n")
    assert trained(tmp_path) == 7  # six, and the one that was interrupted; what its first seed found was kept
    content = json.loads((tmp_path / "out/sweep.json").read_text())
    assert [(point["state"], len(point["seeds"])) for point in content["points"]] == [("finished", 2)] * 3


DEADLY = "if multiprocessing.parent_process() is not None and {}: os.kill(os.getpid(), 9)"


def test_a_deadly_setting_is_given_up_and_the_others_go_on(command, task, tmp_path):
    once = tmp_path / "first"
    deadly = task(also=DEADLY.format(f"len(Path({str(tmp_path)!r}, 'trained.txt').read_text().split()) <= 3"))
    words = [*WORDS, "--task", deadly, "--grid", "rho=0.05,0.1", "--seeds", 1, "--jobs", 1, "--out", tmp_path / "out"]
    code, out, error = command(*words)
    assert (code, error) == (1, "steppe: 1 of 2 settings were given up, since workers died at them\n")
    died = "warning: a worker process died at the trial sam, seed 1000, rho 0.05 (signal 9)"
    assert out.count(f"{died}; another one begins with it anew\n") == 2
    assert out.count(f"{died}, as 2 others before, perhaps for lack of memory (try fewer --jobs)\n") == 1
    assert "1/2  rho 0.05: given up" in out
    assert "2/2  rho 0.1: validation squared error" in out
    assert "Of 2 settings, 1 given up (workers died at it)." in (tmp_path / "out/table.md").read_text()
    code, out, error = command(*words)  # it is tried again: there may be more memory now
    assert (code, error) == (0, "")
    assert not once.exists()
    assert trained(tmp_path) == 5


def test_where_all_workers_die_the_sweep_ends(command, task, tmp_path):
    words = [*WORDS, "--task", task(also=DEADLY.format(True)), "--grid", "rho=0.01:1:9log", "--seeds", 1, "--jobs", 1]
    code, _, error = command(*words, "--out", tmp_path / "out")
    assert code == 1
    assert re.fullmatch(
        r"steppe: a worker process died at the trial sam, seed 1000, rho 0.03162 \(signal 9\), as 2 others before, "
        r"perhaps for lack of memory \(try fewer --jobs\); 0 of 9 settings are done and kept in \S+; the same .*\n",
        error,
    )
    assert trained(tmp_path) == 9


def test_an_error_in_the_users_task_stops_and_keeps(command, task, tmp_path):
    wrong = task(also="if torch.initial_seed() == 1001: raise ValueError('no model')")
    out = tmp_path / "out"
    words = [*WORDS, "--task", wrong, "--grid", "rho=0.05,0.1", "--seeds", 2, "--jobs", 1]
    code, _, error = command(*words, "--out", out)
    assert code == 1
    assert re.fullmatch(
        r"steppe: the trial sam, seed 1001, rho 0.05 failed with ValueError: no model \(square.py, line \d+\); "
        r"0 of 2 settings are done and kept in \S+; the same command continues from there\n",
        error,
    )
    assert not (out / "sweep.json").exists()
    assert len(list((out / "trials").iterdir())) == 1


def test_a_trial_that_takes_too_long_ends_the_sweep(command, task, tmp_path):
    slow = task(also="if multiprocessing.parent_process() is not None: time.sleep(600)")
    words = [*WORDS, "--task", slow, "--grid", "rho=0.05", "--seeds", 1, "--timeout", 3]
    code, _, error = command(*words, "--out", tmp_path / "out")
    assert code == 1
    assert "the trial sam, seed 1000, rho 0.05 failed: it took longer than the 3 seconds of --timeout; 0 of 1" in error
