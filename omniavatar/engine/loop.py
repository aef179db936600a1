"""The algorithm of chunked video denoising, from top to bottom. Everything it does happens in the units of the plan.

    loop = Loop(engine, plan, request)
    loop.begin()
    for window in loop.windows():           # opens each window, and closes it when the next is asked for
        for step in loop.denoise(window):   # after every step
            ...
        for frames in loop.decode(window):  # group by group
            ...
    loop.finish()

`omniavatar.engine.run.Run` is this with cancelling, results and whatever else a caller wants.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from omniavatar.engine.finite import Watch
from omniavatar.engine.flow_match import START_LATENTS, add_noise
from omniavatar.engine.outline import settle_length, settle_size
from omniavatar.engine.plan import PREVIOUS, Plan
from omniavatar.engine.scopes import Branch, Forward, Frames, Job, Previous, Request, Step, Window
from omniavatar.engine.windows import Span
from omniavatar.errors import InputError

if TYPE_CHECKING:
    from omniavatar.engine.engine import Engine
    from omniavatar.engine.unit import PipelineUnit

FRAMES = "frames"
"""The value under which a window holds its last decoded frames (1 3 t h w), those that the next one continues from."""
GROUP_PIXELS = 2**24
"""Decoded frames are handed on in groups of at most about so many pixels, but not of fewer frames than a latent has."""


@dataclass(frozen=True, eq=False)
class Group:
    """Frames of the video as they are shown: (t h w 3) uint8 on the host; `start` is the number of the first."""

    start: int
    frames: np.ndarray


class Loop:
    """One video in work. The engine must have been set up (`Engine.load`) before `begin`.

    plan: the engine's, maybe with other settings. observers: further hooks, called before those of the units.
    check: called before every step and group of frames; raises what ends the video.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        request: Request,
        observers: Iterable[Any] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.plan = plan
        self.check = check
        self.hooks = engine.hooks_of(plan, observers)
        self.job = Job(self, request, plan.parse_inputs(request.inputs))
        self.previous: Previous | None = None
        self.kept = kept_values(plan)
        self._open: Window | None = None
        self._watch = Watch()

    def begin(self, spans: Sequence[Span] | None = None) -> None:
        """What is constant for the whole video, and which frames are denoised together.

        spans: the windows, instead of those that a unit plans.
        """
        self.job.seed = self.engine.agreed(self.job.seed)
        self.check()
        settle_size(self.hooks, self.job)
        settle_length(self.hooks, self.job)
        self.hooks.begin_job(self.job)
        self.check()
        self.job.spans = spans or self.hooks.plan_windows(self.job) or [whole_video(self.job)]

    def windows(self, indices: Iterable[int] | None = None) -> Iterator[Window]:
        """The windows, each ready to be denoised; what the next one reads of it is kept when that is asked for.

        indices: which ones; default: all from `job.first` on.
        """
        for index in range(self.job.first, len(self.job.spans)) if indices is None else indices:
            window = self.open_window(index, self.job.spans[index], self.previous)
            try:
                yield window
                if self._open is window:
                    self.close_window(window)
            finally:
                window.close()

    def open_window(
        self,
        index: int,
        span: Span,
        previous: Previous | None = None,
        latents: Tensor | None = None,
        values: Mapping[str, Any] | None = None,
        without: Iterable[PipelineUnit] = (),
    ) -> Window:
        """A window with its noise, its steps and what units store when it begins.

        latents: instead of noise (b c t h w); then no steps are planned. values: of the units `without`, which are not
        asked, since what they would store is here already.
        """
        self.check()
        window = Window(self.job, index, span, previous)
        if latents is None:
            window.latents = self.hooks.noise(window)
            window.steps = self.hooks.plan_steps(window)
        else:
            window.latents = latents
        self._open, self._watch = window, Watch()
        window.values.update(values or {})
        self.hooks.begin_window(window, without)
        start: Tensor | None = window.get(START_LATENTS)
        if start is not None and window.steps:
            window.video_latents[:] = add_noise(start, window.video_latents, window.steps[0].sigma)
        return window

    def plan_window(self) -> Window:
        """A window of one frame that is only planned: its steps are known, and nothing has begun."""
        window = Window(self.job, 0, Span(0, 1, 0, 0, 1))
        window.steps = self.hooks.plan_steps(window)
        return window

    def noise(self, index: int, span: Span) -> Tensor:
        """Starting noise (1 c t h w), float32; the same for any device, rank and order of windows.

        Leading frames get what is drawn last, as in the first VACE program.
        """
        job, geometry = self.job, self.engine.geometry
        height, width = (side // geometry.spatial_factor for side in job.size)
        generator = torch.Generator().manual_seed((job.seed * 1_000_003 + index) % 2**63)
        shape = (1, geometry.channels, geometry.latent_frames(span.frames) + job.leading, height, width)
        return torch.randn(shape, generator=generator).roll(job.leading, dims=2).to(self.engine.device)

    def open_step(self, window: Window, timestep: float | Tensor, sigma: float | Tensor) -> Step:
        """The only step of a window, ready for predictions at a noise level, or one a sample (b) or frame (b t)."""
        step = Step(window, 0, timestep, sigma, 0.0)
        window.steps = [step]
        self.hooks.before_step(step)
        return step

    def denoise(self, window: Window) -> Iterator[Step]:
        """All steps of a window; gives each when it is done."""
        hooks = self.hooks
        for step in window.steps:
            self.check()
            step.velocity = self.evaluate(step)
            window.latents = hooks.advance(step)
            hooks.after_step(step)
            self._watch.see_latents(window.latents)
            yield step

    def evaluate(self, step: Step) -> Tensor:
        """The guided velocity (b c t h w) of the window's latents at the noise level of a step."""
        self.hooks.before_step(step)
        return self.hooks.guide(step)

    def predict(self, step: Step, branches: Sequence[Branch]) -> list[Tensor]:
        """The velocity (b c t h w) of every branch, each that is wanted predicted once."""
        taken = self.hooks.substitute(step, branches)
        wanted = list(dict.fromkeys(taken))
        velocities = dict(zip(wanted, self.hooks.predict(step, wanted), strict=True))
        return [velocities[branch] for branch in taken]

    def one_call_each(self, step: Step, branches: Sequence[Branch]) -> list[Tensor]:
        """How branches are predicted unless a unit knows better: a transformer call for each."""
        return [step.forward([branch]) for branch in branches]

    def call(self, forward: Forward) -> Tensor:
        """One transformer call that a unit may make several of: the velocity (b c t h w) for `forward.latents`."""
        return self.hooks.call(forward)

    def transformer(self, forward: Forward) -> Tensor:
        """One transformer call: tokens, blocks, and latents again (b c t h w)."""
        self.hooks.embed(forward)
        forward.x = self.hooks.run_blocks(forward)
        self.hooks.unembed(forward)
        return forward.output

    def run_block(self, forward: Forward, index: int) -> None:
        """One block of the network on `forward.x`, unless it is left out, and what units do around it."""
        self.hooks.before_block(forward, index)
        if index not in forward.left_out:
            forward.x = self.hooks.run_block(forward, index)
        self.hooks.after_block(forward, index)

    def one_block(self, forward: Forward, index: int) -> Tensor:
        """The tokens after a block (b s d)."""
        tokens: Tensor = forward.network.blocks[index](forward.x, forward.block_inputs(index))
        return tokens

    def decode(self, window: Window) -> Iterator[Group]:
        """The frames of a window that enter the video, group by group, as they are shown.

        They are decoded while they are asked for. What the next window continues from is kept as it was decoded.
        Raises NotFinite before the first frames that are none, or that come of latents that are none.
        """
        tail = Tail(self.frames_kept(window))
        start, span = window.span.start, window.span
        for pixels in groups_of(self.hooks.decode_latents(window), self.engine.geometry.temporal_factor):
            self.check()
            tail.add(pixels)
            frames = Frames(start, pixels)
            start = frames.stop
            self.hooks.postprocess_frames(window, frames)
            self._watch.see_frames(frames.pixels)
            first, last = max(span.keep_start, frames.start), min(span.keep_stop, frames.stop)
            if first < last:
                group = Group(first, to_bytes(frames.pixels[:, :, first - frames.start : last - frames.start]))
                self._watch.check(window)
                self.hooks.output_frames(window, group.start, group.frames)
                yield group
        if tail.parts:
            window[FRAMES] = tail.frames

    def frames_kept(self, window: Window) -> int:
        """How many of a window's last frames the next one may read."""
        if FRAMES not in self.kept or window.is_last:
            return 0
        return self.job.spans[window.index + 1].given

    def close_window(self, window: Window) -> None:
        """Hand over to the next window what it reads of this one, and let all else go. Raises NotFinite."""
        self._watch.check(window)
        self.hooks.end_window(window)
        kept = {name: on_host(value) for name in self.kept if (value := window.values.get(name)) is not None}
        self.previous = None if window.is_last else Previous(self.job, window.index, window.span, kept)
        window.close()
        self._open = None

    def finish(self) -> None:
        """Finish what belongs to the whole video, such as its file."""
        self.hooks.end_job(self.job)

    def close(self, error: BaseException | None = None) -> None:
        """Close what units have opened and let everything go; `error` is what ended the video early, if anything."""
        try:
            self.job.resources.__exit__(type(error) if error else None, error, None)
        finally:
            if self._open is not None:
                self._open.close()
            self._open = self.previous = None
            self.job.close()


class Tail:
    """The last `count` frames of a stream of groups (1 3 t h w); what lies before them is let go."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.parts: list[Tensor] = []

    def add(self, pixels: Tensor) -> None:
        """The next group."""
        if not self.count:
            return
        self.parts.append(pixels)
        while sum(part.shape[2] for part in self.parts[1:]) >= self.count:
            del self.parts[0]

    @property
    def frames(self) -> Tensor:
        """(1 3 t h w), in memory of its own."""
        return torch.cat(self.parts, dim=2)[:, :, -self.count :].clone()


def groups_of(decoded: Iterator[Tensor], fewest: int) -> Generator[Tensor, None, None]:
    """The frames (1 3 t h w) of a decoder, in groups that are not too large, as float32. fewest: of a group."""
    for pixels in decoded:
        count = max(fewest, GROUP_PIXELS // (pixels.shape[3] * pixels.shape[4]) // fewest * fewest)
        for part in pixels.split(count, dim=2):
            yield part.float()


def to_bytes(pixels: Tensor) -> np.ndarray:
    """Frames (1 3 t h w) in [0, 1] as bytes (t h w 3) on the host."""
    rounded = pixels[0].mul(255).round_().clamp_(0, 255).to(torch.uint8)
    return rearrange(rounded, "c t h w -> t h w c").contiguous().cpu().numpy()


def whole_video(job: Job) -> Span:
    """One window over all frames, with nothing given: what a plan without `plan_windows` makes."""
    return Span(0, job.engine.geometry.rounded_up(job.length), 0, 0, job.length)


def kept_values(plan: Plan) -> frozenset[str]:
    """The values of a window that units of the plan read in the next one."""
    named = {name for unit in plan.units for name in (*unit.needs, *unit.uses) if name.startswith(PREVIOUS)}
    return frozenset(name.removeprefix(PREVIOUS) for name in named)


def on_host(value: Any) -> Any:
    """A value in host memory; tensors of a GPU are copied."""
    return value.detach().cpu() if isinstance(value, Tensor) else value


# The state between two windows ----------------------------------------------------------------------------------------

STATE_WINDOW = "run.window"
STATE_START = "run.start"
STATE_REQUEST = "run.request"
STATE_VALUE = "previous."
STATE_ABSENT = "absent."
STATE_MEMORY = "memory."


def state_of(loop: Loop, next_window: int) -> dict[str, Tensor]:
    """What windows from `next_window` on need of those before: tensors by name, on the host, as safetensors takes them.

    Raises InputError if a unit has handed over a value that is no tensor.
    """
    job = loop.job
    state = {
        STATE_WINDOW: torch.tensor(next_window),
        STATE_START: torch.tensor(start_of(job, next_window)),
        STATE_REQUEST: torch.tensor([job.seed, *job.size, job.length, job.fps]),
    }
    for name in sorted(loop.kept if loop.previous is not None else ()):
        value = loop.previous.values.get(name) if loop.previous is not None else None
        if value is None:
            state[STATE_ABSENT + name] = torch.zeros(1)
        elif isinstance(value, Tensor):
            state[STATE_VALUE + name] = value.contiguous().clone()
        else:
            raise InputError(f"the value '{name}' is {type(value).__name__} and no tensor, so no state can hold it")
    for call, tensors in job.memories.items():
        for name, value in tensors.items():
            state[f"{STATE_MEMORY}{call}/{name}"] = value.detach().cpu().contiguous().clone()
    return state


def start_of(job: Job, index: int) -> int:
    """The number of the first frame that a window shows; behind the last window the length of the video."""
    return job.spans[index].keep_start if index < len(job.spans) else job.length


def announce(job: Job, state: Mapping[str, Tensor]) -> None:
    """Tell a job that has not begun where it goes on. Raises InputError if this is no state."""
    for name, count in ((STATE_WINDOW, 1), (STATE_START, 1), (STATE_REQUEST, 5)):
        found = state.get(name)
        if not isinstance(found, Tensor) or found.numel() != count or found.is_floating_point():
            raise InputError(f"this is no state of a run: it has no tensor '{name}' of {count} whole numbers")
    job.first, job.first_frame = int(state[STATE_WINDOW]), int(state[STATE_START])


def restore(loop: Loop, state: Mapping[str, Tensor]) -> None:
    """Let a loop that has begun go on where a state was taken. Raises InputError if it is of another video."""
    job = loop.job
    names = ("seed", "height", "width", "number of frames", "frame rate")
    mine = [job.seed, *job.size, job.length, job.fps]
    for what, here, there in zip(names, mine, state[STATE_REQUEST].tolist(), strict=True):
        if here != there:
            raise InputError(f"the state is of another video: its {what} is {there}, and here it is {here}")
    if not 0 < job.first <= len(job.spans) or start_of(job, job.first) != job.first_frame:
        raise InputError(
            f"the state is of another plan: it goes on with window {job.first + 1}, frame {job.first_frame}, and the "
            f"video has windows from the frames {', '.join(str(span.keep_start) for span in job.spans)}"
        )
    kept = {name.removeprefix(STATE_VALUE): value for name, value in state.items() if name.startswith(STATE_VALUE)}
    if job.first < len(job.spans):
        check_kept(loop, state)
    loop.previous = Previous(job, job.first - 1, job.spans[job.first - 1], kept)
    for key, value in state.items():
        if key.startswith(STATE_MEMORY):
            call, _, name = key.removeprefix(STATE_MEMORY).rpartition("/")
            job.memories.setdefault(call, {})[name] = value.to(loop.engine.device)


def check_kept(loop: Loop, state: Mapping[str, Tensor]) -> None:
    """Raise InputError for values of a state with which this plan cannot go on."""
    for name in sorted(loop.kept):
        if STATE_VALUE + name not in state and STATE_ABSENT + name not in state:
            raise InputError(
                f"the state lacks '{STATE_VALUE}{name}', which this plan continues from; resume with the plan that "
                "made it"
            )
    frames = state.get(STATE_VALUE + FRAMES)
    if frames is not None and tuple(frames.shape[-2:]) != loop.job.size:
        height, width = frames.shape[-2:]
        raise InputError(
            f"the state's '{STATE_VALUE}{FRAMES}' has {width}x{height} pixels, and the video "
            f"{loop.job.size[1]}x{loop.job.size[0]}"
        )
