"""Validation videos: made of the averaged weights, by the run's networks, without a trace in them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.scopes import Job, Step
from omniavatar.errors import InputError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.resources import asset
from omniavatar.training.diffusion import DiffusionTask
from omniavatar.training.samples import LiveSamples
from omniavatar.training.trained import LoraSettings, add_lora
from omniavatar.training.trainer import STATE, Settings, Trainer, Visit
from omniavatar.training.validation import Validation, holding
from tests.training.scenes import DRAWS, Striped, diffusion, take

SHOWN: dict[str, Any] = {
    "every": 2,
    "videos": [{"image": asset("demo", "portrait.png"), "prompt": "A man."}],
    "seconds": 0.24,
    "settings": {"schedule": {"steps": 1}},
}


class Stripes:
    """Takes of one clip."""

    def __len__(self) -> int:
        return 1

    def draw(self, settings: Any, draw: torch.Generator, make: Any) -> Any:
        return make(take(clip=Striped()))

    def each(self, settings: Any, share: Any, make: Any) -> Any:
        yield "0/0", make(take(clip=Striped()))


class Spy:
    """Looks at the networks while a video is made."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.modes: list[bool] = []
        self.engine: weakref.ref[Engine] | None = None

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.engine = weakref.ref(job.engine)

    @hookimpl
    def before_step(self, step: Step) -> None:
        self.modes.append(step.network.training)
        adapter = step.engine.model("audio_adapter")
        self.weights.append({f"audio_adapter.{name}": w.clone() for name, w in adapter.named_parameters()})


def run(folder: Path, spy: Spy | None, **fields: Any) -> tuple[Trainer, DiffusionTask]:
    """Four updates, with validation videos if there is a spy to see them."""
    made = diffusion(folder, **{"validation": SHOWN, "dtype": "fp32", **fields})
    preparation = made.preparation()
    task = made.task(LiveSamples(preparation, Stripes(), DRAWS))
    visits = [] if spy is None else [Visit(SHOWN["every"], made.validation([task.engine], [spy]))]
    settings = Settings(steps=4, learning_rate=1e-2, ema=0.5, log_every=1)
    trainer = Trainer(task, settings, folder / "out", visits=visits)
    trainer.run()
    return trainer, task


@pytest.mark.slow
def test_videos_show_the_averaged_weights_and_leave_the_run_as_it_is(tmp_path: Path) -> None:
    spy = Spy()
    torch.manual_seed(3)
    trainer, task = run(tmp_path / "with", spy)
    drawn = torch.rand(1)
    assert len(spy.weights) == 2
    assert all(value.equal(trainer.ema[name]) for name, value in spy.weights[1].items())
    assert any(not value.equal(trainer.parameters[name]) for name, value in spy.weights[1].items())
    assert spy.modes == [False, False]
    assert task.engine.model("audio_adapter").training
    gc.collect()
    assert spy.engine is not None
    assert spy.engine() is None, "networks that only videos need are held"
    assert set(task.engine.networks) == {"dit", "audio_adapter"}

    torch.manual_seed(3)
    alone, _ = run(tmp_path / "without", None)
    assert drawn.equal(torch.rand(1)), "validation draws from the generator of everyone"
    assert all(value.equal(alone.parameters[name]) for name, value in trainer.parameters.items())


class Breaks(Spy):
    """Has no memory for the first video, and a fault in the second."""

    @hookimpl
    def before_step(self, step: Step) -> None:
        super().before_step(step)
        if len(self.modes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")
        raise ValueError("no\nluck")


@pytest.mark.slow
def test_whatever_breaks_a_video_does_not_end_the_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken, task = run(tmp_path / "with", Breaks())
    assert broken.step == 4
    assert task.engine.model("audio_adapter").training
    first, second = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert first.endswith(
        "step-000002-1.mp4 cannot be made: out of memory while denoising window 1 of 1, step 1 of 1; "
        "try a smaller validation.seconds"
    )
    assert second.endswith("step-000004-1.mp4 cannot be made: ValueError: no")
    alone, _ = run(tmp_path / "without", None)
    assert all(value.equal(alone.parameters[name]) for name, value in broken.parameters.items())


def test_a_sharded_run_keeps_its_steps_before_a_video_that_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ranks would wait for the one that fails in the middle of a video."""
    monkeypatch.setattr(Trainer, "is_sharded", property(lambda _: True))
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, Breaks())
    assert torch.load(tmp_path / "out" / STATE, weights_only=True)["step"] == 2


def test_weights_are_held_in_another_precision_and_given_back() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    own = weight.data_ptr()
    with holding({"a": weight}, {"a": torch.tensor([3.0, 4.0])}, torch.bfloat16):
        assert weight.tolist() == [3.0, 4.0]
        assert weight.dtype == torch.bfloat16
    assert weight.tolist() == [1.0, 2.0]
    assert (weight.dtype, weight.data_ptr()) == (torch.float32, own)


@pytest.mark.parametrize(
    ("expression", "changes", "error", "message"),
    [
        ("default-write-video", {}, PlanError, "validation videos need a unit that writes them; add write-video"),
        ("default", {"seconds": None}, InputError, "validation video 1 has no sound, so its length is unknown"),
        ("default", {"settings": {"teacache": {}}}, PlanError, "validation.settings: the plan has no unit 'teacache'"),
    ],
)
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, expression: str, changes: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    made = diffusion(tmp_path, expression=expression, validation={**SHOWN, **changes})
    with pytest.raises(error, match=message):
        made.requests()


def test_lora_layers_that_stay_float32_in_a_sharded_network_make_videos() -> None:
    """Those of other networks take its precision; see `holding`."""
    network = nn.ModuleDict({"q": nn.Linear(8, 8)}).bfloat16()
    add_lora(network, LoraSettings(rank=2, targets=("q",)), seed=0)
    for name, weight in network.named_parameters():
        if ".lora_" in name:
            weight.data = weight.data.float()
    lender = SimpleNamespace(networks={"dit": network}, dtype=torch.bfloat16, device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(parameters={}, result=dict, is_sharded=True)
    with Validation._borrowed(cast(Any, SimpleNamespace(lenders=[lender])), trainer):
        assert network["q"](torch.ones(1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
