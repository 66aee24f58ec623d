"""The copy of a sweep that Optuna's own tools read; nothing goes by it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import traceback
import warnings

import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy.pool import NullPool

from commands import wait_until
from steppe._extras import how_to_install
from steppe.lab.crew.jobs import Ended, Job
from steppe.lab.crew.local import LocalCrew
from steppe.lab.errors import RunError, UserError
from steppe.lab.judge.points import Point
from steppe.lab.store.urls import shown_url
from steppe.lab.sweeping.copying import StudyCopy

GRID = ("lr=0.01,0.1,1e9",)


def trials(url, name=None):
    storage = RDBStorage(url, {"poolclass": NullPool})
    try:
        return optuna.load_study(study_name=name, storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def shown(trials):
    return [(trial.state.name, trial.params, trial.value, trial.user_attrs["setting"]) for trial in trials]


def test_every_setting_is_a_trial_of_a_study_once(planned, alone, storage):
    asked = {"grid": GRID, "method": "sgd", "storage": storage, "seeds": 2}
    found = alone(planned(**asked))
    expected = [
        ("COMPLETE", point.setting, point.validation.value if point.validation else float("inf"), point.slot)
        for point in found.points
    ]
    there = trials(storage, "sweep square-task-sgd-sgd")
    assert shown(there) == expected
    assert [len(trial.intermediate_values) for trial in there] == [3, 3, 0]
    alone(planned(**asked))
    assert shown(trials(storage)) == expected


def test_what_is_missing_in_the_copy_is_written_again(planned, alone, tmp_path):
    alone(planned(GRID, method="sgd"))
    late = f"sqlite:///{tmp_path / 'late.db'}"
    before = (tmp_path / "trained.txt").exists()
    alone(planned(GRID, method="sgd", storage=late, study="mine"))
    assert (tmp_path / "trained.txt").exists() == before
    assert [trial.user_attrs["setting"] for trial in trials(late, "mine")] == [0, 1, 2]


def test_points_of_all_kinds_are_copied(planned, storage):
    made = planned(("rho=0.1,0.2,0.3",), storage=storage, study="kinds")
    with StudyCopy(made) as copy:
        copy.add(Point(0, {"rho": 0.1}, "pruned", (), (3.0, 2.0)))
        copy.add(Point(1, {"rho": 0.2}, "given up"))
        copy.add(Point(1, {"rho": 0.2}, "given up"))
    assert [(trial.state.name, trial.intermediate_values) for trial in trials(storage)] == [
        ("PRUNED", {1: 3.0, 2: 2.0}),
        ("FAIL", {}),
    ]


def somebody_elses(storage):
    study = optuna.create_study(storage=storage, study_name="theirs")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)


def tampered_with(storage):
    study = optuna.create_study(storage=storage, study_name="theirs")
    study.add_trial(optuna.create_trial(value=1.0, user_attrs={"setting": [], "sweep": {"a": 1}}))


def with_another_direction(storage):
    optuna.create_study(storage=storage, study_name="theirs", direction="maximize")


def with_two_directions(storage):
    optuna.create_study(storage=storage, study_name="theirs", directions=["maximize", "minimize"])


@pytest.mark.parametrize("make", [somebody_elses, tampered_with, with_another_direction, with_two_directions])
def test_a_study_of_something_else_is_refused_before_anything_is_trained(planned, alone, tmp_path, make):
    url = f"sqlite:///{tmp_path / 'copy.db'}"
    make(url)
    with pytest.raises(UserError, match=r"^the study 'theirs' in sqlite:\S+ is not one of this sweep; give another na"):
        alone(planned(storage=url, study="theirs"))
    assert not (tmp_path / "trained.txt").exists()


def test_another_sweep_needs_another_name(planned, alone, tmp_path):
    url = f"sqlite:///{tmp_path / 'copy.db'}"
    alone(planned(("rho=0.1",), storage=url))
    with pytest.raises(UserError, match=r"^the study 'sweep square-task-sgd-sam' in \S+ is not one of this sweep"):
        alone(planned(("rho=0.1,0.2",), storage=url))


def test_a_trial_with_a_tampered_number_does_no_harm(planned, alone, tmp_path):
    url = f"sqlite:///{tmp_path / 'copy.db'}"
    found = alone(planned(("rho=0.1",), storage=url))
    study = optuna.load_study(study_name=None, storage=url)
    study.add_trial(optuna.create_trial(value=-1e9, user_attrs={"setting": "1", "sweep": found.plan.key}))
    again = alone(planned(("rho=0.1",), storage=url))
    assert again.best.validation == found.best.validation


def test_a_driver_that_is_not_installed(planned, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(UserError) as caught:
        StudyCopy(planned(storage="postgresql+psycopg2://me:secret@localhost/x"))
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
        ("sqlite:///x.db?timeout=abc", "the storage sqlite:///x.db?timeout=abc cannot be used: could not convert"),
        ("sqlite:////no/such/folder/x.db", "the storage sqlite:////no/such/folder/x.db cannot be used: unable to open"),
        (
            "postgresql+psycopg://me:secret@127.0.0.1:1/x",
            "the storage postgresql+psycopg://me:***@127.0.0.1:1/x cannot",
        ),
    ],
)
def test_storages_that_cannot_be_used(planned, url, message):
    with pytest.raises(UserError) as caught:
        StudyCopy(planned(storage=url))
    assert str(caught.value).startswith(message)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_may_have_strange_names(planned, tmp_path):
    StudyCopy(planned(storage=f"sqlite:///{tmp_path}/a b{{c}}.db")).__exit__(None, None, None)
    assert (tmp_path / "a b{c}.db").is_file()


def test_tables_of_another_version_of_optuna(planned, tmp_path):
    made = planned(storage=f"sqlite:///{tmp_path / 'old.db'}")
    with StudyCopy(made):
        pass
    with sqlite3.connect(tmp_path / "old.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.9.9'")
    connection.close()
    with pytest.raises(
        UserError, match=r"^the storage sqlite:\S+ cannot be used: The runtime optuna version \S+ is no"
    ):
        StudyCopy(made)


def test_a_database_that_fails_for_a_moment(planned, monkeypatch, tmp_path):
    from sqlalchemy.exc import OperationalError

    monkeypatch.setattr("steppe.lab.sweeping.copying._WAITS", (0.01, 0.01))
    real = optuna.Study.add_trial
    failures = []

    def failing(study, *rest, **more):
        if failures:
            raise failures.pop()
        return real(study, *rest, **more)

    monkeypatch.setattr(optuna.Study, "add_trial", failing)
    with StudyCopy(planned(("rho=0.1,0.2",), storage=f"sqlite:///{tmp_path / 'copy.db'}")) as copy:
        failures += [OperationalError("select", {}, Exception("server\nis away"))] * 2
        copy.add(Point(0, {"rho": 0.1}, "given up"))
        failures += [OperationalError("select", {}, Exception("server\nis away"))] * 9
        with pytest.raises(RunError, match=r"^the storage sqlite:\S+ failed: server is away$"):
            copy.add(Point(1, {"rho": 0.2}, "given up"))


def test_a_study_that_is_deleted_meanwhile(planned, tmp_path):
    url = f"sqlite:///{tmp_path / 'copy.db'}"
    with StudyCopy(planned(("rho=0.1,0.2",), storage=url, study="mine")) as copy:
        optuna.delete_study(study_name="mine", storage=url)
        with pytest.raises(RunError, match=r"^the storage sqlite:\S+ failed: [^\n]+$"):
            copy.add(Point(0, {"rho": 0.1}, "given up"))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me@127.0.0.1:1/x?password=hunter2",
        "postgresql+psycopg://me:hunter2@127.0.0.1:1/x?sslpassword=hunter2&connect_timeout=1",
        "me:hunter2@127.0.0.1/x",
        "postgresql://me:hunter2@127.0.0.1:port/x",
        "sqlite:///:memory:?password=hunter2",
        "nothing://me:hunter2@127.0.0.1/x?token=hunter2",
        "postgresql+psycopg://me:hun@hunter2@127.0.0.1/x",
        "postgresql+psycopg:///me:hunter2@127.0.0.1/x",
    ],
)
def test_no_secret_of_a_url_is_ever_said(planned, url):
    made = planned(storage=url)
    with pytest.raises(UserError) as caught:
        StudyCopy(made)
    assert "hunter2" not in made.command
    assert "hunter2" not in repr(made)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in shown_url(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)


def test_no_secret_is_in_any_file(planned, alone, tmp_path):
    alone(planned(("rho=0.1",), storage=f"sqlite:///{tmp_path / 'copy.db'}?password=hunter2&mode=rwc&uri=true"))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"hunter2" in path.read_bytes()]


def test_a_grid_needs_no_optuna(task, tmp_path):
    code = (
        "import sys; sys.modules.update(optuna=None, sqlalchemy=None); from steppe import cli\n"
        "more = [], ['--sampler', 'tpe', '--trials', '3'], ['--storage', 'sqlite:///x.db']\n"
        "if __name__ == '__main__': sys.exit([cli.main([*sys.argv[1:], *words]) for words in more] != [0, 2, 2])"
    )
    words = ["sweep", "--task", task(), "--base", "sgd", "--grid", "rho=0.1", "--seeds", "1", "--jobs", "1"]
    line = [sys.executable, "-c", code, *words, "--out", str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    expected = f"steppe: {how_to_install('optuna', 'compare')}\n"
    assert (done.returncode, done.stderr) == (0, 2 * expected)
    assert done.stdout.count("report: ") == 1


def opened(made, ready, go, say):
    """Open the copy of a sweep, at the same instant as others."""
    ready.touch()
    while not go.exists():
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with StudyCopy(made):
            return "open"


def test_several_make_the_tables_at_the_same_instant(storage, planned, tmp_path):
    jobs = [
        Job(i, str(i), opened, (planned(storage=storage, study=f"study{i}"), tmp_path / f"ready{i}", tmp_path / "go"))
        for i in range(4)
    ]
    with LocalCrew(4) as crew:
        for job in jobs:
            crew.start(job)
        wait_until(lambda: len(list(tmp_path.glob("ready*"))) == 4)
        (tmp_path / "go").touch()
        ended = []
        while len(ended) < 4:
            ended += crew.events()
    assert {event.job.key: event for event in ended} == {job.key: Ended(job, "open") for job in jobs}
