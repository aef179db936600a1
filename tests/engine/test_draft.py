"""What is wrong with a request is said before anything is loaded, whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from omniavatar.engine.draft import Draft
from omniavatar.engine.engine import Engine
from omniavatar.engine.hooks import Hooks
from omniavatar.engine.outline import Length, settle_length, settle_size
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.scopes import Job, Request
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, InputError, OmniError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.media.image import load_image, picture_size
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing.tiny import DIT, TinyModels
from tests.scenes import bare_job, denoising_units, fake_engine

TOO_LARGE = "is too large for this model: 800 tokens hold"
PORTRAIT = np.zeros((40, 20, 3), np.uint8)
SETTINGS: dict[str, dict[str, Any]] = {
    "reference-image": {"sizes": [[32, 32], [512, 256]]},
    "fixed-frames": {"max_tokens": 800},
}


class OnlyHeaders(TinyModels):
    """Models that must not be loaded; `tokenizer_folder` is another folder for it."""

    tokenizer_folder: Path | None = None

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        raise AssertionError(f"{role} was loaded")

    def beside(self, role: str, path: Path) -> Path:
        return self.tokenizer_folder or super().beside(role, path)


def engine(catalog: Catalog, units: str = "default-write-video", models: OnlyHeaders | None = None) -> Engine:
    chosen = build_plan(units, catalog)
    settings = {name: values for name, values in SETTINGS.items() if name in chosen}
    return Engine(build_plan(units, catalog, settings), models or OnlyHeaders())


def asked(inputs: dict[str, Any] | None = None, size: tuple[int, int] = (32, 32), seconds: float | None = 1) -> Request:
    return Request(inputs or {}, height=size[0], width=size[1], seconds=seconds)


CASES: list[tuple[str, Request, type[OmniError], str]] = [
    ("default", asked(size=(256, 256)), PlanError, f"size 256x256 {TOO_LARGE} 9 frames a chunk, 17 are needed"),
    ("default", asked(size=(2**20, 2**20)), PlanError, f"{TOO_LARGE} 0 frames a chunk, 17 are needed; use 208x208"),
    ("default", Request({"image": PORTRAIT}, seconds=1), PlanError, f"size 256x512 {TOO_LARGE} 5 frames"),
    ("default-fixed-frames", asked(size=(40, 32)), InputError, "size 32x40 is not made of positive multiples of 16"),
    ("default", asked(seconds=None), InputError, r"no audio is given, so the length .* one \(--audio FILE\), or "),
    ("default-audio-audio-adapter", asked(seconds=None), InputError, "length of the video is unknown; give seconds"),
    ("default-reference-image", asked(), PlanError, "the transformer takes 33 channels and the plan makes 16; add"),
    ("default+fixed-frames(window_frames=9)", asked(), PlanError, "a window of 9 frames is not longer than its"),
]


@pytest.mark.parametrize(("units", "request_", "kind", "message"), CASES)
def test_nothing_is_loaded_to_find_out(
    units: str, request_: Request, kind: type[OmniError], message: str, catalog: Catalog
) -> None:
    maker = engine(catalog, f"{units}-write-video")
    for look in (maker.check_request, maker.start):
        with pytest.raises(kind, match=message):
            look(request_)


@pytest.mark.parametrize("name", ["audio", "image"])
def test_files_are_looked_into(name: str, catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"neither a sound nor a picture" * 100)
    with pytest.raises(InputError, match=f"{name} .*file"):
        engine(catalog).start(asked({name: file}))


def test_settings_of_a_run_count(catalog: Catalog) -> None:
    maker = engine(catalog)
    maker.check_request(asked(size=(256, 256)), settings={"fixed-frames": {"max_tokens": 1600}})
    with pytest.raises(PlanError, match="64 tokens hold 61 frames a chunk, 69 are"):
        maker.start(asked(), settings={"fixed-frames": {"max_tokens": 64, "overlap": 65}, "schedule": {"steps": 1}})


def test_what_an_error_proposes_is_accepted(catalog: Catalog) -> None:
    """A size of another shape too, up to the first one that is refused."""
    maker = engine(catalog)
    maker.check_request(asked(size=(208, 208)))
    with pytest.raises(PlanError, match=r"use 304x144 or less, or fixed-frames\.max_tokens=3200") as caught:
        maker.check_request(asked(size=(256, 512)))
    maker.check_request(asked(size=(144, 304)))
    tokens = int(str(caught.value).rpartition("=")[2])
    maker.check_request(asked(size=(256, 512)), settings={"fixed-frames": {"max_tokens": tokens}})


@pytest.mark.parametrize("content", [None, "{}", "[" * 100_000, "\0"])
def test_a_tokenizer_that_cannot_be_read(content: str | None, catalog: Catalog, tmp_path: Path) -> None:
    models = OnlyHeaders()
    models.tokenizer_folder = tmp_path / "tokenizer"
    message = "no tokenizer folder at"
    if content is not None:
        models.tokenizer_folder.mkdir()
        (models.tokenizer_folder / "tokenizer.json").write_text(content)
        message = "no tokenizer can be read from"
    with pytest.raises(CheckpointError, match=message) as caught:
        engine(catalog, models=models).start(asked())
    assert "\n" not in str(caught.value)


def test_without_pictures_the_size_must_be_given(catalog: Catalog) -> None:
    maker = engine(catalog, "default-reference-image-write-video", OnlyHeaders(dit=WanDiT(**{**DIT, "in_dim": 16})))
    maker.check_request(asked())
    with pytest.raises(InputError, match=r"the size of the video is unknown; give its height and width \(--size\)"):
        maker.check_request(Request(seconds=1))


# Who has a say --------------------------------------------------------------------------------------------------------


class Limited(PipelineUnit):
    """Says how long a video is at most, and a size."""

    name = "limited"

    def __init__(self, length: Length, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.length, self.size = length, size

    @hookimpl
    def plan_length(self) -> Length:
        return self.length

    @hookimpl
    def plan_size(self) -> tuple[int, int] | None:
        return self.size


class Second(Limited):
    """Another one."""

    name = "second"


@pytest.mark.parametrize(
    ("seconds", "lengths", "frames"),
    [
        (1, [Length(9), Length(5)], 5),
        (0.12, [Length(9), Length(5)], 3),
        (None, [Length(9), Length(5)], 5),
        (None, [Length(3, is_limit=False), Length(5)], 5),
        (1, [Length(3, is_limit=False)], 25),
        (None, [Length(7, is_limit=False), Length(5, is_limit=False)], 7),
        (None, [Length(lambda job: job.fps)], 25),
        (None, [], None),
    ],
)
def test_the_shortest_limit_counts_or_else_the_first_offer(
    seconds: float | None, lengths: list[Length], frames: int | None
) -> None:
    units = [kind(length) for kind, length in zip((Limited, Second), lengths, strict=False)]
    made = fake_engine([*units, *denoising_units()])
    asked_for = Request(seconds=seconds, height=16, width=16)
    draft = Draft(made, made.plan, asked_for)
    draft.settle(Hooks(units))
    assert draft.has_length == (frames is not None)
    job = bare_job(asked=asked_for)
    settle_length(Hooks(units), job)
    assert job.frames == frames


def test_the_first_size_counts_unless_one_is_asked_for() -> None:
    hooks = Hooks([Limited(Length(1)), Second(Length(1), (32, 48))])
    for asked_for, size in ((Request(), (32, 48)), (Request(height=64, width=80), (64, 80))):
        job = bare_job(asked=asked_for)
        settle_size(hooks, job)
        assert job.size == size
    with pytest.raises(InputError, match="the size 36x32 is not made of positive multiples of 8"):
        settle_size(hooks, bare_job(asked=Request(height=32, width=36)))


def test_a_length_that_is_not_asked_for_before_loading(catalog: Catalog) -> None:
    """A sound says that it sets the length, and is not read for it."""
    plan = build_plan("default-write-video", catalog)

    def read(job: Job) -> int:
        raise AssertionError("it was read")

    late = Plan((*plan.units, Limited(Length(read))))
    Engine(late, OnlyHeaders()).check_request(Request(height=64, width=64))
    with pytest.raises(InputError, match="the length of the video is unknown"):
        Engine(plan, OnlyHeaders()).check_request(Request(height=64, width=64))


def test_a_wrapper_sees_what_all_others_say(catalog: Catalog) -> None:
    seen = []

    class Look(PipelineUnit):
        name = "look"

        @hookimpl(wrapper=True)
        def check_request(self, draft: Draft) -> Iterator[None]:
            seen.append((draft.size, draft.condition, draft.has_length))
            yield
            seen.append((draft.size, draft.condition, draft.has_length))

    plan = build_plan("look+default-write-video", Catalog({**catalog.units, "look": Look}, catalog.presets))
    sound = (np.zeros(1600, np.float32), 16000)
    Engine(plan, OnlyHeaders()).check_request(Request({"image": PORTRAIT, "audio": sound}))
    assert seen == [((720, 400), None, True), ((720, 400), 17, True)]


# The shape of a picture -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_the_header_tells_the_size_that_the_picture_has(orientation: int | None, tmp_path: Path) -> None:
    picture, exif = Image.new("RGB", (48, 32)), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert picture_size(tmp_path / "a.jpg") == load_image(tmp_path / "a.jpg").shape[:2]
    assert picture_size(np.zeros((20, 30, 3), np.uint8)) == (20, 30)
