"""The queue on real databases: every setting is taken once, whatever happens to those who take it."""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import replace

import optuna
import pytest
import sqlalchemy

from steppe.lab.errors import RunError, UserError
from steppe.lab.judge.points import MOST_LOST, SeedResult
from steppe.lab.store.database import file_url, shown_url
from steppe.lab.sweeping import worker
from steppe.lab.sweeping.queue import Lost, Queue

RESULT = SeedResult(seed=1000, validation_metric=1.0, test_metric=2.0, gradient_evaluations=3, seconds=0.5)


@pytest.fixture
def queues(planned, storage, request):
    """Open queues on the same sweep, as many workers do."""
    opened = []

    def make(count=1, **more):
        made = planned(storage=storage, name=request.node.name, **more)
        found = [Queue(made) for _ in range(count)]
        opened.extend(found)
        return found

    yield make
    for queue in opened:
        queue.close()


def in_threads(*calls):
    """Call all at the same instant."""
    barrier, found, errors = threading.Barrier(len(calls)), [], []

    def run(call):
        barrier.wait()
        try:
            found.append(call())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    return found


def taken(queue, session, first=lambda: None):
    """Take all that waits, and settle it; ``first`` is called while the first is held."""
    found = []
    while (claim := queue.claim(session, "w")) is not None:
        if not found:
            first()
        claim.choose()
        claim.keep(RESULT)
        claim.finish()
        found.append(claim.slot)
    return found


def test_each_setting_is_taken_once_by_many(queues):
    many = queues(4, grid=("rho=0.01:1:6log", "lr=0.01,0.1"))
    all_hold_one = threading.Barrier(4)  # else the fastest may take all

    def work(queue):
        queue.fill()  # all of them, at the same instant
        return taken(queue, "s", first=lambda: all_hold_one.wait(60))

    found = in_threads(*(lambda queue=queue: work(queue) for queue in many))
    assert Counter(slot for slots in found for slot in slots) == dict.fromkeys(range(12), 1)
    assert all(found)
    points = many[0].points()
    assert [point.state for point in points] == ["finished"] * 12
    assert [point.setting for point in points] == many[0].settings


def test_a_trial_is_handed_to_one_of_those_who_want_it(queues):
    """Optuna reads the state of a trial before it writes it; between the two nobody else may do the same."""
    many = queues(4, grid=("rho=0.01:1:16log",))
    many[0].fill()
    waiting = [trial._trial_id for trial in many[0]._trials() if "slot" in trial.user_attrs]
    found = in_threads(*(lambda queue=queue: [queue._take(trial) for trial in waiting] for queue in many))
    assert [sum(one) for one in zip(*found, strict=True)] == [1] * 16


def test_a_worker_killed_while_it_fills_the_queue(queues, monkeypatch):
    one, other = queues(2, grid=("rho=0.01:1:9log",))
    real, added = optuna.Study.add_trial, []

    def add(study, trial):
        if len(added) == 4:
            raise KeyboardInterrupt
        added.append(trial)
        real(study, trial)

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "add_trial", add)
        with pytest.raises(KeyboardInterrupt):
            one.fill()
    assert len(added) == 4
    other.fill()
    assert sorted(taken(other, "s")) == list(range(9))


def test_a_duplicate_is_thrown_away(queues):
    (queue,) = queues(grid=("rho=0.1,0.2",))
    queue.fill()
    for slot in (0, 1):
        queue._study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.WAITING, user_attrs={"slot": slot}))
    first = queue.claim("s", "w")
    assert sorted(taken(queue, "s")) == [1]
    assert first.slot == 0
    ended = Counter(trial.user_attrs.get("ended") for trial in queue._trials())
    assert ended["duplicate"] == 2


def test_two_who_come_at_the_same_instant_with_different_sweeps(planned, storage, request):
    """One of them decides what the sweep is, and the other is refused."""
    name = request.node.name
    plans = [planned(grid=(f"rho={rho}",), storage=storage, name=name) for rho in (0.1, 0.2, 0.3)]
    results = []

    def join(made):
        try:
            queue = Queue(made)
        except UserError as error:
            results.append(str(error))
        else:
            results.append(made)
            queue.close()

    barrier = threading.Barrier(3)
    real = optuna.Study.get_trials

    def together(study, *rest, **more):  # all find the study empty
        if threading.current_thread() not in met:
            met.add(threading.current_thread())
            barrier.wait(30)
        return real(study, *rest, **more)

    met: set = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.Study, "get_trials", together)
        in_threads(*(lambda made=made: join(made) for made in plans))
    accepted = [result for result in results if not isinstance(result, str)]
    assert len(accepted) == 1
    rho = accepted[0].definition.grid[0].words
    assert all(f"the grid is {rho} there and rho=" in result for result in results if isinstance(result, str))


def test_what_a_dead_worker_had_goes_to_the_last_that_is_left(planned, storage, request):
    """Also if it died before it gave a second sign of life, and when nothing waits any more."""
    made = planned(("rho=0.1,0.2",), storage=storage, name=request.node.name)
    dead, other = Queue(made), Queue(made)
    dead.fill()
    assert dead.claim("dead", "w").slot == 0
    dead.close()
    began = time.monotonic()
    worker.work(made, other, "other")
    assert time.monotonic() > began + 1.5  # not at once: it might live
    assert [point.state for point in other.points()] == ["finished", "finished"]
    assert other.points()[0].lost == 1
    other.close()


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_signs_of_life_keep_a_trial_and_its_loss_is_noticed(queues):
    slow, other = queues(2, grid=("rho=0.1",))
    slow.fill()
    claim = slow.claim("slow", "w")
    claim.choose()
    with claim.alive():
        until = time.monotonic() + 5  # longer than the grace
        while time.monotonic() < until:
            other.fail_stale()
            other.fill()
            assert other.claim("other", "w") is None
            time.sleep(0.5)
        assert not claim.lost
        other.release("slow", reason="died")  # as after a long silence
        assert taken(other, "other") == [0]
        until = time.monotonic() + 10
        while not claim.lost:
            assert time.monotonic() < until
            time.sleep(0.1)
    with pytest.raises(Lost):
        claim.keep(RESULT)
    with pytest.raises(Lost):
        claim.finish()
    finished = [trial for trial in other._trials() if trial.state == optuna.trial.TrialState.COMPLETE]
    assert len(finished) == 1


def test_a_setting_that_kills_its_workers_is_given_up(queues):
    (queue,) = queues(grid=("rho=0.1,0.2",))
    queue.fill()
    for _ in range(MOST_LOST):
        assert queue.points()[0].state == "waiting"
        claims = [queue.claim("s", "w"), queue.claim("s", "other")]
        assert {claim.slot for claim in claims if claim} == {0, 1}
        queue.release("s", "w", reason="died")
        queue.release("s", "other", reason="interrupted")  # is not counted
    assert [point.state for point in queue.points()] == ["given up", "waiting"]
    queue.fill()
    assert [t.user_attrs["slot"] for t in queue._trials() if t.state == optuna.trial.TrialState.WAITING] == [1]
    assert taken(queue, "s") == [1]


def test_finished_seeds_are_not_run_again_and_reset_the_count(queues):
    (queue,) = queues(grid=("rho=0.1",), seeds=3)
    queue.fill()
    for seed in (1000, 1001, 1002):
        claim = queue.claim("s", "w")
        assert sorted(claim.seeds) == list(range(1000, seed))
        claim.keep(RESULT.model_copy(update={"seed": seed}))
        queue.release("s", reason="died")
    claim = queue.claim("s", "w")
    claim.finish()
    (point,) = queue.points()
    assert (point.state, point.lost, [result.seed for result in point.seeds]) == ("finished", 0, [1000, 1001, 1002])
    last = queue._trials()[-1]
    assert {"seed 1000", "seed 1001", "seed 1002"} <= set(last.user_attrs)  # the trial that counts has all of it


def test_only_ones_own_trials_are_released(queues):
    one, other = queues(2, grid=("rho=0.1,0.2",))
    one.fill()
    one.claim("one", "w")
    other.claim("other", "w")
    assert one.release("one", reason="interrupted") == 1
    assert [point.state for point in one.points()] == ["waiting", "running"]
    assert one.points()[1].session == "other"


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": ("rho=0.1,0.3",)}, "the grid is rho=0.1,0.2 there and rho=0.1,0.3 here"),
        ({"seeds": 2}, "seeds is 1 there and 2 here"),
        ({"epochs": 9}, "epochs is 3 there and 9 here"),
        ({"base": "adamw"}, "base is sgd there and adamw here"),
        ({"method": "usam"}, "name is sam there and usam here; method is sam there and usam here"),
        ({"prune": True}, "prune is False there and True here"),
        ({"sampler": "tpe", "trials": 2}, "sampler is grid there and tpe here; trials is None there and 2 here"),
        ({"heartbeat": 2}, "heartbeat is 1 there and 2 here"),
        ({"settings": {"sam": {"momentum": 0.5}}}, "hyperparameters is {"),
    ],
)
def test_a_worker_with_another_definition_is_refused(queues, planned, storage, change, message, request):
    queues(grid=("rho=0.1,0.2",))
    with pytest.raises(UserError) as caught:
        Queue(planned(**{"grid": ("rho=0.1,0.2",), "storage": storage, "name": request.node.name, **change}))
    text = str(caught.value)
    assert f"is another one: {message}" in text
    assert text.endswith("Run the command that it was started with, or give another --out or --study")


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_changed_task_file_and_other_versions_are_refused(queues, planned, task, request):
    queues(grid=("rho=0.1",))
    task(also="1 + 1")
    changed = planned(grid=("rho=0.1",), name=request.node.name, task=task(also="1 + 1"))
    with pytest.raises(UserError, match=r"is another one: the file of the task square.py:task has another content"):
        Queue(changed)
    task()
    same = planned(grid=("rho=0.1",), name=request.node.name)
    older = same.definition.model_copy(update={"versions": {"torch": "1.0"}})
    with pytest.raises(UserError, match=r"versions is .* there and \{'torch': '1.0'\} here"):
        Queue(replace(same, definition=older))


def test_a_study_of_somebody_else(planned, tmp_path):
    made = planned()
    study = optuna.create_study(storage=made.storage, study_name=made.study)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(UserError, match=r"the study 'square' in \S+ was not made by steppe sweep; give another name"):
        Queue(made)


def test_a_driver_that_is_not_installed(planned, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(UserError) as caught:
        Queue(planned(storage="postgresql+psycopg2://me:secret@localhost/x"))
    assert str(caught.value) == (
        "the storage postgresql+psycopg2://me:***@localhost/x needs the driver 'psycopg2', which is not installed; "
        'install it with: pip install "psycopg2-binary"'
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("here", "the storage 'here' is no URL of a database; write for example sqlite:///FOLDER/sweep.db or "),
        ("nosql://x/y", "the storage nosql://x/y is no URL of a database"),
        ("sqlite://", "the storage sqlite:// is in the memory of one process; name a file"),
        ("sqlite:////no/such/folder/x.db", "the storage sqlite:////no/such/folder/x.db cannot be used: unable to open"),
        (
            "postgresql+psycopg://me:secret@127.0.0.1:1/x",
            "the storage postgresql+psycopg://me:***@127.0.0.1:1/x cannot",
        ),
    ],
)
def test_storages_that_cannot_be_used(planned, url, message):
    with pytest.raises(UserError) as caught:
        Queue(planned(storage=url))
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_may_have_strange_names(planned, tmp_path):
    queue = Queue(planned(out=str(tmp_path / "a b{c}%20#")))
    queue.fill()
    queue.close()
    assert (tmp_path / "a b{c}%20#" / "sweep.db").is_file()


def test_a_name_for_which_urls_have_no_room(monkeypatch, tmp_path):
    other = sqlalchemy.make_url("sqlite:////tmp/a")  # as SQLAlchemy 2.0 reads /tmp/a?b
    monkeypatch.setattr(sqlalchemy, "make_url", lambda url: other)
    with pytest.raises(
        UserError, match=r"the folder '\S+a\?b' cannot have a database, since its name has a '\?'; rename"
    ):
        file_url(tmp_path / "a?b" / "sweep.db")


def test_tables_of_another_version_of_optuna(planned):
    made = planned()
    Queue(made).close()
    with sqlite3.connect(made.storage.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.9.9'")
    connection.close()
    with pytest.raises(
        UserError, match=r"^the storage sqlite:\S+ cannot be used: The runtime optuna version \S+ is no"
    ):
        Queue(made)


def test_a_database_that_fails_for_a_moment(planned, monkeypatch):
    from sqlalchemy.exc import OperationalError

    queue = Queue(planned(grid=("rho=0.1",)))
    monkeypatch.setattr("steppe.lab.store.database._WAITS", (0.01, 0.01))
    failures = [OperationalError("select", {}, Exception("server\nis away"))] * 2
    real = optuna.Study.get_trials

    def failing(study, *rest, **more):
        if failures:
            raise failures.pop()
        return real(study, *rest, **more)

    monkeypatch.setattr(optuna.Study, "get_trials", failing)
    assert [point.state for point in queue.points()] == ["waiting"]
    failures += [OperationalError("select", {}, Exception("server\nis away"))] * 9
    with pytest.raises(RunError, match=r"^the storage sqlite:\S+ failed: server is away$"):
        queue.points()
    queue.close()


def test_an_error_puts_the_setting_back(planned, task):
    made = planned(grid=("rho=0.1",), task=task(also="if torch.initial_seed() == 1000: raise ValueError('no\\nmodel')"))
    queue = Queue(made)
    with pytest.raises(
        RunError, match=r"seed 1000 failed with ValueError: no model \(square.py, line \d+\), with rho 0.1"
    ):
        worker.work(made, queue, "s")
    queue.fill()
    assert [(point.state, point.lost) for point in queue.points()] == [("waiting", 0)]
    queue.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me@127.0.0.1:1/x?password=hunter2",
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/x?sslpassword=hunter2&connect_timeout=1",
        "me:hunter2@127.0.0.1/x",
        "postgresql://me:hunter2@127.0.0.1:port/x",
        "sqlite:///:memory:?password=hunter2",
        "nothing://me:hunter2@127.0.0.1/x?token=hunter2",
    ],
)
def test_no_secret_of_a_url_is_ever_said(planned, url):
    with pytest.raises(UserError) as caught:
        Queue(planned(storage=url))
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in shown_url(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
