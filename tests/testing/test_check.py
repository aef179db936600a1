"""`check_unit` finds every broken promise, says which one it is, and is content with a sound unit."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Any, ClassVar

import pytest
import torch
from pydantic import AfterValidator, BaseModel, Field
from torch import Tensor

from omniavatar.engine.conditions import BringsConditions
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog
from omniavatar.engine.ranks import SpreadsWork
from omniavatar.engine.scopes import Branch, Forward, Frames, Job, Step, Window
from omniavatar.engine.unit import PipelineUnit, UnitInputs, UnitSettings
from omniavatar.errors import PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import WanDiT
from omniavatar.plugins import discover
from omniavatar.testing import FakeVAE, check_unit
from omniavatar.testing import check as check_module
from omniavatar.testing.check import PROMISES
from omniavatar.testing.stage import Network
from omniavatar.testing.tiny import DIT

NETWORKS: Mapping[str, Network] = {
    "dit": (WanDiT, {**DIT, "in_dim": 4, "out_dim": 4, "num_layers": 2}),
    "vae": (FakeVAE, {}),
    "spare": (torch.nn.Identity, {}),
}
PLAN = "prompt+fixed-frames+guidance+schedule+euler+transformer+vae-decode"
WAVE = torch.linspace(-1, 1, DIT["dim"])
"""Something for a token that no norm takes away."""


def check(unit: type[PipelineUnit], **options: Any) -> None:
    """`check_unit` with few small networks."""
    check_unit(unit, plan=f"{PLAN}+{unit.name}", networks=NETWORKS, **options)


class Sound(PipelineUnit):
    """Uses all that there is in the way that it should be used.

    Guidance branches that drop the condition "warmth" are not warmed.
    """

    name = "sound"
    needs = ("frames",)
    uses = ("previous.frames",)
    provides = ("warmth",)
    roles = ("spare", "dit")

    class Settings(UnitSettings):
        warmth: float = Field(0.1, ge=0, le=1, description="how warm")
        words: tuple[str, ...] = Field((), description="words of warmth")

    class Inputs(UnitInputs):
        season: str = Field("summer", description="when it is")

    settings: Settings

    @hookimpl
    def setup(self, engine: Engine) -> None:
        engine.model("spare")

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job["warmth"] = self.settings.warmth * len(job.inputs(self).season)

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        warmth = forward.memory.once("sound.warmth", lambda: forward.stacked(warmth_of))
        forward.x = forward.x + warmth.to(forward.x) * (forward.frame_index >= 0)[:, None]

    @hookimpl
    def postprocess_frames(self, window: Window, frames: Frames) -> None:
        before = 0.0 if window.previous is None else window.previous["frames"].mean()
        frames.pixels = frames.pixels + before


def warmth_of(branch: Branch) -> torch.Tensor:
    """(1 1 d)."""
    return WAVE[None, None] * (0.0 if branch.drops("warmth") else branch["warmth"])


class Broken(PipelineUnit):
    """A base of units that break one promise each."""

    name = "broken"

    @hookimpl
    def after_step(self, step: Step) -> None: ...


class Undocumented(Broken):
    pass


class Misnamed(Broken):
    """A name that plan expressions cannot have."""

    name = "Not_a_name"


class RunOn(Broken):
    """A first line that does not end where
    it should."""


class Namesake(Broken):
    """A unit whose name is taken."""

    name = "euler"


class PresetNamesake(Broken):
    """A unit that is called as a preset is."""

    name = "original"


class Scattered(Broken):
    """A name where a tuple of names is due."""

    needs = "frames"  # type: ignore[assignment]


class Unprovided(Broken, BringsConditions):
    """A null form that it does not provide."""

    provides = ("mood",)
    nulls: ClassVar = {"mood": {"mood": "no_mood"}}


class Unpaired(Broken, BringsConditions):
    """A null form of nothing."""

    nulls: ClassVar = {"mood": "no_mood"}  # type: ignore[dict-item]


class SilentSetting(Broken):
    """A setting without a description."""

    class Settings(UnitSettings):
        size: bool = False


class BoundlessSetting(Broken):
    """A number without bounds."""

    class Settings(UnitSettings):
        size: float | None = Field(None, description="how large")


class LooseSettings(Broken):
    """Settings that accept anything."""

    class Settings(BaseModel):
        size: bool = Field(False, description="how large")


class SilentInput(Broken):
    """An input without a description."""

    class Inputs(UnitInputs):
        mood: str = "good"


class TakenInput(Broken):
    """An input that the command line has for itself."""

    class Inputs(UnitInputs):
        seed: int = Field(1, description="another seed")


class UnmarkedHook(Broken):
    """A hook that nobody calls."""

    def begin_job(self, job: Job) -> None: ...


class MisspeltHook(Broken):
    """A hook that does not exist."""

    @hookimpl
    def begin_jobs(self, job: Job) -> None: ...


class MisspeltArgument(Broken):
    """A hook with an argument of its own."""

    @hookimpl
    def begin_job(self, task: Job) -> None: ...


class DefaultArgument(Broken):
    """A hook with an argument that pluggy does not pass."""

    @hookimpl
    def begin_job(self, job: Job | None = None) -> None: ...


class FalseWrapper(Broken):
    """A wrapper that wraps nothing."""

    @hookimpl(wrapper=True)
    def begin_job(self, job: Job) -> None: ...


class Idle(PipelineUnit):
    """A unit without hooks."""

    name = "idle"


class Shrinking(Broken):
    """A setting that changes each time it is read."""

    class Settings(UnitSettings):
        size: Annotated[float, AfterValidator(lambda size: size / 2)] = Field(1, ge=0, description="how large")


class Nan(Broken):
    """Numbers that are none."""

    @hookimpl
    def after_step(self, step: Step) -> None:
        step.window.latents = step.window.latents * float("nan")


class Unfit(Broken):
    """A plan that is refused."""

    needs = ("moonlight",)


class SecretReader(Broken):
    """A value that it does not declare."""

    @hookimpl
    def end_window(self, window: Window) -> None:
        assert window["prompt_embedding"] is not None


class SecretWriter(Broken):
    """A value that nobody knows of."""

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window.once("sparkle", list)


class DirectReader(Broken):
    """The same, past the methods of scopes."""

    @hookimpl
    def end_window(self, window: Window) -> None:
        window.job.values.get("prompt_embedding")


class DirectWriter(Broken):
    """Values put past the methods of scopes."""

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window.values.update(sparkle=1)


class DirectTaker(Broken):
    """A value of another unit taken away."""

    @hookimpl
    def end_window(self, window: Window) -> None:
        del window.values["given_latents"]


class EmptyPromise(Broken):
    """A value that never comes."""

    provides = ("sparkle",)


class Backward(Broken):
    """A value of the window before."""

    provides = ("sparkle",)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window["sparkle"] = window.previous is not None and "given_latents" in window.previous


class Intruder(Broken):
    """The private state of another unit."""

    @hookimpl
    def after_step(self, step: Step) -> None:
        step.window.once("transformer.positions", dict)


class Moocher(Broken):
    """A model that it does not declare."""

    @hookimpl
    def begin_job(self, job: Job) -> None:
        job.engine.model("spare")


class Hoarder(Broken):
    """A model that it never uses."""

    roles = ("spare",)


class Diarist(Broken):
    """A diary of its own."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.diary: dict[str, list[int]] = {"steps": []}

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.diary["steps"].append(step.index)


class SharedDiarist(Broken):
    """A diary for all units of its kind."""

    diary: ClassVar[list[int]] = []

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.diary.append(step.index)


class Gambler(Broken):
    """Numbers that are others each time."""

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window.latents = torch.randn(window.latents.shape)


class Grudge(Broken):
    """What one job did, kept in the engine."""

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window.latents = window.latents + vars(window.engine.attention).get("anger", 0.0)

    @hookimpl
    def end_job(self, job: Job) -> None:
        vars(job.engine.attention)["anger"] = 0.1


class Untidy(Broken):
    """What only a job that ends well puts away."""

    @hookimpl
    def begin_job(self, job: Job) -> None:
        vars(job.engine.attention)["jobs"] = 1 + vars(job.engine.attention).get("jobs", 0)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window.latents = window.latents + vars(window.engine.attention)["jobs"]

    @hookimpl
    def end_job(self, job: Job) -> None:
        vars(job.engine.attention)["jobs"] -= 1


class Once(Broken):
    """One video for each engine, which nothing says."""

    @hookimpl
    def begin_job(self, job: Job) -> None:
        if vars(job.engine.attention).setdefault("first", job.seed) != job.seed:
            raise PlanError("one video is enough")


class Nostalgic(Broken):
    """What the first window was like, kept for all."""

    @hookimpl
    def begin_window(self, window: Window) -> None:
        first = window.job.once("broken.first", lambda: window.span.start + 1)
        window.latents = window.latents + first


class Unsavable(Broken):
    """Something that no file can hold, left for the next window."""

    uses = ("previous.sparkle",)
    provides = ("sparkle",)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window["sparkle"] = lambda: 1


class Recognising(Broken):
    """The window before, known by where its tensors lie and not by what is in them."""

    uses = ("previous.sparkle",)
    provides = ("sparkle",)

    @hookimpl
    def begin_window(self, window: Window) -> None:
        window["sparkle"] = shared = torch.ones(())
        kept = window.job.once("broken.kept", list)
        kept.append(shared)
        before = None if window.previous is None else window.previous["sparkle"].data_ptr()
        window.latents = window.latents + 0.1 * any(one.data_ptr() == before for one in kept)


class Partial(Broken):
    """What the first branch of a step was told, told to all."""

    @hookimpl
    def embed(self, forward: Forward) -> None:
        forward.conditions = forward.step.once("broken.conditions", lambda: forward.conditions)


class Loner(Broken):
    """A batch taken for one branch."""

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        forward.x = forward.x + WAVE * (not forward.branches[0].drops("text"))


class Counter(Broken):
    """Tokens numbered on every rank from zero."""

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        forward.x = forward.x + torch.arange(forward.x.shape[1])[:, None] * WAVE


class Blunt(Broken):
    """All tokens of a grid, whoever has them."""

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        frames, rows, columns = forward.grid
        forward.x = forward.x + torch.ones(frames * rows * columns, 1)


class Undivided(Broken):
    """A refusal of ranks that nothing says beforehand."""

    @hookimpl
    def before_block(self, forward: Forward) -> None:
        if forward.sharding is not None:
            raise PlanError("broken wants all tokens")


class Stubborn(Broken):
    """Numbers of the precision that the computer likes."""

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        forward.x = forward.x + WAVE


class Inexact(Broken):
    """A saving that is seen."""

    exact = True

    @hookimpl
    def after_step(self, step: Step) -> None:
        step.window.latents = step.window.latents * 1.01


class Trusting(Broken):
    """Blocks that a cache may skip, relied upon."""

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        forward["broken.seen"] = index

    @hookimpl
    def unembed(self, forward: Forward) -> None:
        assert forward["broken.seen"] >= 0


class Choosy(Broken):
    """A refusal of other units that nothing says beforehand."""

    @hookimpl
    def begin_job(self, job: Job) -> None:
        if "teacache" in job.loop.plan:
            raise PlanError("broken wants no cache")


BROKEN: list[tuple[str, type[PipelineUnit], str]] = [
    ("documented", Undocumented, "its class has no docstring"),
    ("documented", Misnamed, "its name 'Not_a_name' is not of lower-case letters"),
    ("documented", RunOn, "the first line of its docstring is not a sentence by itself"),
    ("declared", Namesake, "something that is installed has the name 'euler' already; choose another"),
    ("declared", PresetNamesake, "something that is installed has the name 'original' already; choose another"),
    ("declared", Scattered, "its needs are 'frames' and not names in a tuple, such as ('frames',)"),
    ("declared", Unprovided, "its nulls name 'no_mood', which provides does not; did you mean 'mood'?"),
    ("declared", Unpaired, "its nulls are {'mood': 'no_mood'} and not values by condition, such as {'audio': "),
    ("declared", LooseSettings, "and no class derived from UnitSettings"),
    ("settings", SilentSetting, "the setting 'size' has no description"),
    ("settings", BoundlessSetting, "the setting 'size' is a number without bounds"),
    ("inputs", SilentInput, "the input 'mood' has no description"),
    ("inputs", TakenInput, "the input 'seed' is an option of omni run itself"),
    ("hooks", UnmarkedHook, "its method begin_job has the name of a hook and is not marked with @hookimpl"),
    ("hooks", MisspeltHook, "there is no hook 'begin_jobs'; did you mean 'begin_job'?"),
    ("hooks", MisspeltArgument, "its begin_job takes 'task'; the hook is begin_job(job)"),
    ("hooks", DefaultArgument, "its begin_job has a default for 'job', so that pluggy would never pass it"),
    ("hooks", FalseWrapper, "its begin_job must have a yield if it is marked with wrapper=True"),
    ("hooks", Idle, "it implements no hook"),
    ("saved", Shrinking, "the plan expression broken(size=0.5) makes Settings(size=0.25)"),
    ("video", Nan, "the transformer's output is not finite from step 1 of chunk 1 on"),
    ("video", Unfit, "unit 'broken' needs 'moonlight', which no unit of the plan provides; see plan="),
    ("values", SecretReader, "its end_window reads 'prompt_embedding', which neither needs nor uses names"),
    ("values", SecretWriter, "its begin_window stores 'sparkle', which provides does not name; call it 'broken.spark"),
    ("values", DirectReader, "its end_window reads 'prompt_embedding', which neither needs nor uses names"),
    ("values", DirectWriter, "its begin_window stores 'sparkle', which provides does not name; call it 'broken.spark"),
    ("values", DirectTaker, "its end_window stores 'given_latents', which provides does not name"),
    ("values", EmptyPromise, "it provides 'sparkle' and has never stored it"),
    ("values", Backward, "its begin_window reads 'given_latents', which neither"),
    ("values", Intruder, "its after_step stores 'transformer.positions', which is private to a unit 'transformer'"),
    ("roles", Moocher, "its begin_job asks for the model 'spare', which neither roles nor optional_roles name"),
    ("roles", Hoarder, "it names the role 'spare', without which no plan with it works, and has never asked"),
    ("state", Diarist, "a video has changed its attribute 'diary'"),
    ("state", SharedDiarist, "a video has changed its attribute 'diary'"),
    ("again", Gambler, "a second engine makes another video of the same request: 'latents' of window 0 differs by"),
    ("jobs", Grudge, "a video is another one when the engine has made one before"),
    ("jobs", Once, "PlanError: one video is enough"),
    ("interrupted", Untidy, "a video is another one after one that was interrupted"),
    ("windows", Nostalgic, "a window is another one when the run is resumed with it: 'latents' of window 1 differs"),
    ("windows", Unsavable, "no video with it can be resumed: the value 'sparkle' is function and no tensor"),
    ("windows", Recognising, "a window is another one when the run is resumed with it: 'latents' of window 1 differs"),
    ("branches", Partial, "a video is another one when its guidance branches run one by one, in reverse order"),
    ("batch", Loner, "a video is another one when its guidance branches are joined in one batch"),
    ("ranks", Counter, "a video is another one on rank 0 of 2 that share the tokens of each call"),
    ("ranks", Blunt, "RuntimeError: The size of tensor a"),
    ("ranks", Undivided, "+sequence-parallel' is refused, and no declaration says so: broken wants all tokens; decl"),
    ("precision", Stubborn, "in bfloat16: RuntimeError: mat1 and mat2 must have the same dtype"),
    ("exact", Inexact, "it says exact and changes the video"),
    ("together", Trusting, "KeyError"),
    ("together", Choosy, "+teacache' is refused, and no declaration says so: broken wants no cache; declare it in"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("promise", "unit", "text"), BROKEN, ids=[f"{row[0]}-{row[1].__name__}" for row in BROKEN])
def test_a_broken_promise_is_found_and_named(promise: str, unit: type[PipelineUnit], text: str) -> None:
    with pytest.raises(AssertionError) as caught:
        check(unit)
    message = str(caught.value)
    assert message.startswith(f"unit '{unit.name}' breaks the promise '{promise}': ")
    assert text in message


def test_every_promise_has_a_unit_that_breaks_it() -> None:
    assert {promise for promise, _, _ in BROKEN} == set(PROMISES)


@pytest.mark.slow
def test_a_sound_unit_passes() -> None:
    check(Sound, inputs={"season": "winter"})


def test_a_class_without_a_name_is_told_so() -> None:
    class Nameless(PipelineUnit):
        """A unit that no plan can name."""

    with pytest.raises(AssertionError, match="unit 'Nameless' breaks the promise 'documented': it has no name"):
        check_unit(Nameless)


class OneChunk(Broken):
    """Videos of one window only."""

    @hookimpl
    def begin_window(self, window: Window) -> None:
        if len(window.job.spans) > 1:
            raise PlanError("broken makes one window")


class SaysSo(OneChunk):
    """The same, said beforehand."""

    conflicts: ClassVar = {"fixed-frames": "it makes videos of one window only"}


class Shared(Undivided):
    """Refuses ranks, and says so beforehand."""

    conflicts: ClassVar = {"sequence-parallel": "it wants all tokens"}


class Spread(Broken, SpreadsWork):
    """Work for three ranks, however many there are."""

    def degrees(self, engine: Engine, ranks: int) -> dict[str, int]:
        return {"samples": 3} if ranks > 1 else {}


@pytest.mark.parametrize(
    ("promise", "unit", "text"),
    [
        ("windows", OneChunk, "+fixed-frames' is refused, and no declaration says so: broken makes one window"),
        ("windows", SaysSo, ""),
        ("ranks", Shared, ""),
        ("ranks", Spread, ""),
    ],
)
def test_a_refusal_counts_if_the_unit_has_said_so(promise: str, unit: type[PipelineUnit], text: str) -> None:
    plan = f"{PLAN.replace('+fixed-frames', '')}+{unit.name}"
    with pytest.raises(AssertionError, match=re.escape(text)) if text else nullcontext():
        check_unit(unit, plan=plan, networks=NETWORKS, skip=all_but(promise))


def all_but(promise: str) -> dict[str, str]:
    return {name: "only one counts here" for name in PROMISES if name != promise}


def test_the_default_plan_is_the_default_with_the_unit() -> None:
    with pytest.raises(AssertionError, match=r"'default-write-video\+broken' makes no video"):
        check_unit(Unfit)


def test_what_it_has_on_the_window_before_is_declared() -> None:
    class Knowing(Backward):
        """Says that it reads the value."""

        needs = ("previous.given_latents",)

    check(Knowing, skip=dict.fromkeys(list(PROMISES)[8:], "not about this"))


def test_a_promise_can_be_left_out_with_a_reason() -> None:
    later = {name: "not about this" for name in list(PROMISES) if name not in ("documented", "video")}
    with pytest.raises(AssertionError, match="not finite"):
        check(Nan, skip=later)
    check(Nan, skip={**later, "video": "its numbers are none on purpose"})


def test_a_promise_is_not_left_out_without_one() -> None:
    with pytest.raises(ValueError, match="say why 'video' is skipped"):
        check(Nan, skip={"video": " "})
    with pytest.raises(ValueError, match="no promise is called 'vidio'; did you mean 'video'"):
        check(Nan, skip={"vidio": "a slip"})


class Picky(Sound):
    """Cannot be used as its class has it."""

    name = "picky"

    @hookimpl(tryfirst=True, specname="begin_job")
    def look(self, job: Job) -> None:
        if not self.settings.words:
            raise ValueError("no words")
        logging.getLogger("torch.__trace").debug("hundreds of lines")


def test_a_unit_is_checked_with_the_settings_that_are_given(caplog: pytest.LogCaptureFixture) -> None:
    others = {name: "one is enough" for name in PROMISES if name not in ("video", "saved")}
    with pytest.raises(AssertionError, match="'video': ValueError: no words"):
        check(Picky, skip=others)
    with caplog.at_level(logging.DEBUG, "torch.__trace"):
        check(Picky, skip=others, settings={"words": ("warm", "soft")})
        assert caplog.messages == [], "a failing check would show them"
        logging.getLogger("torch.__trace").debug("heard again")
    assert caplog.messages == ["heard again"]


def test_a_misspelt_setting_is_named() -> None:
    with pytest.raises(AssertionError, match="unit 'sound' has no setting 'wramth'; did you mean 'warmth'"):
        check(Sound, settings={"wramth": 1})


def test_a_misspelt_input_is_named() -> None:
    with pytest.raises(AssertionError, match=r"'video': no unit of '.*' takes an input \['saeson'\]"):
        check(Sound, inputs={"saeson": "winter"})


def test_a_plan_without_the_unit_is_named() -> None:
    with pytest.raises(AssertionError, match=f"'{PLAN.replace('+', '.')}' has no unit 'sound'"):
        check_unit(Sound, plan=PLAN, networks=NETWORKS)


class Thief(PipelineUnit):
    """Says that it leaves something to others, and never does."""

    name = "thief"
    passes_on = ("predict",)

    @hookimpl(tryfirst=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.loop.one_call_each(step, branches)


class Heard(Thief):
    """Wants to be asked."""

    name = "heard"

    @hookimpl
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return step.loop.one_call_each(step, branches)


def test_an_answer_that_nobody_asks_for_is_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = discover().catalog()
    catalog = Catalog({**found.units, Thief.name: Thief}, found.presets)
    monkeypatch.setattr(check_module, "BUILTIN", (Thief,))
    monkeypatch.setattr(check_module.Subject, "installed", catalog)
    with pytest.raises(AssertionError, match="its predict is never asked, since another unit answers first"):
        check_unit(Heard, skip=all_but("together"))
