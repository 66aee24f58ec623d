"""The pool that the other tests here stand on: it neither hangs, nor leaves processes, nor hides what went wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import programs_pool
import pytest
from pool import Pool

from commands import SOURCE, environment


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_functions_run_together_in_the_same_processes(pool):
    assert pool.run(programs_pool.add_up, 2.0) == [6.0, 6.0]
    first = pool.run(programs_pool.process)
    assert first == pool.run(programs_pool.process)
    assert len({*first, os.getpid()}) == 3


def test_a_rank_that_raises_ends_all(pool):
    pids = pool.run(programs_pool.process)
    with pytest.raises(AssertionError, match=r"(?s)rank 0: not done in time.*barrier.*rank 1: Trace.*only here"):
        pool.run(programs_pool.fail_on_one)
    assert not pool.open
    assert not any(map(alive, pids))


def test_the_next_test_has_a_new_pool(pool):
    assert pool.run(programs_pool.add_up, 1.0) == [3.0, 3.0]


def test_a_rank_that_dies_or_hangs_is_reported(pool):
    with pytest.raises(AssertionError, match=r"(?s)rank 1: It died, with exit code 3"):
        pool.run(programs_pool.die_on_one)
    other = Pool()
    try:
        other.run(programs_pool.process)
        with pytest.raises(AssertionError, match=r"(?s)rank 0: not done.*where_it_hangs.*rank 1: done"):
            other.run(programs_pool.where_it_hangs, timeout=0.5)
    finally:
        other.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_processes_end_with_their_parent(how, tmp_path):
    script = (
        "import time, programs_pool; from pool import Pool\n"
        "if __name__ == '__main__':\n    pool = Pool(); print(*pool.run(programs_pool.process), flush=True)\n"
        "    time.sleep(60)"
    )
    # Not with all that is on the path here: there are the folders of all tasks that other tests loaded.
    paths = os.pathsep.join([str(Path(__file__).parent), str(SOURCE)])
    env = environment(TMPDIR=str(tmp_path), PYTHONPATH=paths)
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env
    )
    try:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(how)
        parent.wait(timeout=20)
        until = time.monotonic() + 10
        while any(map(alive, pids)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(alive, pids))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
