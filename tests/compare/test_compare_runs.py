"""Whole comparisons, in real processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commands import left_of, wait_until
from steppe.lab import RunError, UserError, compare
from steppe.lab.comparing import comparison
from steppe.lab.crew.runner import Interrupted, Silence
from steppe.lab.plans.options import Options, from_file

WORDS = ("--methods", "adamw,sgd,sam", "--seeds", "3")

SLOW = """
import time
import torch
from torch import nn
from steppe.lab import Task

class Slow(nn.Linear):
    def forward(self, x):
        if self.training:
            time.sleep(0.004)
        return super().forward(x)

def task():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    split = (x, (x[:, 0] > 0).long())
    return Task(lambda: Slow(4, 2), split, (x + 1e-3, split[1]), (x - 1e-3, split[1]), batch_size=10, epochs=4)
"""


def read(folder: Path) -> dict[str, dict]:
    """All records, without what a clock has measured."""
    found = {}
    for path in sorted((folder / "trials").glob("*.json")):
        content = json.loads(path.read_text())
        del content["seconds"], content["curve"]["seconds"], content["date"]
        found[path.name] = content
    return found


def table(folder: Path) -> list[tuple[str, ...]]:
    """The columns of table.md but those of measured time."""
    lines = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    columns = zip(*(line.split("|")[1:-1] for line in lines), strict=True)
    return [column for column in columns if not column[0].strip().startswith(("time / ", "s to target"))]


@pytest.fixture
def slow(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    return f"{tmp_path / 'slow.py'}:task"


def test_results_do_not_depend_on_the_number_of_jobs(command, tiny, tmp_path):
    for jobs in (1, 2):
        code, out, error = command(
            "compare", "--tune", 0, "--task", tiny, *WORDS, "--jobs", jobs, "--out", tmp_path / str(jobs)
        )
        assert (code, error) == (0, "")
    assert len(read(tmp_path / "1")) == 9
    assert read(tmp_path / "1") == read(tmp_path / "2")
    assert table(tmp_path / "1") == table(tmp_path / "2")
    assert "\x1b" not in out
    assert "\r" not in out
    assert re.search(r"^9/9  \w+, seed \d: test accuracy \(%\) [\d.]+, [\d.]+ s$", out, re.M)
    assert "difference to" in out
    assert "difference to adamw" in (tmp_path / "2/table.md").read_text()


def test_finished_trials_are_skipped_and_damaged_records_stand_until_they_are_moved_away(command, tiny, tmp_path):
    words = ("compare", "--tune", 0, "--task", tiny, *WORDS, "--jobs", 1, "--out", tmp_path / "out")
    assert command(*words)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/trials").iterdir()}
    first, expected = table(tmp_path / "out"), read(tmp_path / "out")
    damaged = sorted(before)[4]
    damaged.write_text(damaged.read_text()[:200])
    (tmp_path / "out/trials/.half.tmp").write_text("{")
    (tmp_path / "out/trials/foreign.json").write_text("{")
    code, out, error = command(*words)
    assert code == 2
    assert error.startswith(f"steppe: {damaged} is not the record of a finished trial: ")
    assert error.endswith(". Move it away, and the trial is run again\n")
    damaged.rename(tmp_path / "damaged")
    code, out, error = command(*words)
    assert (code, error) == (0, "")
    assert "8 of 9 trials were finished in an earlier run" in out
    (tmp_path / "out/trials/foreign.json").unlink()
    assert read(tmp_path / "out") == expected
    assert table(tmp_path / "out") == first
    assert [path for path in before if path.stat().st_mtime_ns != before[path]] == [damaged]
    assert command(*words)[1].startswith("9 of 9 trials were finished in an earlier run")


def test_killed_and_resumed_equals_uninterrupted(start, command, slow, tmp_path):
    words = ("compare", "--tune", 0, "--task", slow, "--methods", "adamw,sam", "--seeds", "4", "--jobs", "2", "--out")
    process = start([*words, tmp_path / "killed"])
    trials = tmp_path / "killed/trials"
    wait_until(lambda: trials.is_dir() and len(list(trials.glob("*.json"))) >= 2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=90)
    wait_until(lambda: not left_of(process), seconds=30)
    kept = {path: path.stat().st_mtime_ns for path in trials.glob("*.json")}
    assert 2 <= len(kept) < 8
    for folder in ("killed", "whole"):
        code, out, error = command(*words, tmp_path / folder)
        assert (code, error) == (0, ""), out
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert read(tmp_path / "killed") == read(tmp_path / "whole")
    assert table(tmp_path / "killed") == table(tmp_path / "whole")


def test_ctrl_c(start, slow, tmp_path):
    process = start(
        [
            "compare",
            "--tune",
            0,
            "--task",
            slow,
            "--methods",
            "sgd,sam",
            "--seeds",
            "99",
            "--jobs",
            "2",
            "--out",
            tmp_path / "out",
        ]
    )
    trials = tmp_path / "out/trials"
    wait_until(lambda: trials.is_dir() and len(list(trials.glob("*.json"))) >= 1)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 130
    kept = len(list(trials.glob("*.json")))
    assert re.fullmatch(
        rf"steppe: interrupted: {kept} of 198 trials are kept in \S+; the same command continues from there\n", error
    )
    wait_until(lambda: not left_of(process), seconds=30)


def test_ctrl_c_before_the_first_trial(start, tmp_path):
    process = start(["compare", "--task", "mnist1d", "--out", tmp_path / "out"])
    wait_until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text())
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=90)
    assert process.returncode == 130
    assert re.fullmatch(r"steppe: interrupted.*\n", error)


def test_a_trial_that_diverges_is_in_the_table(command, task_file, tmp_path):
    name = task_file(
        "import multiprocessing\ndef loss(o, t):\n"  # while it is tried, all is well
        "    return nn.functional.cross_entropy(o, t) * (float('nan') if multiprocessing.parent_process() else 1)\n"
        "return Task(lambda: nn.Linear(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), loss, epochs=1)"
    )
    code, out, error = command("compare", "--tune", 0, "--task", name, *WORDS, "--jobs", 1, "--out", tmp_path / "out")
    assert (code, error) == (0, "")
    assert "adamw, seed 0: diverged in epoch 1" in out
    assert "No answer: every trial diverged" in out
    assert "3 of 3" in (tmp_path / "out/table.md").read_text()
    assert {record["status"] for record in read(tmp_path / "out").values()} == {"diverged"}


def test_an_error_in_the_users_model(command, task_file, tmp_path):
    name = task_file(
        "import multiprocessing\nclass Model(nn.Linear):\n    def forward(self, x):\n"
        "        if multiprocessing.parent_process() and self.weight.sum() > 0.4:\n"
        "            raise ValueError('too\\nheavy')\n        return super().forward(x)\n"
        "return Task(lambda: Model(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), epochs=1)"
    )
    out = tmp_path / "out"
    code, _, error = command(
        "compare", "--tune", 0, "--task", name, "--methods", "sgd", "--seeds", 9, "--jobs", 1, "--out", out
    )
    assert code == 1
    assert re.fullmatch(
        r"steppe: the trial sgd, seed (\d) failed with ValueError: too heavy \(mine.py, line 11\); "
        r"\1 of 9 trials are kept in \S+; the same command continues from there\n",
        error,
    )


def test_an_interrupt_between_trials_ends_the_workers(slow, tmp_path):
    class Impatient(Silence):
        def finished(self, record):
            raise KeyboardInterrupt

    before = set(multiprocessing.active_children())
    with pytest.raises(Interrupted, match=r"^interrupted: [12] of 198 trials are kept in "):
        compare(slow, methods=["sgd", "sam"], seeds=99, jobs=2, out=tmp_path / "o", observer=Impatient())
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize(
    ("end", "said"), [("os._exit(0)", r"os\._exit\(0\)"), ("sys.exit(0)", "0"), ("sys.exit()", "")]
)
@pytest.mark.parametrize("when", ["True", "multiprocessing.parent_process()"], ids=["when it is tried", "in training"])
def test_a_task_that_ends_its_process_has_failed(command, task_file, tmp_path, end, said, when):
    """Also with the exit code of success."""
    name = task_file(
        f"import multiprocessing, os, sys\nclass Model(nn.Linear):\n    def forward(self, x):\n"
        f"        if {when}:\n            {end}\n        return super().forward(x)\n"
        "return Task(lambda: Model(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), epochs=1)"
    )
    code, _, error = command("compare", "--tune", 0, "--task", name, *WORDS, "--jobs", 2, "--out", tmp_path / "out")
    assert code != 0
    assert re.search(rf"failed .*with SystemExit{': ' if said else ''}{said} \(mine\.py, line 11\)", error), error
    assert error.count("\n") == 1


KILLS = """
import multiprocessing, os, pathlib, signal
counted = pathlib.Path({folder!r})
class Model(nn.Linear):
    def forward(self, x):
        if len(list(counted.glob("*"))) < {times} and multiprocessing.parent_process():
            (counted / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
return Task(lambda: Model(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), epochs=1)
"""


@pytest.mark.parametrize("times", [2, 99])
def test_a_trial_whose_worker_is_killed_is_repeated(command, task_file, tmp_path, times):
    (tmp_path / "counted").mkdir()
    name = task_file(KILLS.format(folder=str(tmp_path / "counted"), times=times).strip())
    words = ("--methods", "sgd", "--base", "sgd", "--seeds", 1, "--jobs", 1, "--out", tmp_path / "out")
    code, out, error = command("compare", "--tune", 0, "--task", name, *words)
    died = "a worker process died at the trial sgd, seed 0 (signal 9)"
    assert out.count(f"{died}; another one begins with it anew") == 2
    if times == 2:
        assert (code, error) == (0, "")
    else:
        assert code == 1
        assert error.startswith(
            f"steppe: {died}, as 2 others before, perhaps for lack of memory (try fewer --jobs); 0 of 1"
        )


def test_a_thread_that_a_task_has_left_running_holds_nobody_up(start, task_file, tmp_path):
    name = task_file(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
        "return Task(lambda: nn.Linear(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), epochs=1)"
    )
    words = ("--methods", "sgd", "--seeds", 1, "--base", "sgd", "--out", tmp_path / "out")
    done = start(["compare", "--tune", 0, "--task", name, *words])
    _, error = done.communicate(timeout=100)
    assert (done.returncode, error) == (0, "")


def test_a_trial_that_takes_too_long_is_ended(command, task_file, tmp_path):
    name = task_file(
        "import multiprocessing, time\nif multiprocessing.parent_process():\n    time.sleep(600)\n"
        "return Task(lambda: nn.Linear(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), epochs=1)"
    )
    words = ("--methods", "sgd", "--base", "sgd", "--seeds", 1, "--timeout", 2, "--out", tmp_path / "out")
    code, _, error = command("compare", "--tune", 0, "--task", name, *words)
    assert code == 1
    assert error.startswith(
        "steppe: the trial sgd, seed 0 failed: it took longer than the 2 seconds of --timeout; 0 of 1"
    )


def test_a_script_without_a_guard_is_told_once(tiny, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"from steppe.lab import compare\ncompare({tiny!r}, seeds=1, jobs=2, out={str(tmp_path / 'out')!r})\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("steppe.lab.errors.RunError: every worker process imports the script that started it")
    assert 'put what it does under if __name__ == "__main__":' in last
    assert done.stderr.count("Traceback") <= 2


def test_a_record_that_cannot_be_written(command, task_file, tmp_path):
    out = tmp_path / "out"
    name = task_file(
        f"import multiprocessing, shutil\nif multiprocessing.parent_process():\n    shutil.rmtree({str(out)!r})\n"
        f"    open({str(out)!r}, 'w').close()\nreturn Task(lambda: nn.Linear(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y), epochs=1)"
    )
    code, _, error = command("compare", "--tune", 0, "--task", name, *WORDS, "--jobs", 1, "--out", out)
    assert code == 1
    assert error.startswith(f"steppe: the record of adamw, seed 0 cannot be written to {out}: Not a directory; 0 of 9")


def test_from_python(tiny, tmp_path):
    found = compare(
        tiny, methods=["sgd", "sam"], base="sgd", seeds=2, jobs=1, out=tmp_path / "o", settings={"sam": {"rho": 0}}
    )
    sgd, sam = found.rows
    assert (sgd.method, sam.method) == ("sgd", "sam")
    assert sgd.test == sam.test  # rho = 0 is the base
    assert found.plan.arms[1].hyperparameters["rho"] == 0.0
    assert str(found) == (tmp_path / "o/table.md").read_text()
    config = tmp_path / "o/config.yaml"
    expected = f"steppe compare --task {tiny} --methods sgd,sam --base sgd --seeds 2 --epochs 3 --out {tmp_path / 'o'}"
    assert found.plan.command == f"{expected} --config {config}"
    again = comparison.plan(tiny, from_file(config), tmp_path / "o")
    assert again.trials() == found.plan.trials()
    packaged = comparison.plan(tiny, Options(base="sgd", methods=("sgd", "sam"), seeds=2), tmp_path / "o")
    assert packaged.command == f"{expected} --tune 0"  # a command would tune what the call has left as it is


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds: must be greater than or equal to 1, got 0"),
        (
            {"settings": {"sam": {"rho": "x"}}},
            "settings.sam.rho: must be a number, true or false, or a list of numbers",
        ),
        ({"methods": []}, "no method to compare"),
    ],
)
def test_from_python_wrong_arguments_are_named(tiny, arguments, message):
    with pytest.raises(UserError, match=f"^{message}"):
        compare(tiny, **arguments)


def test_from_python_a_failure_is_an_exception(task_file, tmp_path):
    name = task_file(
        "import multiprocessing\nclass Model(nn.Linear):\n    def forward(self, x):\n"
        "        assert not multiprocessing.parent_process(), 'too many'\n"
        "        return super().forward(x)\nreturn Task(lambda: Model(3, 2), (x, y), (x + 1e-3, y), (x - 1e-3, y))"
    )
    with pytest.raises(
        RunError, match=r"^the trial sgd, seed 0 failed with AssertionError: too many \(mine.py, line 10\)"
    ):
        compare(name, methods=["sgd"], seeds=1, jobs=1, out=tmp_path / "o")


@pytest.mark.parametrize(("cores", "jobs"), [(2, 2), (64, 8)])
def test_a_large_machine_is_not_filled_unasked(monkeypatch, tiny, tmp_path, cores, jobs):
    monkeypatch.setattr("steppe.lab.plans.workers.cores", lambda: cores)
    assert comparison.plan(tiny, Options(), tmp_path / "o").workers.jobs == jobs
    assert comparison.plan(tiny, Options(jobs=33), tmp_path / "o").workers.jobs == 33
