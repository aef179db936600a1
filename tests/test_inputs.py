"""Every unit takes its pictures, sounds and videos from files and from memory, and refuses all else in one line."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omniavatar.engine.media_inputs import inner_marks
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import InputError
from omniavatar.media.audio import load_waveform
from omniavatar.media.clip import Clip
from omniavatar.media.image import load_image
from omniavatar.media.sound import Samples
from omniavatar.media.video import read_video
from omniavatar.plugins import discover
from tests.media.samples import single_line, tone, write_lossless, write_wav

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
FRAMES = np.random.default_rng(1).integers(0, 256, (5, 20, 24, 3), np.uint8)
SOUND = np.rint(tone(0.2, 16000) * 32767).astype(np.int16)


def media_inputs() -> Iterator[Any]:
    """Each input of each unit that holds a picture, a sound or a video, with what it holds."""
    for unit in discover().catalog().units.values():
        for name, info in unit.Inputs.model_fields.items():
            kinds = {getattr(mark, "kind", "") for mark in (*info.metadata, *inner_marks(info.annotation))}
            for kind in kinds & {"image", "audio", "video"}:
                yield pytest.param(unit, name, kind, id=f"{unit.name}.{name}")


MEDIA = list(media_inputs())


def given(folder: Path, kind: str) -> Iterator[Any]:
    """One picture, sound or video in all forms in which it may be given."""
    if kind == "image":
        path = folder / "a.png"
        Image.fromarray(PICTURE).save(path)
        yield from (Image.fromarray(PICTURE), PICTURE, PICTURE / 255, torch.from_numpy(PICTURE).permute(2, 0, 1))
    elif kind == "audio":
        path = write_wav(folder / "a.wav", tone(0.2, 16000), 16000)
        yield from ((SOUND, 16000), (torch.from_numpy(SOUND / 32768)[None], 16000))
        yield Samples((SOUND / 32768).astype(np.float32)[:, None], 16000)
    else:
        path = write_lossless(folder / "a.mkv", FRAMES)
        yield from ((FRAMES, 25), (torch.from_numpy(FRAMES), 25.0), ([*map(Image.fromarray, FRAMES)], 25))
    yield from (path, str(path), path.read_bytes(), BytesIO(path.read_bytes()))


def parsed(unit: type[PipelineUnit], name: str, value: Any) -> Any:
    """What a unit sees of an input; of several, the only one."""
    required = {"image": PICTURE} if "image" in unit.Inputs.model_fields else {}
    seen = getattr(unit.Inputs(**{**required, name: value}), name)
    return seen[0] if isinstance(seen, tuple) else seen


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "name", "kind"), MEDIA)
def test_what_is_in_memory_is_what_a_file_holds(unit: type[PipelineUnit], name: str, kind: str, tmp_path: Path) -> None:
    kept = {"image": np.ndarray, "audio": Samples, "video": Clip}[kind]
    for value in given(tmp_path, kind):
        seen = parsed(unit, name, value)
        assert isinstance(seen, (Path, kept)), type(value)
        if kind == "image":
            np.testing.assert_array_equal(load_image(seen), PICTURE)
        elif kind == "audio":
            np.testing.assert_allclose(load_waveform(seen), SOUND / 32768, atol=1e-6)
        else:
            np.testing.assert_array_equal(read_video(seen, fps=25), FRAMES)


@pytest.mark.parametrize(("unit", "name", "kind"), MEDIA)
@pytest.mark.parametrize(
    "value", [5, "", "no-such-file", b"", b"hello", torch.zeros(3, 5, 7, 9, 2), {}, "~/no-such-file"]
)
def test_all_else_is_refused_in_one_line(unit: type[PipelineUnit], name: str, kind: str, value: Any) -> None:
    reading = {"image": load_image, "audio": load_waveform, "video": read_video}[kind]
    with pytest.raises(InputError) as caught:
        reading(parsed(unit, name, value))
    assert len(single_line(caught.value)) < 200
