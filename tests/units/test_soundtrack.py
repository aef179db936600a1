"""A sound for pictures that follow none: in the file from its beginning, as long as the video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniavatar.errors import PlanError
from omniavatar.media.audio import load_waveform
from omniavatar.media.video import probe_video
from omniavatar.plugins import discover
from omniavatar.units import Soundtrack, WriteVideo
from tests.media.samples import tone, write_wav
from tests.scenes import Scene, denoising_units, fake_engine, request


@pytest.mark.parametrize("in_memory", [False, True])
def test_the_sound_is_heard_from_the_beginning(tmp_path: Path, in_memory: bool) -> None:
    sound = tone(0.2, 16000).astype(np.float32)
    given: Any = (sound, 16000) if in_memory else write_wav(tmp_path / "sound.wav", sound, 16000)
    engine = fake_engine([Scene(frames=13, texts=(0.05, 0.0)), *denoising_units(), Soundtrack(), WriteVideo()])
    result = engine.generate(request(inputs={"output": tmp_path / "a.mp4", "audio": given}))
    assert result.video is not None
    assert probe_video(result.video).frames == result.frames == 13
    heard = load_waveform(result.video, 16000)
    assert np.abs(heard[: round(0.18 * 16000)]).max() > 0.1
    assert np.abs(heard[round(0.25 * 16000) :]).max() < 0.05


def test_without_a_sound_the_video_is_silent(tmp_path: Path) -> None:
    engine = fake_engine([Scene(frames=5, texts=(0.05, 0.0)), *denoising_units(), Soundtrack(), WriteVideo()])
    result = engine.generate(request(inputs={"output": tmp_path / "a.mp4"}))
    assert result.video is not None
    assert not probe_video(result.video).has_audio


def test_presets_without_a_voice_take_a_sound_all_the_same() -> None:
    from omniavatar.engine.plan import build_plan, parse

    catalog = discover().catalog()
    for name, expression in catalog.presets.items():
        units = parse(expression, catalog)
        if "write-video" in units:
            assert {"audio", "soundtrack", "s2v-audio"} & units.keys(), f"{name} has no unit for a sound"
    with pytest.raises(PlanError, match="its audio layers would hear nothing"):
        build_plan("default+soundtrack", catalog)
    with pytest.raises(PlanError, match="both provide 'soundtrack'"):
        build_plan("default-audio-adapter+soundtrack", catalog)
