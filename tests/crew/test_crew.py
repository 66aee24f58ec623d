"""Who carries out jobs: all alike, and whatever becomes of a job is told."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing import forkserver

import calls
import pytest

from steppe.lab import UserError, compare, sweep
from steppe.lab.crew.carrying import JobError, carry_out
from steppe.lab.crew.cluster import cluster
from steppe.lab.crew.executors import ExecutorCrew
from steppe.lab.crew.here import Here
from steppe.lab.crew.jobs import Ended, Failed, Job, Lost
from steppe.lab.crew.local import LocalCrew
from steppe.lab.crew.processes import interruptible


def executor():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


class Borrowed:
    """An executor of processes, as somebody else's."""

    def __enter__(self):
        self.executor = executor()
        return ExecutorCrew(self.executor, 2)

    def __exit__(self, *error):
        self.executor.shutdown()


CREWS = {"processes": lambda: LocalCrew(2), "here": lambda: nullcontext(Here()), "executor": Borrowed}
over_crews = pytest.mark.parametrize("make", CREWS.values(), ids=CREWS)


def job(call, *arguments, key=None, **more):
    return Job(key or call.__name__, f"the job {call.__name__}", call, arguments, **more)


def carried(crew, jobs, **more):
    left = iter(jobs)
    return {job.key: result for job, result in carry_out(lambda: next(left, None), crew, **more)}


@over_crews
def test_every_job_is_carried_out_once(make):
    with make() as crew:
        found = carried(crew, [job(calls.square, x, key=("square", x)) for x in range(20)])
    assert found == {("square", x): x * x for x in range(20)}


@over_crews
def test_nothing_to_do(make):
    with make() as crew:
        assert carried(crew, []) == {}


@over_crews
@pytest.mark.parametrize(
    ("made", "message"),
    [
        (job(calls.fails), r"^the job fails failed with ValueError: no such thing \(calls.py, line \d+\)$"),
        (job(calls.ends, "exit"), r"^the job ends failed with SystemExit: 0 \(calls.py, line \d+\)$"),
        (job(calls.ends, "_exit"), r"^the job ends failed with SystemExit: os._exit\(0\) \(calls.py, line \d+\)$"),
    ],
)
def test_a_job_that_fails_is_named_with_file_and_line(make, made, message):
    more = Job(made.key, made.label, made.call, made.arguments, files=(calls.__file__,))
    with make() as crew, pytest.raises(JobError, match=message):
        carried(crew, [more])


def test_a_result_that_cannot_be_sent_has_failed():
    with LocalCrew(1) as crew, pytest.raises(JobError, match=r"^the job cannot_be_sent failed with .*pickle"):
        carried(crew, [job(calls.cannot_be_sent)])


@pytest.mark.parametrize("times", [2, 3])
def test_a_job_whose_worker_dies_is_given_to_another(tmp_path, times):
    warnings = []
    with LocalCrew(2) as crew:
        if times == 2:
            found = carried(crew, [job(calls.dies, str(tmp_path), times), job(calls.square, 3)], warn=warnings.append)
            assert found == {"dies": "done", "square": 9}
        else:
            with pytest.raises(
                JobError, match=r"^a worker process died at the job dies \(signal 9\), as 2 others before"
            ):
                carried(crew, [job(calls.dies, str(tmp_path), times)], warn=warnings.append)
    assert warnings == ["a worker process died at the job dies (signal 9); another one begins with it anew"] * 2


def test_a_job_says_how_far_it_is_and_may_be_stopped():
    heard = []

    def said(job, value):
        heard.append((job.key, value))
        return job.key == "all" or value < 2

    jobs = [job(calls.counts, 4, key="all", tells=True), job(calls.counts, 9, key="some", tells=True)]
    with LocalCrew(2) as crew:
        assert carried(crew, jobs, said=said) == {"all": 4, "some": None}
    assert [value for key, value in heard if key == "all"] == [0, 1, 2, 3]
    assert [value for key, value in heard if key == "some"] == [0, 1, 2]


def test_a_job_that_takes_too_long_is_ended():
    begun = time.monotonic()
    with LocalCrew(1, timeout=1.5) as crew, pytest.raises(JobError, match=r"longer than the 1\.5 seconds of --timeout"):
        carried(crew, [job(calls.sleeps, 600)])
    assert time.monotonic() - begun < 60


def test_workers_end_with_the_crew_whatever_they_do():
    before = set(multiprocessing.active_children())

    def broken_off():
        with LocalCrew(2) as crew:
            for i in range(2):
                crew.start(job(calls.sleeps, 600, key=i))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert set(multiprocessing.active_children()) <= before


def test_workers_stay_for_the_next_job():
    with LocalCrew(1) as crew:
        found = carried(crew, [job(calls.where, key=i) for i in range(3)])
    assert len(set(found.values())) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forks on Linux alone")
def test_if_what_workers_are_forks_of_dies_others_take_their_place():
    warnings, found = [], {}
    left = iter([job(calls.square, x, key=x) for x in range(1, 10)])
    with LocalCrew(2) as crew:
        for one, result in carry_out(lambda: next(left, None), crew, warn=warnings.append):
            found[one.key] = result
            if len(found) == 2:
                os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    assert found == {x: x * x for x in range(1, 10)}
    assert len(warnings) <= 4  # two were at work, and two may just have been starting


def test_a_worker_that_cannot_be_started_is_tried_again_and_then_an_error(monkeypatch):
    crew, failures = LocalCrew(1), [OSError(12, "Cannot allocate memory")] * 2
    start = LocalCrew._new
    monkeypatch.setattr(LocalCrew, "_new", lambda self: start(self) if not failures else raised(failures.pop()))
    warnings = []
    with crew:
        assert carried(crew, [job(calls.square, 3)], warn=warnings.append) == {"square": 9}
    assert len(warnings) == 2
    assert "(it could not be started: [Errno 12] Cannot allocate memory); another one begins" in warnings[0]
    failures += [EOFError()] * 3
    with (
        LocalCrew(1) as another,
        pytest.raises(JobError, match=r"at the job square \(it could not be started: EOFError\), as 2 oth"),
    ):
        carried(another, [job(calls.square, 3)])


def raised(error):
    raise error


def test_workers_have_the_environment_of_today(monkeypatch):
    for value in ("one", "two"):
        monkeypatch.setenv("STEPPE_TEST", value)
        with LocalCrew(1) as crew:
            assert carried(crew, [job(calls.environment, "STEPPE_TEST")]) == {"environment": value}


def test_threads_are_refused():
    with ThreadPoolExecutor(1) as threads, pytest.raises(UserError, match="trials cannot run in threads"):
        ExecutorCrew(threads, 1)


def test_a_scheduler_that_is_not_there():
    pytest.importorskip("distributed")
    with pytest.raises(UserError, match="no Dask scheduler answers at nowhere://1"), cluster("nowhere://1"):
        pass


class Told:
    """A crew that tells what a test has written down."""

    def __init__(self, *events, size=2):
        self.size, self.told, self.started = size, list(events), []

    def start(self, job):
        self.started.append(job)

    def stop(self, job):
        raise AssertionError

    def events(self):
        return [make(next(job for job in self.started if job.key == key)) for key, make in self.told.pop(0)]


def test_what_has_ended_beside_what_failed_is_not_thrown_away():
    crew = Told([("a", lambda job: Failed(job, "no")), ("b", lambda job: Ended(job, 7))])
    left = iter([job(calls.square, key="a"), job(calls.square, key="b")])
    results = carry_out(lambda: next(left, None), crew)
    assert next(results)[1] == 7
    with pytest.raises(JobError, match=r"^no$"):
        next(results)


def test_so_many_given_up_in_a_row_end_it_but_not_if_they_belong_together():
    def given_up_as(counts):
        gone, left = [], iter([job(calls.square, key=key) for key in "abcd"])
        events = [[(key, lambda job: Lost(job, "KilledWorker", for_good=True))] for key in "abc"]
        crew = Told(*events, [("d", lambda job: Ended(job, 1))], size=1)

        def given_up(job):
            gone.append(job.key)
            return counts(len(gone))

        list(carry_out(lambda: next(left, None), crew, given_up=given_up))
        return gone

    assert given_up_as(lambda count: count == 1) == ["a", "b", "c"]
    with pytest.raises(
        JobError,
        match=r"died at the job square \(KilledWorker\), as often as the cluster allows, perhaps for lack of memory$",
    ):
        given_up_as(lambda count: True)


def test_an_executor_that_takes_nothing_any_more_is_one_line():
    closed = executor()
    closed.shutdown()
    with pytest.raises(JobError, match=r"^the executor does not take the job where: cannot schedule new futures"):
        carried(ExecutorCrew(closed, 1), [job(calls.where)])


@pytest.mark.parametrize("what", [compare, sweep])
def test_a_crew_that_is_none(what, tmp_path):
    with pytest.raises(UserError, match=r"^crew must be the address of a Dask scheduler or an executor, got int$"):
        what("digits", crew=3, out=tmp_path)
    idle = executor()
    with pytest.raises(UserError, match=r"^timeout is of worker processes here; an executor has limits of its own"):
        what("digits", crew=idle, timeout=3, out=tmp_path)
    idle.shutdown()


SLOW_MODULE = """
import time
try:
    time.sleep(0.5)
except KeyboardInterrupt:  # as a library does that looks whether another one is there
    pass
whole = True
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_is_not_interrupted_but_what_comes_next(number, tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_module", raising=False)
    ready = threading.Event()
    threading.Thread(target=lambda: (ready.wait(), time.sleep(0.1), os.kill(os.getpid(), number))).start()

    def imported_and_more():
        ready.set()
        importlib.import_module("slow_module")
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt), interruptible():
        imported_and_more()
    assert sys.modules["slow_module"].whole


def test_an_import_that_never_ends_is_interrupted_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("steppe.lab.crew.processes._LONGEST_IMPORT", 0.2)
    (tmp_path / "endless_module.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(tmp_path)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), interruptible():
        importlib.import_module("endless_module")
