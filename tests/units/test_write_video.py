"""Writing: the whole file or none under its name, opened before the first step; what was finished is kept beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omniavatar.engine.loop import to_bytes
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.run import Result
from omniavatar.engine.scopes import Frames, Job, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import Cancelled, InputError, OutputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.video import probe_video, read_video
from omniavatar.media.writer import VideoWriter, read_metadata
from omniavatar.units import Audio, WriteVideo, write_video
from tests.media.samples import tone, write_wav
from tests.scenes import Scene, denoising_units, fake_engine, request, video_of


class Failing(PipelineUnit):
    """Raises when a window begins, or at the end of the job."""

    name = "failing"

    def __init__(self, error: BaseException, window: int | None = None) -> None:
        super().__init__()
        self.error = error
        self.window = window

    @hookimpl
    def begin_window(self, window: Window) -> None:
        if window.index == self.window:
            raise self.error

    @hookimpl
    def end_job(self, job: Job) -> None:
        if self.window is None:
            raise self.error


def generate(output: Path, *units: PipelineUnit, frames: int = 13, inputs: Any = None) -> tuple[Result, Scene]:
    scene = Scene(frames=frames, texts=(0.05, 0.0))
    engine = fake_engine([scene, *denoising_units(), *units, WriteVideo()])
    return engine.generate(request(inputs={"output": output, **(inputs or {})})), scene


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_holds_the_kept_frames_of_all_windows(tmp_path: Path) -> None:
    result, scene = generate(tmp_path / "new" / "video.mp4")
    assert result.video == tmp_path / "new" / "video.mp4"
    assert names(tmp_path / "new") == ["video.mp4"]
    frames = read_video(result.video)
    assert frames.shape == (13, 16, 16, 3)
    expected = to_bytes(video_of(scene))
    assert np.abs(frames.mean((1, 2, 3)) - expected.mean((1, 2, 3))).max() < 4
    assert probe_video(result.video).has_audio is False


def test_the_sound_is_in_the_file(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "sound.wav", tone(0.3, 16000), 16000)
    engine = fake_engine([Scene(texts=(0.0, 0.0)), Audio(silence=0.1), *denoising_units(), WriteVideo()])
    result = engine.generate(request(inputs={"output": tmp_path / "video.mp4", "audio": sound}))
    info = probe_video(result.video)
    assert info.has_audio
    assert info.frames == result.frames == 11


def test_a_sound_in_memory_is_in_the_file(tmp_path: Path) -> None:
    samples = tone(0.3, 44100).astype(np.float32)
    engine = fake_engine([Scene(texts=(0.0, 0.0)), Audio(silence=0.1), *denoising_units(), WriteVideo()])
    result = engine.generate(request(inputs={"output": tmp_path / "video.mp4", "audio": (samples, 44100)}))
    assert probe_video(result.video).has_audio
    assert result.frames == 11


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The delays of the soundtracks that writers are opened with."""
    seen: list[float | None] = []

    class Noting(VideoWriter):
        def __init__(self, *arguments: Any, soundtrack: Any, **options: Any) -> None:
            seen.append(soundtrack and soundtrack.delay_seconds)
            super().__init__(*arguments, soundtrack=soundtrack, **options)

    monkeypatch.setattr(write_video, "VideoWriter", Noting)
    return seen


def test_the_sound_is_delayed_by_the_silence_and_one_frame(tmp_path: Path, delays: list[float | None]) -> None:
    sound = write_wav(tmp_path / "sound.wav", tone(0.1, 16000), 16000)
    inputs = {"output": tmp_path / "video.mp4", "audio": sound}
    with_unit = [Scene(texts=(0.0, 0.0)), Audio(silence=0.25), *denoising_units(), WriteVideo()]
    fake_engine(with_unit).generate(request(inputs=inputs, fps=20))
    without = [Scene(frames=5, texts=(0.0, 0.0)), *denoising_units(), WriteVideo()]
    fake_engine(without).generate(request(inputs={"output": tmp_path / "video.mp4"}, fps=20))
    assert delays == [0.25 + 1 / 20, None]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_an_interrupted_job_leaves_its_finished_windows(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        generate(tmp_path / "video.mp4", Failing(error, window=1))
    partial = tmp_path / "video.partial.mp4"
    assert names(tmp_path) == ["video.partial.mp4"]
    assert probe_video(partial).frames == 9
    assert caught.value.__notes__ == [f"the 9 finished frames are in {partial}"]


def test_a_failure_in_the_first_window_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"):
        generate(tmp_path / "video.mp4", Failing(ValueError("broken"), window=0))
    assert names(tmp_path) == []


def test_an_older_video_stays_when_a_job_fails_and_goes_when_it_works(tmp_path: Path) -> None:
    output = tmp_path / "video.mp4"
    output.write_bytes(b"old")
    with pytest.raises(ValueError, match="broken"):
        generate(output, Failing(ValueError("broken"), window=0))
    assert output.read_bytes() == b"old"
    generate(output)
    assert probe_video(output).frames == 13


def test_a_failure_at_the_very_end_keeps_all_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"):
        generate(tmp_path / "video.mp4", Failing(ValueError("broken")))
    assert names(tmp_path) == ["video.partial.mp4"]
    assert probe_video(tmp_path / "video.partial.mp4").frames == 13


def test_the_error_of_the_job_is_not_hidden_by_one_of_the_partial_file(tmp_path: Path) -> None:
    (tmp_path / "video.partial.mp4").mkdir()
    with pytest.raises(ValueError, match="broken"):
        generate(tmp_path / "video.mp4", Failing(ValueError("broken"), window=1))
    assert names(tmp_path) == ["video.partial-2.mp4", "video.partial.mp4"]
    assert names(tmp_path / "video.partial.mp4") == []


def test_a_cancelled_job_leaves_nothing(tmp_path: Path) -> None:
    engine = fake_engine([Scene(frames=26, texts=(0.05, 0.0)), *denoising_units(), WriteVideo()])
    run = engine.start(request(inputs={"output": tmp_path / "video.mp4"}))
    next(iter(run))
    run.cancel()
    assert names(tmp_path) == []
    with pytest.raises(Cancelled):
        run.result()


def test_the_file_and_its_sound_are_opened_before_the_first_step(tmp_path: Path) -> None:
    """What would fail at the end fails at the beginning, and what is there by then may vanish."""
    sound = write_wav(tmp_path / "sound.wav", tone(0.3, 16000), 16000)

    class Vanish:
        @hookimpl
        def before_step(self, step: Step) -> None:
            sound.unlink(missing_ok=True)

    units = [Scene(texts=(0.0, 0.0)), Audio(silence=0.1), *denoising_units(), WriteVideo()]
    engine = fake_engine(units, observers=[Vanish()])
    result = engine.generate(request(inputs={"output": tmp_path / "video.mp4", "audio": sound}))
    assert not sound.exists()
    assert probe_video(result.video).has_audio
    folder = tmp_path / "not" / "there"
    folder.parent.write_text("a file")
    steps: list[int] = []

    class Count:
        @hookimpl
        def before_step(self, step: Step) -> None:
            steps.append(step.index)

    with pytest.raises(OutputError):
        fake_engine(units[:1] + units[2:], observers=[Count()]).generate(
            request(0.2, inputs={"output": folder / "video.mp4"})
        )
    assert steps == []
    folder.parent.unlink()


def test_a_resumed_run_writes_what_is_missing(tmp_path: Path) -> None:
    engine = fake_engine([Scene(frames=26, texts=(0.05, 0.0)), *denoising_units(), WriteVideo()])
    asked = request(inputs={"output": tmp_path / "whole.mp4"})
    with engine.start(asked) as run:
        states = [run.state() for _ in run]
    rest = engine.generate(request(inputs={"output": tmp_path / "rest.mp4"}), resume=states[1])
    assert rest.video is not None
    whole, missing = read_video(tmp_path / "whole.mp4"), read_video(rest.video)
    assert len(missing) == 26 - 13
    assert np.abs(whole[13:].astype(int) - missing).mean() < 2


def test_the_file_says_what_made_it(tmp_path: Path) -> None:
    result, _ = generate(tmp_path / "video.mp4")
    assert result.video is not None
    record = json.loads(read_metadata(result.video)["comment"])
    assert record["seed"] == 42
    assert record["plan"] == [repr(unit) for unit in result.plan.units]
    assert record["inputs"] == {"output": str(tmp_path / "video.mp4")}


class Dark(PipelineUnit):
    """Shows black pictures, whatever the next window continues from."""

    name = "dark"

    @hookimpl
    def postprocess_frames(self, frames: Frames) -> None:
        frames.pixels = torch.zeros_like(frames.pixels)


def test_frames_made_for_the_eye_alone_are_written_instead(tmp_path: Path) -> None:
    result, scene = generate(tmp_path / "video.mp4", Dark())
    assert read_video(result.video).max() <= 2
    _, plain = generate(tmp_path / "plain.mp4")
    assert video_of(scene).equal(video_of(plain))


def test_frames_are_written_as_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    inner = VideoWriter.write

    def noting(self: VideoWriter, frames: np.ndarray) -> None:
        written.append(len(frames))
        inner(self, frames)

    monkeypatch.setattr(VideoWriter, "write", noting)
    generate(tmp_path / "video.mp4", frames=20)
    assert written == [1, 8, 4, 4, 3]


def test_the_place_is_checked_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"give a name that ends in \.mp4"):
        generate(tmp_path / "video.avi")
    with pytest.raises(InputError, match="does not exist"):
        generate(tmp_path / "video.mp4", Audio(), inputs={"audio": tmp_path / "none.wav"})


def test_brightness_is_rounded_and_clipped() -> None:
    frames = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 1.0]).view(1, 1, 4, 1, 1)
    made = to_bytes(frames)
    assert made.shape == (4, 1, 1, 1)
    assert made.flatten().tolist() == [0, 0, 1, 255]
    assert to_bytes(torch.tensor([-0.01, 1.01]).view(1, 1, 2, 1, 1)).flatten().tolist() == [0, 255]


def test_settings_are_checked(catalog: Catalog) -> None:
    with pytest.raises(PlanError, match="unit 'write-video': crf = 52"):
        build_plan("default+write-video(crf=52)", catalog)


@pytest.fixture(autouse=True)
def _no_workspace_left(tmp_path: Path) -> Iterator[None]:
    """Hidden working folders are gone after every test."""
    yield
    assert list(tmp_path.rglob(".*")) == []
