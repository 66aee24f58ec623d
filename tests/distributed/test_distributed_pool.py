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


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_functions_run_together_in_processes_that_stay(pool):
    assert pool.run(programs_pool.add_up, 2.0) == [6.0, 6.0]
    pids = pool.run(programs_pool.process)
    assert pids == pool.run(programs_pool.process)
    assert len({*pids, os.getpid()}) == 3
    with pytest.raises(AssertionError, match=r"(?s)rank 0: not done in time.*barrier.*rank 1: Trace.*only here"):
        pool.run(programs_pool.fail_on_one, grace=0.5)
    assert not pool.open
    assert not any(map(alive, pids))


def test_the_next_test_has_a_new_pool(pool):
    with pytest.raises(AssertionError, match=r"(?s)rank 1: It died, with exit code 3"):
        pool.run(programs_pool.die_on_one, grace=0.5)


def test_a_rank_that_hangs_says_where(pool):
    pool.run(programs_pool.process)  # it takes seconds to start
    with pytest.raises(AssertionError, match=r"(?s)rank 0: not done.*where_it_hangs.*rank 1: done"):
        pool.run(programs_pool.where_it_hangs, timeout=0.5)


def test_processes_end_with_their_parent():
    script = (
        "import time, programs_pool; from pool import Pool\n"
        "if __name__ == '__main__':\n    pool = Pool(1); print(*pool.run(programs_pool.process), flush=True)\n"
        "    time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    command, how = [sys.executable, "-c", script], {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    parents = [subprocess.Popen(command, env=environment, **how) for _ in range(2)]
    try:
        pids = [int(parent.stdout.readline()) for parent in parents]
        parents[0].send_signal(signal.SIGINT)
        parents[1].kill()
        until = time.monotonic() + 20
        while any(map(alive, pids)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(alive, pids))
    finally:
        for parent in parents:
            parent.kill()
            parent.wait()
            parent.stdout.close()
