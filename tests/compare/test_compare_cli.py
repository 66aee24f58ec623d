from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import steppe
from steppe import cli
from steppe._extras import how_to_install
from steppe.lab.errors import UserError, describe, missing_extra
from steppe.lab.plans import options as config
from steppe.methods import METHODS

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = ("torch", "numpy", "matplotlib", "scipy", "sklearn", "mnist1d", "optuna")


def test_help_does_not_import_what_is_slow(start):
    script = (
        "import sys\nfrom steppe import cli\ncode = cli.main(sys.argv[1:])\n"
        f"print('heavy:', [name for name in {HEAVY} if name in sys.modules])\nsys.exit(code)"
    )
    for words in (["--help"], ["compare", "--help"], ["sweep", "--help"]):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
        assert "heavy: []" in done.stdout
        assert "steppe" in done.stdout


def test_the_real_command_line(start):
    process = start(["compare", "--task", "mnits1d"])
    out, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert error.startswith("steppe: unknown task 'mnits1d'; did you mean 'mnist1d'")
    assert error.endswith("digits, or FILE.py:FUNCTION\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--task", "digit"],
            "unknown task 'digit'; did you mean 'digits'? known: mnist1d, ",
        ),
        (["--base", "adm"], "unknown base 'adm'; did you mean 'adam' or 'radam'? known: adamw, sgd"),
        (["--methods", "adamw,smm"], "unknown method 'smm'; did you mean 'sam'"),
        (["--methods", "sam,adamw,sam"], "the method 'sam' is listed twice; list every method once"),
        (["--methods", " , "], "no method to compare; list at least one of adamw, sgd, sam"),
        (["--seeds", "0"], "--seeds: must be greater than or equal to 1, got 0"),
        (["--epochs", "-3"], "--epochs: must be greater than or equal to 1, got -3"),
        (["--jobs", "0"], "--jobs: must be greater than or equal to 1, got 0"),
        (["--seeds", "many"], "Invalid value for '--seeds': "),
        (["--sedes", "3"], "No such option: --sedes"),
        (["--task"], "Option '--task' requires an argument"),
        (["--config", "no-such.yaml"], "the file 'no-such.yaml' cannot be read: No such file or directory"),
        (["--task", "nofile.py:task"], "the task file 'nofile.py' does not exist"),
    ],
)
def test_bad_flags_are_one_line(command, words, message):
    code, out, error = command("compare", *words)
    assert (code, out) == (2, "")
    assert error.startswith(f"steppe: {message}")
    assert error.count("\n") == 1


def test_an_unknown_command(command):
    code, _, error = command("comparee")
    assert code == 2
    assert error.startswith("steppe: No such command 'comparee'")
    assert error.count("\n") == 1


def test_no_command_shows_the_help(command):
    code, out, error = command()
    assert code in (0, 2)
    assert "compare" in out + error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: 0\n", ":1: seeds: must be greater than or equal to 1, got 0"),
        ("task: mnist1d\n\nseed: 3\n", ":3: seed: unknown field 'seed'; did you mean 'seeds'? known: task, methods,"),
        ("epochs: 2.5\n", ":1: epochs: must be a valid integer, got 2.5"),
        ("jobs: true\n", ":1: jobs: must be a valid integer, got True"),
        ("methods: 3\n", ":1: methods: must be a valid tuple, got 3"),
        ("methods:\n  - sam\n  - 3\n", ":3: methods.1: must be a valid string, got 3"),
        (
            "base: sgd\nsettings:\n  sam:\n    lr: 0.1\n    rho: high\n",
            ":5: settings.sam.rho: must be a number, true or false, or a list of numbers, got 'high'",
        ),
        ("settings:\n  sam: 3\n", ":2: settings.sam: must be a valid dictionary, got 3"),
        ("settings: {sam: {rho: .nan}}\n", ":1: settings.sam.rho: must be a number, true or false, or a list"),
        ("seeds: 2\nseeds: 3\n", ":2: the field 'seeds' is there twice; keep one"),
        ("task: [a\nseeds: 2\n", ":2: not valid YAML: "),
        ("task: a: b\n", ":1: not valid YAML: mapping values are not allowed here"),
        ("- sam\n", ":1: expected fields such as 'task: mnist1d', got ['sam']"),
        ("task: !!python/object:os.system x\n", ":1: not valid YAML: "),
        ("task: \x07\n", ": not valid YAML: "),
    ],
)
def test_bad_yaml_is_one_line_with_field_and_line(command, tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    code, out, error = command("compare", "--config", path)
    assert (code, out) == (2, "")
    assert error.startswith(f"steppe: {path}{message}")
    assert error.count("\n") == 1


def test_a_yaml_file_that_is_no_text(command, tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert command("compare", "--config", tmp_path / "c.yaml")[2].endswith("is not UTF-8 text\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("smm: {rho: 0.1}", "settings: unknown method 'smm'; did you mean 'sam'"),
        ("sam: {roh: 0.1}", "sam over adamw has no hyper-parameter 'roh'; did you mean 'rho'?"),
        ("sam: {rho: -0.1}", "sam refuses rho=-0.1: "),
    ],
)
def test_bad_settings(command, tmp_path, settings, message):
    (tmp_path / "c.yaml").write_text(f"task: digits\nout: {tmp_path / 'out'}\nsettings:\n  {settings}\n")
    code, _, error = command("compare", "--config", tmp_path / "c.yaml")
    assert code == 2
    assert error.startswith(f"steppe: {message}")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(command, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, error = command("compare", "--task", tiny, "--out", tmp_path / "file" / "out")
    assert code == 2
    assert error.startswith(
        f"steppe: the output folder '{tmp_path}/file/out' cannot be written: Not a directory; choose"
    )


def test_flags_win_over_the_file(tmp_path):
    (tmp_path / "c.yaml").write_text("methods: [sam]\nseeds: 7\nsettings: {sam: {rho: 1e-1, betas: [0.9, 1]}}\n")
    asked = config.merge(config.from_flags({"seeds": 2, "task": None}), config.from_file(tmp_path / "c.yaml"))
    assert (asked.seeds, asked.methods, asked.task) == (2, ("sam",), None)
    assert asked.settings["sam"].hyperparameters == {"rho": 0.1, "betas": (0.9, 1.0)}
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert config.from_file(tmp_path / "c.yaml") == config.Options()


@pytest.mark.parametrize("task", ["mnist1d", "digits", "default"])
@pytest.mark.parametrize("base", ["adamw", "sgd"])
def test_packaged_settings_cover_every_method(task, base):
    section = config.packaged_settings()[task][base]
    assert set(section) == {base, *METHODS}
    assert all("lr" in values for values in section.values())


def test_settings_of_methods_that_the_packaged_file_does_not_know():
    base = config.packaged_settings()["digits"]["sgd"]["sgd"]
    assert config.hyperparameters("digits", "sgd", "brand-new", True, {"rho": 1}) == {**base, "rho": 1.0}
    assert config.hyperparameters("digits", "sgd", "brand-new", False, {}) == {}
    other = config.packaged_settings()["digits"]["adamw"]["adamw"]
    assert config.hyperparameters("digits", "sgd", "adamw", False, {}) == other
    default = config.packaged_settings()["default"]["adamw"]["sam"]
    assert config.hyperparameters("a.py:f", "adamw", "sam", True, {}) == default


@pytest.mark.parametrize("missing", ["typer", "rich", "pydantic", "yaml"])
def test_a_missing_extra(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from steppe import cli; sys.exit(cli.main(['compare']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    expected = f"{how_to_install(missing, 'compare')}\n"
    assert (done.returncode, done.stderr) == (2, f"steppe: {expected}")


def test_a_missing_extra_from_python():
    code = "import sys; sys.modules['yaml'] = None; import steppe.lab; steppe.lab.compare"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith(f"UserError: {how_to_install('yaml', 'compare')}\n")


@pytest.mark.parametrize(("missing", "call"), [("hessian_eigenthings", ""), ("matplotlib", ".save('there')")])
def test_a_missing_extra_of_the_measures(missing, call, tmp_path):
    code = (
        f"import sys, torch; sys.modules[{missing!r}] = None; import steppe\n"
        "x, y = torch.randn(9, 3), torch.arange(9) % 2\n"
        f"steppe.measure.report(torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, (x, y), budget=90){call}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith(f"ImportError: {how_to_install(missing, 'measure')}\n")


def printed(*words, **more):
    """What the command says as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "steppe", *map(str, words)], stderr=subprocess.PIPE, text=True, check=False, **more
    )


def test_a_terminal_that_knows_no_letter_but_ascii(command, tiny, tmp_path):
    words = ["compare", "--tune", 0, "--task", tiny, "--methods", "sgd", "--base", "sgd", "--seeds", 1, "--jobs", 1]
    words += ["--out", tmp_path / "5 \u00b1 1"]
    assert "5 \u00b1 1" in command(*words)[1]
    ascii = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(SOURCE)}
    done = printed(*words, stdout=subprocess.PIPE, env=ascii)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 +- 1" in done.stdout
    assert "?" not in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has such a device")
def test_an_output_that_takes_nothing(tiny, tmp_path):
    words = ["compare", "--tune", 0, "--task", tiny, "--methods", "sgd", "--base", "sgd", "--seeds", 1, "--jobs", 1]
    with open("/dev/full", "w") as full:
        for again in (["--help"], [*words, "--out", tmp_path / "o"]):
            done = printed(*again, stdout=full)
            assert done.returncode == 1
            assert done.stderr == "steppe: the output cannot be written: No space left on device\n"
    assert len(list((tmp_path / "o" / "trials").iterdir())) == 1  # what was found is kept


def test_what_others_say_is_one_line_of_bounded_length():
    said = describe(ValueError("a\x1b[31mb\n" + "c" * 5000))
    assert said.startswith("ValueError: a?[31mb ccc")
    assert len(said) < 1100


def test_other_import_errors_are_not_taken_for_a_missing_extra():
    assert missing_extra(ModuleNotFoundError("no", name="something_else")) is None
    assert isinstance(missing_extra(ModuleNotFoundError("no", name="sklearn.datasets")), UserError)


def test_the_version(command):
    assert command("--version") == (0, f"steppe {steppe.__version__}\n", "")
    assert command("--version", "compare", "--task", "nowhere") == (0, f"steppe {steppe.__version__}\n", "")


@pytest.mark.parametrize("words", [[], ["compare"], ["sweep"], ["measure"], ["theory"], ["bench"], ["study", "text"]])
def test_both_words_for_help(command, words):
    code, short, error = command(*words, "-h")
    assert (code, error) == (0, "")
    assert f"Usage: {' '.join(['steppe', *words])} " in short
    assert command(*words, "--help") == (0, short, "")


def asking(line: str) -> dict[str, str]:
    """The environment in which bash asks when somebody presses the tabulator at the end of a line."""
    return {"_STEPPE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("steppe co", ["compare"]),
        ("steppe --v", ["--version"]),
        ("steppe compare --keep", ["--keep-weights"]),
        ("steppe compare --task mn", ["mnist1d", "mnist1d-conv"]),
        ("steppe compare --task mine.p", []),  # files are the shell's
        ("steppe sweep --base s", ["sgd"]),
        ("steppe compare --base na", ["nadam"]),
        ("steppe sweep --method lightsam-i", ["lightsam-i", "lightsam-ii", "lightsam-iii"]),
        ("steppe compare --methods adamw,sam,asa", ["adamw,sam,asam"]),
        ("steppe compare --methods asam,asa", []),  # it is listed already
        ("steppe measure runs/a --methods gs", ["gsam"]),
    ],
)
def test_completion(monkeypatch, capsys, line, expected):
    for name, value in asking(line).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main([])
    assert capsys.readouterr().out.split() == expected


def test_completion_does_not_import_what_is_slow():
    script = (
        "import atexit, sys\nfrom steppe import cli\n"
        f"atexit.register(lambda: print('heavy:', [name for name in {HEAVY} if name in sys.modules]))\ncli.command()"
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCE), **asking("steppe compare --methods sam,asa")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines() == ["sam,asam", "heavy: []"]


def test_what_is_completed_is_all_that_there_is():
    from steppe.lab import flags
    from steppe.lab.tasks.builtin import BUILTIN
    from steppe.lab.trials import finding

    bases = [base for base in finding.BASES if finding.refusal(base, (2, 2)) is None]
    assert flags.complete_task("") == list(BUILTIN)
    assert set(bases) <= set(flags.complete_base("")) <= {*bases, "adafactor", "muon"}  # new in torch
    assert set(flags.complete_method("")) == set(flags.complete_methods("")) == {*flags.BASES, *METHODS}


def test_the_completion_of_a_shell_can_be_shown_and_installed(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "HOME": str(tmp_path)}
    shell = ["bash", "-c", '"$0" "$@"; exit $?', sys.executable, "-m", "steppe"]
    shown = subprocess.run([*shell, "--show-completion"], capture_output=True, text=True, check=True, env=env)
    assert "complete -o default -F _steppe_completion steppe" in shown.stdout
    done = subprocess.run([*shell, "--install-completion"], capture_output=True, text=True, check=True, env=env)
    assert "completion installed in" in done.stdout
    (script,) = tmp_path.rglob("steppe.sh")
    assert script.read_text().strip() == shown.stdout.strip()
