from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import typer

from training import __main__ as entry
from training.common import console
from training.common.errors import DataError, MissingGroupError, nearest

FEW_SPINS = 10_000  # libgomp's own choice is 300,000 and more: milliseconds of spinning


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    original = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in modules else original(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def run(load: Callable[[], typer.Typer], *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        console.run("dvib-toy", load, arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("group", "module", "advice"),
    [
        ("training", "torch", "pip install 'dvib[training]'"),
        ("export", "onnxscript", "pip install 'dvib[export]'"),
        ("service", "fastapi", "pip install 'dvib[service]'"),
        ("cpu", "faiss", "pip install 'dvib[cpu]' (with CUDA: gpu instead of cpu)"),
    ],
)
def test_a_missing_group_names_the_installation(
    monkeypatch: pytest.MonkeyPatch, group: str, module: str, advice: str
) -> None:
    hide(monkeypatch, module)
    with pytest.raises(MissingGroupError) as caught:
        console.require_groups(group)
    assert str(caught.value) == f"this command needs {module}; run: {advice}"


def test_several_missing_groups_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "uvloop", "faiss")
    with pytest.raises(MissingGroupError, match=r"needs uvloop, faiss; run: pip install 'dvib\[service,cpu\]'"):
        console.require_groups("service", "cpu")


def test_a_missing_group_ends_the_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "torch", "sklearn")
    monkeypatch.setattr(sys, "argv", ["dvib-train", "fit"])
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == console.EXIT_BAD_INPUT
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "dvib-train: this command needs torch, sklearn; run: pip install 'dvib[training]'\n"


@pytest.mark.parametrize(("cpu", "gpu"), [("faiss-cpu", "faiss-gpu"), ("onnxruntime", "onnxruntime-gpu")])
def test_packages_that_overwrite_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cpu: str, gpu: str
) -> None:
    monkeypatch.setattr(console, "_installed", lambda name: name in {cpu, gpu})
    monkeypatch.setattr(sys, "argv", ["dvib-train", "fit"])
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == console.EXIT_BAD_INPUT
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"dvib-train: {cpu} and {gpu} are both installed")
    assert f"pip uninstall -y {cpu} {gpu}" in err


def test_groups_that_are_there_are_accepted() -> None:
    console.require_groups("training")
    assert not console._installed("no-such-distribution-of-dvib")
    assert console._installed("numpy")


def app_that(action: Callable[[], object]) -> Callable[[], typer.Typer]:
    app = console.make_app("A toy.")

    @app.command()
    def act() -> None:
        action()

    return lambda: app


def test_an_expected_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise DataError("the file\n  is broken")

    assert run(app_that(fail)) == console.EXIT_BAD_INPUT
    assert capsys.readouterr() == ("", "dvib-toy: the file is broken\n")


def test_a_strangers_words_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise DataError("the file \x1b[2Jis broken")

    assert run(app_that(fail)) == console.EXIT_BAD_INPUT
    assert capsys.readouterr() == ("", "dvib-toy: 'the file \\x1b[2Jis broken'\n")


def test_an_unexpected_error_is_not_dressed_up() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        console.run("dvib-toy", app_that(fail), [])


def test_a_command_that_says_different_and_one_that_succeeds() -> None:
    def different() -> None:
        raise typer.Exit(console.EXIT_DIFFERENT)

    assert run(app_that(different)) == 1
    assert run(app_that(lambda: None)) == 0


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["surplus"]])
def test_a_wrong_command_line_is_bad_input(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that(lambda: None), *arguments) == console.EXIT_BAD_INPUT
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("dvib-toy: ")


def test_an_interrupt_is_neither_different_nor_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run(app_that(interrupt)) == 130
    assert capsys.readouterr().err == "dvib-toy: interrupted\n"


def test_what_the_file_system_refuses_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        (tmp_path / "none" / "file").read_text()

    assert run(app_that(fail)) == console.EXIT_BAD_INPUT
    assert capsys.readouterr().err == f"dvib-toy: {tmp_path / 'none' / 'file'}: No such file or directory\n"


def test_nearest() -> None:
    assert nearest("recal", ["recall", "ndcg"]) == "; did you mean 'recall'?"
    assert nearest("x", ["recall", "ndcg"]) == "; known: ndcg, recall"


def python(code: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=True
    )
    return (done.stdout + done.stderr).strip()


def test_importing_training_settles_openmp_and_loads_nothing_heavy() -> None:
    code = (
        "import training, os, sys, pkgutil, importlib, training.__main__, training.common, training.common.allocator\n"
        "for module in pkgutil.iter_modules(training.common.__path__, 'training.common.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'torch_geometric', 'sklearn', 'polars', 'faiss', 'onnxruntime', 'safetensors'}\n"
        "print(os.environ['GOMP_SPINCOUNT'], sorted(heavy & set(sys.modules)))\n"
    )
    spins, loaded = python(code).split(maxsplit=1)
    assert loaded == "[]"
    assert int(spins) <= FEW_SPINS
    assert python(code, GOMP_SPINCOUNT="77") == "77 []"  # somebody's own choice is kept


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is what torch uses on Linux")
def test_libgomp_itself_sees_the_setting() -> None:
    shown = re.search(r"GOMP_SPINCOUNT = '(\d+)'", python("import training, torch", OMP_DISPLAY_ENV="VERBOSE"))
    assert shown is not None
    assert int(shown[1]) <= FEW_SPINS
