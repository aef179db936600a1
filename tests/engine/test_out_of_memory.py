"""What is told when memory runs out: where a run was, what was asked for, what would take less."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.out_of_memory import Shortage, amount, is_out_of_memory
from omniavatar.engine.plan import Plan
from omniavatar.engine.saving import SavesMemory
from omniavatar.engine.scopes import Forward, Job, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import GivenModels
from omniavatar.units import FixedFrames, VaeDecode
from tests.scenes import SIZE, Scene, bare_job, denoising_units, fake_models

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is "
    "free. Process 1 has 77.85 GiB memory in use.\nMore lines"
)
TOLD = "2.50 GiB more asked for, 1.25 GiB of the GPU's 79.10 GiB free"


def no_memory() -> None:
    raise torch.OutOfMemoryError(CUDA)


class Greedy(PipelineUnit):
    """Asks for too much in one hook, in the second window."""

    name = "greedy"

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def ask(self, hook: str, window: Window | None = None) -> None:
        if hook == self.hook and (window is None or window.index == 1):
            no_memory()

    @hookimpl
    def setup(self, engine: Engine) -> None:
        self.ask("setup")

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.ask("begin_job")

    @hookimpl
    def begin_window(self, window: Window) -> None:
        self.ask("begin_window", window)

    @hookimpl
    def before_step(self, step: Step) -> None:
        if step.index == 1:
            self.ask("before_step", step.window)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 2 and forward.step.index == 1:
            self.ask("before_block", forward.window)

    @hookimpl
    def postprocess_frames(self, window: Window) -> None:
        self.ask("postprocess_frames", window)

    @hookimpl
    def end_window(self, window: Window) -> None:
        self.ask("end_window", window)


class Saver(PipelineUnit, SavesMemory):
    """Would take less."""

    name = "saver"
    eases = ("load", "denoise")


class Rival(Saver):
    """Would too, but not with the others."""

    name = "rival"
    conflicts = {"guidance": "a test"}  # noqa: RUF012


KNOWN: Mapping[str, type[PipelineUnit]] = {unit.name: unit for unit in (Saver, Rival, VaeDecode)}


def failure(units: list[PipelineUnit], models: GivenModels | None = None) -> BaseException:
    engine = Engine(Plan([Scene(frames=13), *denoising_units(), *units]), models or fake_models())
    with pytest.raises(Exception, match="out of memory") as caught:
        engine.generate(Request(height=SIZE, width=SIZE))
    return caught.value


def line(error: BaseException) -> str:
    shortage = Shortage.of(error)
    assert shortage is not None
    return shortage.explain(KNOWN)


@pytest.mark.parametrize(
    ("hook", "where", "remedies"),
    [
        ("setup", "while setting up (unit greedy)", "--units with +saver or a smaller model"),
        ("begin_job", "while preparing the video (unit greedy)", "a smaller --size"),
        (
            "begin_window",
            "while preparing window 2 of 2 (unit greedy)",
            "fixed-frames(tiled=true) or a smaller --size",
        ),
        (
            "before_step",
            "while denoising window 2 of 2, step 2 of 2 (unit greedy)",
            "--units with +saver or a smaller --size",
        ),
        (
            "before_block",
            "while denoising window 2 of 2, step 2 of 2, block 3",
            "--units with +saver or a smaller --size",
        ),
        (
            "postprocess_frames",
            "while decoding window 2 of 2 (unit greedy)",
            "vae-decode(latents_per_pass=1) or a smaller --size",
        ),
        (
            "end_window",
            "while decoding window 2 of 2 (unit greedy)",
            "vae-decode(latents_per_pass=1) or a smaller --size",
        ),
    ],
)
def test_where_it_was_and_what_would_help(hook: str, where: str, remedies: str) -> None:
    error = failure([Greedy(hook)])
    shortage = Shortage.of(error)
    assert shortage is not None
    assert shortage.place.engine is not None
    shortage.place.engine.device = torch.device("cuda")  # nothing is done there
    assert shortage.explain(KNOWN) == f"out of memory {where}: {TOLD}; try {remedies}"


def test_a_network_that_does_not_fit() -> None:
    class Models(GivenModels):
        def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
            if role == "dit":
                no_memory()
            return super().load(role, device=device, dtype=dtype, **constructor)

    error = failure([], Models(**fake_models().networks))
    assert line(error).startswith(f"out of memory while loading the network 'dit': {TOLD}; try ")


def test_inside_a_block() -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor, *_: Any) -> Tensor:
            raise torch.OutOfMemoryError(CUDA)

    models = fake_models()
    dit: Any = models.networks["dit"]
    dit.blocks[3] = Hungry()
    assert "while denoising window 1 of 2, step 1 of 2, block 4: " in line(failure([], models))


def test_fewer_tokens_are_a_window_of_two_thirds() -> None:
    models = fake_models()
    models.networks["dit"].patch_size = (1, 2, 2)  # type: ignore[assignment]
    engine = Engine(Plan([Scene(frames=13), *denoising_units()]), models)
    job = bare_job(engine, Request(height=64, width=64))
    job.frames = 1000
    unit = FixedFrames(overlap=5, window_frames=None, max_tokens=420)
    span = unit.plan_windows(job)[0]
    smaller = unit.smaller("denoise", Window(job, 0, span))
    shorter = FixedFrames(overlap=5, **smaller).plan_windows(job)[0]
    assert 0.6 < shorter.frames / span.frames < 0.75
    fixed = FixedFrames(overlap=13, window_frames=105)
    window = Window(job, 0, fixed.plan_windows(job)[0])
    assert fixed.smaller("denoise", window) == {"window_frames": 69}
    assert FixedFrames(overlap=69, window_frames=105).smaller("denoise", window) == {}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("CPUAllocator: can't allocate memory: you tried to allocate 3145728 bytes."), "3.00 MiB more"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "CUBLAS_STATUS_ALLOC"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuDNN error"),
        (RuntimeError("unable to mmap 1048576 bytes from file <x>: Cannot allocate memory (12)"), "1.00 MiB more"),
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
        (MemoryError("Unable to allocate 7.45 GiB for an array"), "7.45 GiB more asked for"),
        (MemoryError(), ""),
    ],
)  # fmt: skip
def test_all_that_says_that_memory_is_short(error: BaseException, said: str) -> None:
    assert is_out_of_memory(error)
    assert re.fullmatch(r"out of memory: .+; try .*a smaller --size", line(error))
    assert said in line(error)


@pytest.mark.parametrize("make", [RuntimeError, ValueError, OSError])
def test_other_errors_are_something_else(make: Callable[[str], Exception]) -> None:
    assert Shortage.of(make("shapes do not match")) is None


def test_an_error_that_hides_another_one() -> None:
    def hidden() -> None:
        try:
            no_memory()
        except RuntimeError as error:
            raise ValueError("the compiler failed") from error

    with pytest.raises(ValueError, match="the compiler failed") as caught:
        hidden()
    assert line(caught.value).startswith(f"out of memory: {TOLD}")


def test_amounts() -> None:
    assert [amount(size) for size in (512, 3 * 2**20, 2.5 * 2**30, 640 * 2**20)] == [
        "0.50 KiB",
        "3.00 MiB",
        "2.50 GiB",
        "640 MiB",
    ]
