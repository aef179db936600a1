"""The engine: reproducible, without memory between jobs, tidy however a job ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniavatar.checkpoints import Bundle
from omniavatar.engine.engine import Engine
from omniavatar.engine.loop import Loop
from omniavatar.engine.plan import Catalog, Plan
from omniavatar.engine.scopes import Branch, Forward, Job, Request, Scope, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.errors import CheckpointError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import GivenModels, recorder
from omniavatar.units import Euler, Guidance, Schedule, Transformer
from tests.scenes import Scene, denoising_units, fake_engine, fake_models, recorded, request, tiny_engine, video_of

SILENT_PLAN = "default+teacache-write-video"


@pytest.fixture(scope="module")
def engine(tiny_models: Bundle, catalog: Catalog) -> Engine:
    """All test networks, used by several jobs."""
    return tiny_engine(tiny_models, catalog, SILENT_PLAN)


def frames_of(engine: Engine, request: Request) -> Tensor:
    """The frames of a video as they were decoded (1 3 t h w)."""
    return recorder.video_of(recorded(engine, request))


def talking(portrait: Path, speech: Path, **changes: Any) -> Request:
    inputs = {"image": portrait, "audio": speech, "prompt": "a man talks"}
    return Request(**{"inputs": inputs, "seconds": 0.48, "seed": 1, **changes})


# The same request, the same video


def test_the_same_request_gives_the_same_video(engine: Engine, portrait: Path, speech: Path) -> None:
    first = frames_of(engine, talking(portrait, speech))
    assert first.shape == (1, 3, 12, 32, 32)
    assert first.equal(frames_of(engine, talking(portrait, speech)))
    assert not first.equal(frames_of(engine, talking(portrait, speech, seed=2)))


def test_a_job_does_not_depend_on_those_before_it(
    engine: Engine, tiny_models: Bundle, catalog: Catalog, portrait: Path, speech: Path
) -> None:
    """Other size, length and prompt, no picture, no sound; then the job itself, on the used engine and a new one."""
    engine.generate(Request(inputs={"prompt": "other"}, seconds=0.24, seed=9, height=48, width=32))
    engine.generate(Request(inputs={"audio": speech}, seconds=0.76))
    fresh = tiny_engine(tiny_models, catalog, SILENT_PLAN)
    job = talking(portrait, speech, seed=3)
    assert frames_of(engine, job).equal(frames_of(fresh, job))


def test_a_failed_job_leaves_nothing_for_the_next(engine: Engine, portrait: Path, speech: Path) -> None:
    before = frames_of(engine, talking(portrait, speech))
    with pytest.raises(Exception, match="length of the video is unknown"):
        engine.generate(Request(inputs={"prompt": "other"}))
    assert frames_of(engine, talking(portrait, speech)).equal(before)


def test_noise_depends_on_seed_and_window_alone() -> None:
    engine = fake_engine([])
    span = Span(0, 9, 0, 0, 9)
    loop, other = (Loop(engine, engine.plan, request(seed=seed)) for seed in (1, 2))
    forwards = [loop.noise(index, span) for index in (0, 1, 2)]
    torch.manual_seed(123)
    backwards = [loop.noise(index, span) for index in (2, 1, 0)][::-1]
    assert all(one.equal(two) for one, two in zip(forwards, backwards, strict=True))
    assert forwards[0].shape == (1, 4, 3, 2, 2)
    assert forwards[0].dtype == torch.float32
    different = [*forwards, other.noise(0, span), other.noise(1, span)]
    assert len({tuple(noise.flatten().tolist()) for noise in different}) == len(different)


def test_a_shorter_window_starts_from_other_noise_but_stays_normal() -> None:
    engine = fake_engine([])
    noise = Loop(engine, engine.plan, request(height=256, width=256)).noise(0, Span(0, 33, 0, 0, 33))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02


# The algorithm


def test_without_a_unit_for_windows_the_video_is_one() -> None:
    scene = Scene(frames=30)
    _, *others = denoising_units()
    result = fake_engine([scene, *others]).generate(request())
    assert [window.span for window in scene.windows] == [Span(0, 33, 0, 0, 30)]
    assert result.frames == 30
    assert video_of(scene).shape[2] == 30


def test_one_euler_step_by_hand() -> None:
    """FakeDiT's velocity is latents + 4 * text, and one step leads from sigma 1 to 0: what is left is -4 * text."""
    scene = Scene(frames=5, texts=(0.125, 0.0))
    fake_engine([scene, Guidance(scale=1), Schedule(steps=1), Euler(), Transformer()]).generate(request())
    torch.testing.assert_close(scene.windows[0].latents, torch.full((1, 4, 2, 2, 2), -0.5))


def test_latents_stay_in_float32_whatever_the_networks_compute_in() -> None:
    scene, seen = Scene(frames=13), []

    class Look:
        @hookimpl(trylast=True)
        def before_step(self, step: Step) -> None:
            self.before = step.window.latents.clone()

        @hookimpl
        def after_step(self, step: Step) -> None:
            seen.extend([step.velocity.dtype, step.window.latents.dtype])
            expected = self.before + step.velocity * (step.sigma_next - step.sigma)
            torch.testing.assert_close(step.window.latents, expected, atol=1e-6, rtol=0)

    engine = fake_engine([scene, *denoising_units()], dtype=torch.bfloat16, observers=[Look()])
    engine.generate(request())
    assert set(engine.model("dit").dtypes) == {torch.bfloat16}
    assert set(seen) == {torch.float32}
    assert scene.windows[1]["given_latents"].dtype == torch.float32


def test_branches_merged_into_one_call_give_the_same_video(
    engine: Engine, tiny_models: Bundle, catalog: Catalog, portrait: Path, speech: Path
) -> None:
    calls: list[int] = []

    class Merged(PipelineUnit):
        """All branches in one batch."""

        name = "merged"

        @hookimpl
        def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
            return step.forward(branches).chunk(len(branches))

        @hookimpl
        def embed(self, forward: Forward) -> None:
            calls.append(len(forward.x))

    known = Catalog({**catalog.units, "merged": Merged}, catalog.presets)
    guidance = {"audio_scale": 2.0}
    apart = tiny_engine(tiny_models, catalog, SILENT_PLAN, guidance=guidance)
    together = tiny_engine(tiny_models, known, f"{SILENT_PLAN}+merged", guidance=guidance)
    job = talking(portrait, speech)
    torch.testing.assert_close(frames_of(together, job), frames_of(apart, job), atol=2e-4, rtol=0)
    assert calls == [3] * 4


def test_every_self_attention_goes_through_the_engine(tiny_models: Bundle, catalog: Catalog) -> None:
    engine = tiny_engine(tiny_models, catalog, "default-write-video")
    calls: list[torch.Size] = []

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append(q.shape)
        return inner(q, k, v)

    inner = engine.attention.strategy
    engine.attention.wrap(lambda strategy: counted)
    engine.generate(Request(seconds=0.2))
    assert calls == [(1, 2 * 2 * 2, 2, 48)] * (6 * 2 * 2)


def test_what_units_store_for_others_they_declare(engine: Engine, portrait: Path, speech: Path) -> None:
    """A name without a dot is public; private ones start with the unit's name."""
    stored: set[str] = set()

    class Collect:
        @hookimpl(trylast=True)
        def unembed(self, forward: Forward) -> None:
            scope: Scope | None = forward
            while scope is not None:
                stored.update(scope.values)
                scope = scope.outer
            stored.update(forward.memory.values)

        @hookimpl(trylast=True)
        def end_window(self, window: Window) -> None:
            stored.update(window.values)

    Engine(engine.plan, engine.models, observers=[Collect()]).generate(talking(portrait, speech))
    declared = {name for unit in engine.plan.units for name in unit.provides}
    assert {name for name in stored if "." not in name} == declared
    names = {unit.name for unit in engine.plan.units}
    assert {name.partition(".")[0] for name in stored if "." in name} <= names


# Models and set-up


def test_a_role_without_a_model_is_named_with_the_ways_out() -> None:
    with pytest.raises(CheckpointError) as caught:
        Engine(Plan((Transformer(),)), GivenModels())
    assert str(caught.value) == (
        "unit 'transformer' needs a model for the role 'dit' and no given file has one; "
        "add the file with --model, beside a configuration that has the others (--config NAME), "
        "or leave the unit out with -transformer"
    )


def test_networks_are_loaded_on_first_use_once_and_in_evaluation_mode() -> None:
    loaded: list[str] = []

    class Counting(GivenModels):
        def load(self, role: str, **options: Any) -> nn.Module:
            loaded.append(role)
            return super().load(role, **options).train()

    models = Counting(**fake_models().networks)
    engine = fake_engine([Scene(frames=13), *denoising_units()], models=models)
    assert (loaded, engine.roles) == ([], ["vae", "dit"])
    engine.generate(request())
    engine.generate(request())
    assert sorted(loaded) == ["dit", "vae"]
    assert not engine.model("dit").training


class Setting(PipelineUnit):
    """Counts its set-ups, and fails if it is told so."""

    name = "setting"

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error
        self.count = 0

    @hookimpl
    def setup(self, engine: Engine) -> None:
        self.count += 1
        if self.error is not None:
            raise self.error


def test_set_up_runs_once() -> None:
    setting = Setting()
    engine = fake_engine([setting, Scene(frames=5), *denoising_units()])
    engine.set_up()
    engine.generate(request())
    engine.generate(request())
    assert setting.count == 1


def test_a_failed_set_up_fails_every_job() -> None:
    """Or the second job of a list would run on models that are changed halfway."""
    setting = Setting(CheckpointError("no"))
    engine = fake_engine([setting, Scene(frames=5), *denoising_units()])
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no"):
            engine.generate(request())
    assert setting.count == 1


# However a job ends


class Opening(PipelineUnit):
    """Opens something at the beginning and may raise at the end of a window."""

    name = "opening"

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.error = error
        self.closed: list[type[BaseException] | None] = []

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.resources.push(lambda kind, error, trace: self.closed.append(kind))

    @hookimpl
    def end_window(self, window: Window) -> None:
        if self.error is not None:
            raise self.error


def test_resources_are_closed_on_success() -> None:
    opening = Opening()
    fake_engine([opening, Scene(frames=5), *denoising_units()]).generate(request())
    assert opening.closed == [None]


@pytest.mark.parametrize("error", [ValueError("x"), PlanError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_resources_are_closed_on_every_kind_of_end(error: BaseException) -> None:
    opening = Opening(error)
    with pytest.raises(type(error)):
        fake_engine([opening, Scene(frames=5), *denoising_units()]).generate(request())
    assert opening.closed == [type(error)]


def test_a_plan_without_a_schedule_says_so() -> None:
    with pytest.raises(PlanError, match="the plan has no schedule; add one such as"):
        fake_engine([Scene(frames=5), Guidance(), Transformer()]).generate(request())
