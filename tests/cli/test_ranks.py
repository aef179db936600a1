"""Ranks that fail, die or hang, for real: `omni run --gpus 2` with a unit that misbehaves on one of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from omniavatar.cli.ranks import Rescue, as_rank, check_ranks, diagnosis_of_rank, speak
from omniavatar.config import RunConfig, parse_config
from omniavatar.distributed.leaving import Stopped, Stuck
from omniavatar.distributed.world import ALONE, World
from omniavatar.engine.scopes import Window
from omniavatar.engine.settings import Setting, Strength
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.video import probe_video
from omniavatar.opening import spread
from omniavatar.resources import asset
from tests.cli.conftest import SMALL, Omni, tree
from tests.scenes import Scene, denoising_units, fake_engine, request

pytestmark = pytest.mark.usefixtures("interruptible")
UNIT = '''
import ctypes
import os
import signal
import time
from pathlib import Path

from pydantic import Field

from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import InputError
from omniavatar.hookspecs import hookimpl


class Misbehave(PipelineUnit):
    """Does something on one rank, in the second step of the second window."""

    name = "misbehave"

    class Settings(UnitSettings):
        how: str = Field(description="what it does")
        rank: int = Field(1, description="where")

    @hookimpl
    def before_step(self, step):
        if (step.engine.world.rank, step.window.index, step.index) == (self.settings.rank, 1, 1):
            Path(f"{self.settings.how}.{os.getpid()}").touch()
            getattr(self, self.settings.how)()

    def reject(self):
        raise InputError("this cannot be done")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def sleep(self):
        time.sleep(1000)

    def deadlock(self):
        mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
        lock(mutex)
        lock(mutex)

    def vanish(self):
        os._exit(7)


@hookimpl
def omni_units():
    return [Misbehave]
'''
ROOT = Path(__file__).parents[2]
STOP_SECONDS = 5.0
"""All processes are gone within this time after a rank has failed, and after its time-out when it hangs."""


@dataclass
class Ended:
    """A command that has ended: its exit code, the lines on stderr but progress, and how long its end took."""

    code: int
    lines: list[str]
    seconds: float


@pytest.fixture
def misbehave(install: Callable[[str, str], None], tmp_path: Path, folder: Path) -> Callable[..., Ended]:
    """`misbehave("die")` makes a video on two ranks, of which one does that in the second window."""
    install("misbehaving", UNIT)

    def call(how: str, *options: str, interrupt: bool = False) -> Ended:
        units = f"default+misbehave(how={how})"
        command = [sys.executable, "-m", "omniavatar", *run_command("--gpus", "2", "--units", units, *options)]
        with (tmp_path / "stderr").open("w+") as errors:
            process = subprocess.Popen(
                command, env=environment(tmp_path / "site"), stderr=errors, cwd=folder, start_new_session=True
            )
            try:
                marker = wait_for(folder, f"{how}.*", process)
                begin = time.monotonic()
                if interrupt:
                    os.killpg(process.pid, signal.SIGINT)
                code = process.wait(60)
                seconds = time.monotonic() - begin
                assert not is_running(int(marker.suffix[1:]))
            finally:
                kill_group(process.pid)
            marker.unlink()
            errors.seek(0)
            lines = [line for line in errors.read().splitlines() if not re.match("loaded |chunk ", line)]
        return Ended(code, lines, seconds)

    return call


def environment(site: Path | None = None) -> dict[str, str]:
    """For a process that finds this code and what is installed in `site`."""
    places = [str(place) for place in (site, ROOT) if place is not None]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}


def run_command(*options: str) -> Sequence[str]:
    """The arguments for a video of two windows."""
    inputs = ("--image", str(asset("demo", "portrait.png")), "--audio", str(asset("demo", "speech.flac")))
    return ["run", "--device", "cpu", *SMALL, "--schedule.steps", "2", *inputs, "-o", "talk.mp4", *options]


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> Path:
    """The file of this pattern, once it is there."""
    while process.poll() is None or list(folder.glob(pattern)):
        for found in folder.glob(pattern):
            return found
        time.sleep(0.02)
    raise AssertionError(f"ended with {process.returncode} and without {pattern}")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def kill_group(group: int) -> None:
    """End what may be left of a failed test."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def partial_of(folder: Path) -> str:
    """What is said of the finished window, which is all that is left in the folder."""
    assert tree(folder) == {"talk.partial.mp4"}
    path = folder / "talk.partial.mp4"
    info = probe_video(path)
    assert (info.frames, info.has_audio) == (9, True)
    return f"the 9 finished frames are in {path}"


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_all(misbehave: Callable[..., Ended], folder: Path) -> None:
    ended = misbehave("die")
    assert ended.lines == [f"omni: rank 1 was ended by SIGKILL; was there enough memory?; {partial_of(folder)}"]
    assert ended.code == 128 + signal.SIGKILL
    assert ended.seconds < STOP_SECONDS


@pytest.mark.slow
def test_a_rank_that_hangs_ends_all_after_the_timeout(misbehave: Callable[..., Ended], folder: Path) -> None:
    ended = misbehave("sleep", "--timeout", "3")
    (line,) = ended.lines
    kept = partial_of(folder)
    late = "omni: rank 1 kept the others waiting for longer than --timeout; it was at "
    assert re.fullmatch(rf"{late}.*misbehaving.py, line \d+, in sleep; {re.escape(kept)}", line)
    assert ended.code == 4
    assert 3 < ended.seconds < 3 + STOP_SECONDS


@pytest.mark.slow
def test_a_rank_that_hangs_inside_a_library_is_named_too(misbehave: Callable[..., Ended], folder: Path) -> None:
    (line,) = misbehave("deadlock", "--timeout", "2").lines
    late = "omni: rank 1 kept the others waiting for longer than --timeout; it was at "
    assert re.fullmatch(rf"{late}.*misbehaving.py, line \d+, in deadlock; {re.escape(partial_of(folder))}", line)


@pytest.mark.slow
def test_a_rank_that_a_library_ends_is_named(misbehave: Callable[..., Ended], folder: Path) -> None:
    ended = misbehave("vanish")
    (line,) = ended.lines
    assert line == f"omni: rank 1 ended with exit code 7 and did not say why; {partial_of(folder)}"
    assert ended.code == 7


@pytest.mark.slow
def test_a_users_error_on_one_rank_ends_all(misbehave: Callable[..., Ended], folder: Path) -> None:
    ended = misbehave("reject")
    assert ended.lines == [f"omni: rank 1: this cannot be done; {partial_of(folder)}"]
    assert ended.code == InputError.exit_code
    assert ended.seconds < STOP_SECONDS


@pytest.mark.slow
def test_interrupt(misbehave: Callable[..., Ended], folder: Path) -> None:
    ended = misbehave("sleep", interrupt=True)
    assert ended.lines == [f"omni: interrupted; {partial_of(folder)}"]
    assert ended.code == 130
    assert ended.seconds < STOP_SECONDS


@pytest.mark.slow
def test_torchrun_starts_ranks_too(folder: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = [*launcher, "-m", "omniavatar", *run_command("--quiet", "--json")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=60)
    figures = json.loads(done.stdout)  # one line, from the first rank
    assert "sequence-parallel" in figures["units"]
    assert tree(folder) == {"talk.mp4"}
    assert probe_video(folder / "talk.mp4").frames == figures["frames"]


def config(**fields: Any) -> RunConfig:
    return parse_config(fields, "test")


def test_more_ranks_than_gpus_are_refused() -> None:
    ranks = torch.cuda.device_count() + 1
    with pytest.raises(InputError, match=f"--gpus is {ranks + 1} and there are {ranks - 1} GPUs here"):
        check_ranks(ALONE, config(gpus=ranks + 1))
    check_ranks(ALONE, config(gpus=2, device="cpu"))


def test_more_ranks_than_the_machine_can_hold_are_refused(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniavatar.cli.ranks.available_cores", lambda: 2)
    error = omni(*run_command("--gpus", "1000"))
    assert (error.code, error.error) == (2, "--gpus is 1000 and with --device cpu there are up to 8 here, for 2 cores")
    monkeypatch.setattr("omniavatar.cli.ranks.available_cores", lambda: 64)
    monkeypatch.setattr("omniavatar.engine.out_of_memory.host_memory", lambda: (3 * 2**30, 8 * 2**30))
    check_ranks(ALONE, config(gpus=6, device="cpu"))
    with pytest.raises(InputError, match=r"there are up to 6 here, for 3\.0 GiB of free memory"):
        check_ranks(ALONE, config(gpus=7, device="cpu"))


def test_several_ranks_on_one_gpu_are_refused() -> None:
    message = "there are 2 ranks and --device is the one GPU 'cuda:1'; leave --device out"
    with pytest.raises(InputError, match=message):
        check_ranks(ALONE, config(gpus=2, device="cuda:1"))
    with pytest.raises(InputError, match=message):
        check_ranks(World(size=2), config(device="cuda:1"))
    check_ranks(ALONE, config(device="cuda:1"))


def test_an_impossible_split_is_refused_before_anything_starts(omni: Omni, folder: Path) -> None:
    done = omni(*run_command("--gpus", "3", "--units", "default+sequence-parallel(ulysses=3)"))
    message = "sequence-parallel(ulysses=3) does not fit 3 ranks and 2 heads; valid: ulysses=1, ring=3"
    assert (done.code, done.error) == (2, message)
    assert tree(folder) == set()


def test_other_ranks_than_have_been_started_are_refused() -> None:
    with pytest.raises(InputError, match="--gpus is 4 and 2 ranks have been started; leave --gpus out"):
        check_ranks(World(size=2), config(gpus=4))
    check_ranks(World(size=2), config(gpus=2))
    check_ranks(World(size=2), config())


@pytest.mark.parametrize(
    ("chosen", "ranks", "added"),
    [
        ({"euler": {}}, 1, {}),
        ({"euler": {}}, 2, {"sequence-parallel": {}}),
        ({"euler": {}, "vae-parallel": {}}, 2, {"sequence-parallel": {}}),
        ({"guidance-parallel": {}}, 2, {}),
        ({"guidance-parallel": {}}, 4, {"sequence-parallel": {}}),
        ({"sequence-parallel": {"ring": 2}}, 2, {}),
    ],
)
def test_several_ranks_share_the_calls(chosen: dict[str, Any], ranks: int, added: dict[str, Any]) -> None:
    assert spread(chosen, ranks, {}) == {**chosen, **added}


def test_guidance_leaves_ranks_according_to_its_degree() -> None:
    chosen: dict[str, Any] = {"guidance-parallel": {}}
    for degree, is_added in ((2, True), (3, False), ("many", True)):
        settings = {"guidance-parallel": {"degree": Setting(degree, Strength.FILE, "file x")}}
        assert ("sequence-parallel" in spread(chosen, 3, settings)) is is_added


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("bad input"), 2, "bad input"),
        (MemoryError("no more"), 3, "out of memory: .*no more; try .*a smaller --size"),
        (ZeroDivisionError("oops"), 1, "ZeroDivisionError: oops"),
        (Stopped(signal.SIGINT, ""), 130, "ended by SIGINT"),
        (Stopped(signal.SIGTERM, "here"), 143, "ended by SIGTERM"),
        (Stuck("here"), 4, "got nothing done for longer than --timeout, at here"),
        (
            distributed.DistBackendError("wait timeout after 20000ms\nmore"),
            4,
            r"another rank has stopped or did not answer in time \(wait timeout after 20000ms\)",
        ),
        (RuntimeError("[gloo/pair.cc] Connection closed by peer"), 4, "another rank has stopped or did not .*"),
        (RuntimeError("ProcessGroupGloo::allreduce: unsupported dtype"), 1, "RuntimeError: .*unsupported dtype"),
        (distributed.DistBackendError("NCCL: Duplicate GPU detected"), 1, "(?s).*DistBackendError: .*Duplicate GPU.*"),
    ],
)
def test_what_a_rank_says_of_an_error(error: BaseException, code: int, message: str) -> None:
    said, exit_code = diagnosis_of_rank(error)
    assert exit_code == code
    assert re.fullmatch(message, said)


def test_a_rank_without_our_launcher_speaks_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    error = InputError("bad input")
    error.add_note("9 frames are kept")
    assert speak(World(rank=3, size=4), error) == 2
    assert capsys.readouterr().err == "omni: rank 3: bad input; 9 frames are kept\n"


def test_a_rank_alone_just_works() -> None:
    assert as_rank(ALONE, torch.device("cpu"), 1.0, lambda: 7, Rescue()) == 7
    assert not distributed.is_initialized()


def test_rescue_closes_the_job_that_is_in_work() -> None:
    errors: list[BaseException | None] = []
    rescue, error = Rescue(), InputError("lost")
    rescue(InputError("no job yet"))

    class Lose:
        @hookimpl
        def end_window(self, window: Window) -> None:
            window.job.resources.push(lambda kind, error, trace: errors.append(error))
            rescue(error)

    fake_engine([Scene(frames=5), *denoising_units()], observers=[rescue, Lose()]).generate(request())
    assert errors == [error]
    rescue(InputError("no job any more"))
    assert errors == [error]


def test_a_rank_is_idle_since_the_last_hook() -> None:
    rescue, seen = Rescue(), []

    class Look:
        @hookimpl
        def before_step(self) -> None:
            time.sleep(0.01)
            seen.append((rescue.progress, rescue.idle()))

    fake_engine([Scene(frames=5), *denoising_units()], observers=[Look(), rescue]).generate(request())
    assert [progress for progress, _ in seen] == sorted({progress for progress, _ in seen})
    assert all(idle > 0.009 for _, idle in seen)
    assert rescue.idle() < seen[0][1] + 0.01
    rescue.note()
    assert rescue.progress > seen[-1][0]
