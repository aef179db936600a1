"""Numbers that are none end a video with a reason, instead of making it black."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from omniavatar.engine.finite import Watch, total
from omniavatar.engine.scopes import Forward, Frames, Job, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import NotFinite
from omniavatar.hookspecs import hookimpl
from omniavatar.media.video import probe_video
from omniavatar.testing import FakeDiT, FakeVAE
from omniavatar.units import WriteVideo
from tests.scenes import Scene, denoising_units, fake_engine, fake_models, request

NAN, INF = float("nan"), float("inf")
DAMAGED = "a model or LoRA file is damaged: compare its checksum, or download it again"


class BrokenDiT(FakeDiT):
    """Gives `value` from its call `first` on, counted from 0."""

    def __init__(self, value: float, first: int) -> None:
        super().__init__()
        self.value, self.first = value, first

    def head(self, x: Tensor, t_emb: Tensor) -> Tensor:
        result = super().head(x, t_emb)
        if self.calls > self.first:
            result[0, -1, 0] = self.value
        return result


class BrokenVAE(FakeVAE):
    """Gives a NaN in one pixel of the last frame of its video number `first`, counted from 0."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.left = first

    def decode(self, latents: Tensor, **options: object) -> Tensor:
        video = super().decode(latents, **options)
        if not self.left:
            video[0, 0, -1, 3, 3] = NAN
        self.left -= 1
        return video


class Text(PipelineUnit):
    """A text encoder that is broken."""

    name = "text"
    provides = ("prompt_embedding",)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job["prompt_embedding"] = torch.tensor([[[0.5], [NAN]]])

    @hookimpl(trylast=True)
    def embed(self, forward: Forward) -> None:
        forward.conditions["text"] = forward.stacked(lambda branch: branch["prompt_embedding"])


def scene() -> Scene:
    """Three windows of 9 frames, that share 5: frames 0 to 8, 9 to 12, 13 to 16."""
    return Scene(frames=17, texts=(0.05, 0.0))


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(("first", "step", "chunk"), [(0, 1, 1), (2, 3, 1), (4, 2, 2)])
def test_a_transformer(value: float, first: int, step: int, chunk: int) -> None:
    engine = fake_engine([scene(), *denoising_units(steps=3)], models=fake_models(dit=BrokenDiT(value, first)))
    with pytest.raises(NotFinite) as caught:
        engine.generate(request())
    place = f"from step {step} of chunk {chunk} on"
    assert str(caught.value) == f"the transformer's output is not finite {place}; {DAMAGED}"


def test_in_half_precision_it_is_an_overflow() -> None:
    engine = fake_engine([scene(), *denoising_units()], models=fake_models(dit=BrokenDiT(INF, 0)), dtype=torch.float16)
    with pytest.raises(NotFinite, match=r"on; in fp16 that is an overflow: take bf16 \(--dtype bf16\)$"):
        engine.generate(request())


def test_a_text_encoder() -> None:
    engine = fake_engine([scene(), Text(), *denoising_units()])
    with pytest.raises(
        NotFinite, match=r"^'prompt_embedding', which the unit 'text' makes, is not finite in chunk 1; "
    ):
        engine.generate(request())


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_decoder(chunk: int) -> None:
    engine = fake_engine([scene(), *denoising_units()], models=fake_models(vae=BrokenVAE(chunk - 1)))
    with pytest.raises(NotFinite, match=f"^the decoded frames of chunk {chunk} are not finite; {DAMAGED}"):
        engine.generate(request())


@pytest.mark.parametrize("models", [{"dit": BrokenDiT(NAN, 4)}, {"vae": BrokenVAE(1)}], ids=["dit", "vae"])
def test_chunks_before_it_are_kept(models: dict[str, torch.nn.Module], tmp_path: Path) -> None:
    engine = fake_engine([scene(), *denoising_units(steps=3), WriteVideo()], models=fake_models(**models))
    with pytest.raises(NotFinite) as caught:
        engine.generate(request(inputs={"output": tmp_path / "video.mp4"}))
    partial = tmp_path / "video.partial.mp4"
    assert caught.value.__notes__ == [f"the 9 finished frames are in {partial}"]
    assert probe_video(partial).frames == 9


def test_no_frame_of_it_is_handed_on() -> None:
    engine = fake_engine([scene(), *denoising_units(steps=3)], models=fake_models(dit=BrokenDiT(NAN, 4)))
    frames = 0

    def count() -> None:
        nonlocal frames
        for group in engine.start(request()).groups():
            frames += len(group.frames)

    with pytest.raises(NotFinite):
        count()
    assert frames == 9


def test_a_window_that_nobody_decodes_is_looked_at_when_it_ends() -> None:
    engine = fake_engine([scene(), *denoising_units()], models=fake_models(dit=BrokenDiT(NAN, 0)))
    with engine.start(request()) as run:
        windows = run.windows([0])
        assert len(list(run.denoise(next(windows)))) == 2
        with pytest.raises(NotFinite, match="from step 1 of chunk 1 on"):
            next(windows)


def test_frames_are_looked_at_as_they_are_shown() -> None:
    class Spot(PipelineUnit):
        name = "spot"

        @hookimpl
        def postprocess_frames(self, frames: Frames) -> None:
            frames.pixels = frames.pixels / 0 * 0

    engine = fake_engine([scene(), *denoising_units(), Spot()])
    with pytest.raises(NotFinite, match="frames of chunk 1 are not finite"):
        engine.generate(request())


def test_nothing_waits_for_the_device_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is what waits; it happens once for a window's steps, and once for each group that is shown."""
    read: list[str] = []
    checked = Watch.check

    def check(watch: Watch, window: Window) -> None:
        read.append(f"read {window.index}")
        checked(watch, window)

    class Look:
        @hookimpl
        def after_step(self, step: Step) -> None:
            read.append(f"step {step.window.index}")

    monkeypatch.setattr(Watch, "check", check)
    engine = fake_engine([scene(), *denoising_units(steps=3)], observers=[Look()])
    engine.generate(request())
    assert read[:4] == ["step 0", "step 0", "step 0", "read 0"]


@pytest.mark.parametrize("values", [[1, -3], [NAN, 5], [-INF, 5], [NAN, INF], [INF, -INF]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_sum_is_finite_if_all_values_are(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype).repeat(1, 3, 70, 110, 1).transpose(1, 3)
    assert bool(total(tensor).isfinite()) == bool(tensor.isfinite().all())


def test_large_values_in_half_precision_are_no_overflow() -> None:
    assert total(torch.full((1000,), 60_000.0, dtype=torch.float16)).isfinite()


def test_values_that_are_no_tensors_are_passed_over() -> None:
    class Names(PipelineUnit):
        name = "names"
        provides = ("names", "counts")

        @hookimpl
        def begin_window(self, window: Window) -> None:
            window["names"], window["counts"] = ["a"], torch.ones(2, dtype=torch.int64)

    engine = fake_engine([scene(), Names(), *denoising_units()], models=fake_models(dit=BrokenDiT(NAN, 0)))
    with pytest.raises(NotFinite, match=r"^the transformer's output"):
        engine.generate(request())
