"""Records go by the content of users' files, and of what those import from their folders; workers get all of it."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import pytest

from steppe.lab.code import modules, reading
from steppe.lab.code.code import find_file, find_module
from steppe.lab.crew import workers
from steppe.lab.errors import RunError
from steppe.lab.plans import comparison
from steppe.lab.plans.options import from_flags
from steppe.lab.store import records
from steppe.lab.tasks.sources import find_task
from steppe.lab.trials.records import TrialConfig

FILES = {
    "own.py": "import json\nimport helper\nfrom parts.climb import radius\n\n"
    "def wide(base, *, rho: float = 0.1):\n    from late import SAM\n    return SAM(base, rho=rho * helper.factor * radius)\n",
    "helper.py": "factor = 2\n",
    "late.py": "from steppe import SAM\n",
    "parts/__init__.py": "from . import deep\n",
    "parts/climb.py": "from .deep.inner import radius\n",
    "parts/deep/__init__.py": "",
    "parts/deep/inner.py": "radius = 1\n",
    "json.py": "raise SystemExit('the standard library has this name')\n",
    "unused.py": "raise SystemExit('nobody imports this')\n",
}
READ = {"own.py", "helper.py", "late.py"} | {path for path in FILES if path.startswith("parts")}


@pytest.fixture
def folder(tmp_path):
    for path, text in FILES.items():
        (tmp_path / "code" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / path).write_text(text)
    return tmp_path / "code"


def planned(task, folder, out, **more):
    asked = {"base": "sgd", "methods": f"sgd,sam,{folder}/own.py:wide", "seeds": 1, **more}
    return comparison.plan(task, from_flags(asked), out)


def test_what_a_file_imports_from_its_folder_is_found_by_reading(folder):
    assert reading.read(folder, "own.py").keys() == READ
    assert next(iter(reading.read(folder, "own.py"))) == "own.py"


@pytest.mark.parametrize("path", sorted(READ))
def test_an_edit_of_any_of_them_changes_the_digest(folder, path):
    before = find_file(f"{folder}/own.py:wide", "method").digest
    (folder / path).write_text(FILES[path] + "# edited\n")
    assert find_file(f"{folder}/own.py:wide", "method").digest == before
    (folder / path).write_text(FILES[path] + "edited = True\n")
    assert find_file(f"{folder}/own.py:wide", "method").digest != before


def test_an_edit_of_another_file_does_not(folder):
    before = find_file(f"{folder}/own.py:wide", "method")
    (folder / "unused.py").write_text("")
    assert find_file(f"{folder}/own.py:wide", "method") == before


def test_files_that_import_each_other_or_are_no_python(tmp_path):
    (tmp_path / "a.py").write_text("import b")
    (tmp_path / "b.py").write_text("import a, broken")
    (tmp_path / "broken.py").write_text("def (")
    assert reading.read(tmp_path, "a.py").keys() == {"a.py", "b.py", "broken.py"}


def test_keys_are_what_they_were_where_nothing_is_the_users_own():
    config = TrialConfig(
        task="t", method="sam", hyperparameters={}, seed=0, epochs=1, batch_size=2, versions={}, base="sgd"
    )
    assert config.key == "1ae6819cc424a740"
    own = config.model_copy(update={"method_digest": "a"})
    assert len({config.key, own.key, config.model_copy(update={"base_digest": "a"}).key}) == 3
    assert "base_digest" not in own.model_dump()
    assert TrialConfig.model_validate_json(own.model_dump_json()) == own


SAID = """
class A:
    def f(self, x: int = 1, *, y=None, **z):
        return {**z, "a": x + 2j, b"b": f"{y!r:>{x}} {z}", 0x10: (yield)}
"""
SAME = {
    "comments": SAID.replace("1, *", "1,  # one\n *") + "# the end",
    "blank lines": "\n\n" + SAID.replace("        return", "\n\n\n        return"),
    "formatting": SAID.replace("x + 2j", "(x+2j)").replace('"a"', "'a'").replace("0x10", "16").replace("    ", "  "),
    "line ends": SAID.replace("\n", "\r\n"),
    "kinds of texts": SAID.replace('"a"', 'u"a"'),
    "docstrings": SAID.replace("class A:", '"of the file"\nclass A:\n    "of the class"').replace(
        "**z):", '**z):\n        """Of the\n        function."""'
    ),
}
OTHER = {
    "a name": SAID.replace("y!r", "z!r").replace("y=None", "z=None"),
    "a number's type": SAID.replace("int = 1", "int = 1.0"),
    "a truth": SAID.replace("int = 1", "int = True"),
    "a text for a number": SAID.replace("int = 1", "int = '1'"),
    "a default": SAID.replace("y=None", "y"),
    "an order": SAID.replace("x + 2j", "2j + x"),
    "a mapping's star": SAID.replace("**z, ", ""),
    "a text that is no docstring": SAID.replace("        return", "        x = 'text'\n        return"),
    "a large number": SAID.replace("0x10", "0x1" + 5000 * "0"),
    "a decorator": SAID.replace("    def", "    @property\n    def"),
}


def digest_of(text):
    return reading.digest({"a.py": text.encode()})


@pytest.mark.parametrize("change", SAME)
def test_how_code_is_written_down_does_not_count(change):
    assert SAME[change] != SAID
    assert digest_of(SAME[change]) == digest_of(SAID)


def test_all_that_code_says_counts():
    assert len({digest_of(SAID), *map(digest_of, OTHER.values())}) == len(OTHER) + 1


def test_docstrings_count_where_a_file_may_look_at_them():
    looks = "import helper\nprint(helper.f.__doc__)\n"
    files = [{"a.py": looks.encode(), "helper.py": f"def f():\n    '{text}'\n".encode()} for text in ("one", "two")]
    assert reading.digest(files[0]) != reading.digest(files[1])
    assert reading.digests(files[0])["a.py"] == reading.digests(files[1])["a.py"]


def test_what_is_no_python_goes_by_its_bytes():
    assert digest_of("def (") != digest_of("def ( # a comment")
    assert digest_of("x = 1\0") != digest_of("x  = 1\0")
    deep = "x = " + "-" * 50_000 + "1"
    assert digest_of(deep) != digest_of(deep + " # a comment")


def test_an_odd_escape_warns_nobody():
    assert digest_of("x = '\\d'") == digest_of("x = '\\\\d'  # the same text")


def test_an_edited_helper_trains_anew_what_depends_on_it(command, tiny, folder, tmp_path):
    words = (
        "compare",
        "--tune",
        0,
        "--task",
        tiny,
        "--base",
        "sgd",
        "--methods",
        f"sgd,sam,{folder}/own.py:wide",
        "--seeds",
        1,
    )
    words += ("--jobs", 1, "--out", tmp_path / "out")
    assert command(*words)[0] == 0
    assert command(*words)[1].startswith("3 of 3 trials were finished in an earlier run")
    (folder / "helper.py").write_text("factor = 3\n")
    assert command(*words)[1].startswith("2 of 3 trials were finished in an earlier run")
    found = {}
    for path in (tmp_path / "out/trials").glob("wide-*.json"):
        record = records._read(path)
        found[record.config.method_digest] = record.final.train_loss
    assert len(found) == len(set(found.values())) == 2


def test_an_edited_helper_of_a_task_is_another_task(tmp_path, tiny):
    file = Path(tiny.partition(":")[0])
    file.write_text("from sizes import many\n" + file.read_text().replace("batch_size=8", "batch_size=many"))
    for many in (4, 5):  # within a second, and of one length
        (tmp_path / "sizes.py").write_text(f"many = {many}\n")
        assert find_task(tiny).load().batch_size == many


def test_folders_with_helpers_of_one_name_do_not_meet(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "common.py").write_text(f"name = {name!r}\n")
        (tmp_path / name / "own.py").write_text(
            "import common\n\ndef say(base):\n    return name\n\nname = common.name\n"
        )
    for name in ("one", "two", "one"):
        assert find_file(f"{tmp_path / name}/own.py:say", "method").load()(None) == name


@pytest.mark.parametrize("path", ["own.py", "helper.py", "parts/deep/inner.py"])
def test_a_file_that_changes_while_trials_run_ends_them(tiny, folder, tmp_path, path):
    plan = planned(tiny, folder, tmp_path / "out")
    source = plan.source
    (folder / "own.py").write_text(FILES["own.py"] + "# a comment is no change\n")
    next(code for code in source.along if code.name == "own.py:wide").load()
    (folder / path).write_text(FILES[path] + "changed = True\n")
    with pytest.raises(RunError, match=rf"{path} has changed while it was in use; run the command again"):
        next(code for code in source.along if code.name == "own.py:wide").load()


def test_files_travel_to_workers_that_cannot_see_them(tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "there"))
    (tmp_path / "there").mkdir()
    plan = planned(tiny, folder, tmp_path / "out", settings={"equal": {"method": "sam", "rho": 0.2}}, methods=None)
    configs = {config.row: config for config in plan.trials()}
    plan = planned(tiny, folder, tmp_path / "out")
    (own,) = [config for config in plan.trials() if config.row == "wide"]
    sent = pickle.dumps((plan.source, own))
    shutil.rmtree(folder)
    Path(tiny.partition(":")[0]).unlink()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    source, config = pickle.loads(sent)
    record, _ = workers.run(source, config, False, None, None)
    same, _ = workers.run(source, configs["equal"], False, None, None)
    assert record.final == same.final
    assert record.config == own


def test_a_module_goes_by_its_content_or_its_version(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "parts").rename(folder / "pieces")
    found = find_module("pieces.climb:radius", "method")
    assert {path for path, _ in found.files} == {path.replace("parts", "pieces") for path in READ if "parts" in path}
    (folder / "pieces/deep/inner.py").write_text("radius = 2\n")
    with pytest.raises(RunError, match=r"pieces.climb has changed while it was in use"):
        found.load()
    import yaml

    version, _, files = modules.identity(yaml)
    assert version.lower() == f"pyyaml {yaml.__version__}"
    assert files == {}
    assert modules.identity(reading) == (None, "", {})


def test_two_that_records_could_not_tell_apart(tiny, tmp_path, folder):
    other = tmp_path / "other"
    other.mkdir()
    (other / "own.py").write_text("import torch\n\ndef wide(parameters):\n    return torch.optim.SGD(parameters)\n")
    settings = {"w": {"method": f"{folder}/own.py:wide"}}
    with pytest.raises(Exception, match=r"a method and the base are both called own.py:wide; rename one of the files"):
        planned(tiny, folder, tmp_path / "out", base=f"{other}/own.py:wide", methods="w", settings=settings)
