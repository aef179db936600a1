"""The command line as a whole: start-up, exit codes, what is printed where."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
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


STREAMS = """
import io, os, sys
from omniavatar import cli
from omniavatar.cli.console import show, tell
import click

@click.command()
def work():
    for name in ("a", "\u0432\u044b\u0445\u043e\u0434 [b]", "c"):
        tell(f"{name}  (made)")
    print("all made", file=sys.stderr)
    return 5

@click.command()
def listing():
    show("x" * 100000)

cli.build_cli = lambda: click.Group("omni", {"work": work, "listing": listing})
sys.exit(cli.run_cli(sys.argv[1:]))
"""


def with_stdout(stdout: Any, *arguments: str, encoding: str = "utf-8", unbuffered: str = "") -> tuple[int, str]:
    """Exit code and stderr of commands that print, with this stdout."""
    done = subprocess.run(
        [sys.executable, "-c", STREAMS, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": unbuffered},
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_report_that_cannot_be_printed_does_not_end_the_work(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        said = "omni: cannot print: No space left on device; the work is not affected\nall made\n"
        assert with_stdout(full, "work", unbuffered=unbuffered) == (5, said)
        assert with_stdout(full, "listing", unbuffered=unbuffered) == (
            1,
            "omni: cannot print: No space left on device\n",
        )
        assert with_stdout(full, "--help", unbuffered=unbuffered) == (
            1,
            "omni: cannot print: No space left on device\n",
        )


def test_nobody_reads_the_report() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert with_stdout(writer, "work") == (5, "all made\n")
        assert with_stdout(writer, "listing") == (1, "")
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("latin-1", r"\u0432\u044b\u0445\u043e\u0434"),
        ("cp1252", r"\u0432\u044b\u0445\u043e\u0434"),
        ("utf-8", "\u0432\u044b\u0445\u043e\u0434"),
    ],
)
def test_names_that_stdout_cannot_show_are_written_in_ascii(tmp_path: Path, encoding: str, name: str) -> None:
    with (tmp_path / "out").open("w") as stdout:
        assert with_stdout(stdout, "work", encoding=encoding) == (5, "all made\n")
    assert (tmp_path / "out").read_text(encoding).splitlines() == ["a  (made)", f"{name} [b]  (made)", "c  (made)"]


@pytest.mark.parametrize("arguments", [("-h",), ("help",), ("help", "units"), ("units", "-h"), ("run", "-h")])
def test_help_has_the_usual_short_names(omni: Omni, arguments: tuple[str, ...]) -> None:
    outcome = omni(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: omni ")


@pytest.mark.parametrize("argument", ["version", "-V", "--version"])
def test_the_version_too(omni: Omni, argument: str) -> None:
    assert omni(argument).out == f"omni, version {__version__}\n"


def raiser(error: BaseException) -> Callable[..., Any]:
    """A method that raises."""

    def method(*arguments: Any, **options: Any) -> Any:
        raise error

    return method
