"""The command line as a whole: start-up, exit codes, what is printed where."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest
import torch

from omniavatar import __version__
from omniavatar.cli import COMMANDS, diagnosis, run_cli
from omniavatar.cli.videos import VideoMaker
from omniavatar.errors import OmniError
from tests.cli.conftest import Omni


def test_help_is_fast_because_it_does_not_import_torch() -> None:
    script = (
        "import sys; from omniavatar.cli import run_cli; code = run_cli(['--help']); "
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules); "
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


def test_the_module_is_the_program() -> None:
    done = subprocess.run([sys.executable, "-m", "omniavatar", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"omni, version {__version__}\n"


def test_without_arguments_it_shows_its_help(omni: Omni) -> None:
    outcome = omni()
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: omni ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rum",), "no command 'rum' in 'omni'; did you mean 'run'?"),
        (("units", "lst"), "no command 'lst' in 'omni units'; did you mean 'list'?"),
        (("--verison",), "No such option '--verison'. Did you mean '--version'?"),
        (("run", "--imag", "x"), "unknown option '--imag'; did you mean '--image'?"),
    ],
)
def test_misspelt_words_get_a_suggestion(omni: Omni, arguments: tuple[str, ...], message: str) -> None:
    outcome = omni(*arguments)
    assert outcome.code == 2
    assert outcome.error == message


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OmniError("the reason"), 2, "the reason"),
        (click.UsageError("the reason"), 2, "the reason"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB.\nMore"),
            3,
            "out of memory: 8.00 GiB more asked for",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8192 bytes."),
            3,
            "out of memory: 8.00 KiB more asked for",
        ),
        (MemoryError(), 3, "out of memory: "),
    ],
)
def test_errors_of_the_user_are_one_line_and_an_exit_code(
    omni: Omni, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(VideoMaker, "make", raiser(error))
    outcome = omni("run")
    assert outcome.code == code
    assert outcome.error.startswith(message)


def test_what_was_noted_on_an_error_is_printed_with_it(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    error = KeyboardInterrupt()
    error.add_note("9 frames are in x.mp4")
    monkeypatch.setattr(VideoMaker, "make", raiser(error))
    assert omni("run").error == "interrupted; 9 frames are in x.mp4"


def test_faults_of_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("shapes do not match")
    monkeypatch.setattr(VideoMaker, "make", raiser(error))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_cli(["run"])
    assert diagnosis(error) == ("", 1)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("--help",), ("plugins", "list")])
def test_a_closed_pipe_ends_it_quietly(arguments: tuple[str, ...]) -> None:
    script = "import sys; sys.stdin.read(); from omniavatar.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, error = process.communicate()
    assert (process.returncode, error) == (1, b"")


def raiser(error: BaseException) -> Callable[..., Any]:
    """A method that raises."""

    def method(*arguments: Any, **options: Any) -> Any:
        raise error

    return method
