"""The scopes of a value: engine (all videos), job (one video), window (one chunk), step (one denoising step), forward
(one transformer call).

A value is stored in the scope in which it is constant, under the name that its unit declares in `provides`
(`window["condition"] = y`); an inner scope sees the values of the outer ones (`forward["condition"]`). The engine's
scope is `engine.values`. What the skeleton of the algorithm itself needs are plain attributes.
"""

from __future__ import annotations

import hashlib
import math
import operator
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

from omniavatar.engine.outline import Outline
from omniavatar.engine.windows import Span
from omniavatar.errors import InputError
from omniavatar.lazy import torch

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch import Tensor, nn

    from omniavatar.distributed.sharding import Sharding
    from omniavatar.engine.geometry import Geometry
    from omniavatar.engine.loop import Loop
    from omniavatar.models.wan_dit import BlockInputs, TimeValue

MAX_SEED = 2**63 - 1
MAX_SIDE = 2**31
Default = TypeVar("Default")


class Scope:
    """Named values; reading falls through to the outer scope."""

    def __init__(self, outer: Scope | None = None) -> None:
        self.outer = outer
        self.values: dict[str, Any] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[name] = value

    def __getitem__(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        raise KeyError(f"no unit has stored {name!r} yet; visible: {', '.join(sorted(set(self.names())))}")

    def __contains__(self, name: str) -> bool:
        return name in self.values or (self.outer is not None and name in self.outer)

    def get(self, name: str, default: Default | None = None) -> Any | Default | None:
        """The value, or `default` when no unit has stored it."""
        return self[name] if name in self else default  # noqa: SIM401 - this is the get

    def names(self) -> Iterator[str]:
        """All names that can be read here."""
        yield from self.values
        if self.outer is not None:
            yield from self.outer.names()

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The value stored here under `name`, made on first use."""
        if name not in self.values:
            self.values[name] = make()
        return self.values[name]

    def pop(self, name: str, default: Any = None) -> Any:
        """Take a value out of this scope; `default` when it is not here."""
        return self.values.pop(name, default)

    def clear(self) -> None:
        """Let all values of this scope go, whoever still holds the scope itself."""
        self.values.clear()


@dataclass(frozen=True)
class Request:
    """What one video is asked to be. Raises InputError for values that no video can have.

    inputs: the raw values for the units' `Inputs`, by name, such as image, audio, prompt and output.
    seed: of the noise, 0 to 2**63 - 1; None or -1 draws one, which `Request.seed` then says.
    height, width: pixels, both or neither. fps: frames per second, a whole number.
    seconds: the length, round(seconds * fps) frames and at least 1, unless an audio is shorter.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = 42
    height: int | None = None
    width: int | None = None
    seconds: float | None = None
    fps: int = 25

    def __post_init__(self) -> None:
        if not isinstance(self.inputs, Mapping):
            raise InputError(f"the inputs are a mapping of names to values, not {type(self.inputs).__name__}")
        object.__setattr__(self, "inputs", dict(self.inputs))
        if self.seed is None or self.seed == -1:
            object.__setattr__(self, "seed", secrets.randbelow(2**32))
        if (self.height is None) != (self.width is None):
            raise InputError(f"the height is {self.height} and the width {self.width}; give both, or neither")
        self._become_whole(
            "seed", 0, MAX_SEED, "the seed is {}; give a whole number from 0 to 2**63 - 1, or -1 to draw one"
        )
        self._become_whole("height", 1, MAX_SIDE, "the height is {}; give a whole number of pixels")
        self._become_whole("width", 1, MAX_SIDE, "the width is {}; give a whole number of pixels")
        self._become_whole("fps", 1, 1000, "the video has {} frames per second; give a whole number from 1 to 1000")
        seconds = self.seconds
        if seconds is not None:
            if not isinstance(seconds, Real) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
                raise InputError(f"the video is {seconds!r} seconds long; give more than 0")
            object.__setattr__(self, "seconds", float(seconds))

    def _become_whole(self, name: str, least: int, most: int, message: str) -> None:
        """See that a field is an integer, also one of numpy's, within bounds; None stays."""
        value = getattr(self, name)
        if value is None:
            return
        if not hasattr(value, "__index__") or isinstance(value, bool) or not least <= operator.index(value) <= most:
            raise InputError(message.format(repr(value)))
        object.__setattr__(self, name, operator.index(value))


class Job(Scope, Outline):
    """One video.

    `frames` (length of the video), `height` and `width` (pixels) are what the request says, else what units say in
    `plan_length` and `plan_size`; a sound that ends earlier shortens the video. `leading` counts latent frames that are
    denoised in front of those of every window and are not of the video, such as reference pictures: a unit that wants
    some adds to it in `begin_job`. `resources` closes whatever a unit opened, however the job ends; `results` is what
    units leave for `Result`, by name.
    `first` and `first_frame` are the numbers of the first window and frame that are made, above 0 when an earlier run
    is resumed.
    """

    def __init__(self, loop: Loop, request: Request, inputs: Mapping[str, BaseModel]) -> None:
        super().__init__(loop.engine.values)
        self.loop = loop
        self.engine = loop.engine
        self._ask(request, inputs)
        self.seed = int(request.seed or 0)
        self.leading = 0
        self.first = 0
        self.first_frame = 0
        self.spans: Sequence[Span] = ()
        self.memories: dict[str, dict[str, Tensor]] = {}
        self.resources = ExitStack()
        self.results: dict[str, Any] = {}

    @property
    def geometry(self) -> Geometry:
        """What latents and tokens of the engine stand for."""
        return self.engine.geometry

    def memory(self, expert: str, branches: Sequence[Branch]) -> dict[str, Tensor]:
        """What units remember, from window to window, about calls of this network for these branches: tensors by name.

        It is for what a window cannot be made without, such as the keys and values of the windows before: as
        `previous.NAME` it is part of the state of a run. Names are those of private values, "kv-cache.keys".
        """
        return self.memories.setdefault(f"{expert}/{'+'.join(branch.name for branch in branches)}", {})

    @property
    def length(self) -> int:
        """Frames of the video, the picture at its beginning included."""
        if self.frames is None:
            raise InputError(
                "the length of the video is unknown, since no audio is given; give one, or seconds for a silent video"
            )
        return self.frames

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        if self.height is None or self.width is None:
            raise InputError("the size of the video is unknown; give its height and width")
        return self.height, self.width

    def close(self) -> None:
        """Let go of all that the job holds, and of the loop, which holds the job."""
        self.clear()
        self.memories.clear()
        if "loop" in vars(self):
            del self.loop


class Previous(Scope):
    """What a window knows of the one before it: the values that units of the plan read as "previous.NAME", its span.

    Its tensors wait in host memory; reading one brings it to the engine's device.
    """

    def __init__(self, job: Job, index: int, span: Span, values: Mapping[str, Any]) -> None:
        super().__init__(job)
        self.device = job.engine.device
        self.index = index
        self.span = span
        self.values.update(values)

    def __getitem__(self, name: str) -> Any:
        if name not in self.values and name not in (self.outer or ()):
            raise KeyError(
                f"the window before has not kept {name!r}; a unit that reads it says so with needs or uses: "
                f"'previous.{name}'; kept: {', '.join(sorted(self.values)) or 'nothing'}"
            )
        value = super().__getitem__(name)
        return value.to(self.device) if isinstance(value, torch.Tensor) else value


@dataclass
class Frames:
    """A group of decoded frames of a window, in order; `start` is the number of the first, counted in the video.

    pixels: (1 3 t h w) float32 in [0, 1] on the engine's device.
    """

    start: int
    pixels: Tensor

    @property
    def stop(self) -> int:
        """The number of the frame behind the last one."""
        return self.start + self.pixels.shape[2]


class Memory(Scope):
    """What units remember between the steps about calls that are alike. `places`: see `Forward.frame_tokens`."""

    def __init__(self, outer: Scope) -> None:
        super().__init__(outer)
        self.places: dict[int, FrameTokens | None] = {}

    def clear(self) -> None:
        super().clear()
        self.places.clear()


class Window(Scope):
    """One chunk of a video: the frames `span`, the latents (b c t h w), the steps that denoise them.

    The latents are those of the span behind `job.leading` others; `video_latents` are the former alone.

    `previous` is what is known of the window before, or None.
    """

    def __init__(self, job: Job, index: int, span: Span, previous: Previous | None = None) -> None:
        super().__init__(job)
        self.job = job
        self.loop = job.loop
        self.engine = job.engine
        self.index = index
        self.span = span
        self.previous = previous
        self.steps: Sequence[Step] = ()
        self.latents: Tensor = torch.empty(1, 0, 0, 0, 0)
        self._step_count = 0
        self._branches: dict[str, Branch] = {}
        self._memories: dict[tuple[Any, ...], Memory] = {}

    @property
    def is_last(self) -> bool:
        return self.index == len(self.job.spans) - 1

    @property
    def step_count(self) -> int:
        """How many steps the window has, or had before it was closed."""
        return len(self.steps) or self._step_count

    @property
    def video_latents(self) -> Tensor:
        """The latents of the video's frames (b c t h w): a view, so that they can be overwritten."""
        return self.latents[:, :, self.job.leading :]

    def noise(self, key: str = "") -> Tensor:
        """Noise of the shape of the latents, float32, on the engine's device; `key` tells several apart.

        It is drawn on the CPU from the seed, the window's number and the key alone, so it is the same on any device and
        rank, whatever was drawn before. Frames in front of the video's get what is drawn last.
        """
        return self._noise(key)

    def _noise(self, *names: object) -> Tensor:
        """The noise of these names."""
        words = "\n".join(map(str, (self.job.seed, self.index, *names)))
        digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest) % 2**63)
        drawn = torch.randn(self.latents.shape, generator=generator)
        return drawn.roll(self.job.leading, dims=2).to(self.engine.device)

    @property
    def latent_frames(self) -> int:
        """Latent frames of the video's frames."""
        return self.engine.geometry.latent_frames(self.span.frames)

    @property
    def given_latent_frames(self) -> int:
        """Those of them that are fixed, 0 without given frames."""
        return self.engine.geometry.latent_frames(self.span.given)

    def branch(self, name: str, drops: Sequence[str] = ()) -> Branch:
        """The guidance branch of this name, made on first use and kept until the window ends."""
        branch = self._branches.setdefault(name, Branch(self, name, frozenset(drops)))
        if branch.dropped != frozenset(drops):
            raise ValueError(f"branch '{name}' drops {sorted(branch.dropped)} and was asked for with {sorted(drops)}")
        return branch

    def memory(
        self, network: nn.Module, branches: Sequence[Branch], frames: slice = slice(None), evaluation: int = 0
    ) -> Memory:
        """What units remember between the steps about calls of this network for these branches and latent frames.

        evaluation: which one of its step; each has a memory of its own.
        """
        key = (id(network), evaluation, frames.start, frames.stop, *(branch.name for branch in branches))
        return self._memories.setdefault(key, Memory(self))

    def close(self) -> None:
        """Let go of all that the window holds, at once and whoever still holds the window itself.

        Steps, branches and memories point back at the window, so without this only the cycle collector would free it.
        """
        self._step_count, self.steps = self.step_count, ()
        for scope in (*self._branches.values(), *self._memories.values(), self):
            scope.clear()
        self._branches.clear()
        self._memories.clear()
        self.previous = None
        self.latents = torch.empty(1, 0, 0, 0, 0)


class Branch(Scope):
    """One guidance branch of a window, such as "positive", and the conditions that it drops, such as "text", "audio".

    A unit that brings a condition asks `branch.drops("audio")` and then uses its null form.
    """

    ALL = "*"

    def __init__(self, window: Window, name: str, dropped: frozenset[str]) -> None:
        super().__init__(window)
        self.window = window
        self.name = name
        self.dropped = dropped

    def drops(self, condition: str) -> bool:
        return condition in self.dropped or self.ALL in self.dropped

    @staticmethod
    def fullest(branches: Sequence[Branch]) -> Branch:
        """The one that drops the least; of several the first."""
        return min(branches, key=lambda branch: (Branch.ALL in branch.dropped, len(branch.dropped)))


class Step(Scope):
    """One denoising step from noise level `sigma` to `sigma_next`; `timestep` (0..1000) is what the network is told.

    `expert` is the role of the transformer that works in it; a unit with several changes it in a `plan_steps` wrapper.
    In training every sample of the window's batch may have a noise level of its own, (b) float64 each, and so may every
    latent frame of a sample, (b t).
    `regimes` names what acts in this step and not in all others: a unit that acts in a range of steps adds its name in
    a `plan_steps` wrapper, so that caches compute where the regimes change.
    `evaluation` is 0, and for a further evaluation within a step its number; see `velocity_at`.
    """

    def __init__(
        self, window: Window, index: int, timestep: float | Tensor, sigma: float | Tensor, sigma_next: float
    ) -> None:
        super().__init__(window)
        self.evaluation = self._evaluations = 0
        self.window = window
        self.loop = window.loop
        self.engine = window.engine
        self.index = index
        self.timestep = timestep
        self.sigma = sigma
        self.sigma_next = sigma_next
        self.regimes: set[str] = set()
        self.expert: str = self.engine.plan.experts[0]
        self.velocity: Tensor = torch.empty(0)

    @property
    def network(self) -> Any:
        """The transformer that works in this step."""
        loaded = self.engine.networks.get(self.expert)
        return self.engine.model(self.expert) if loaded is None else loaded

    @property
    def is_first(self) -> bool:
        return self.index == 0

    @property
    def is_last(self) -> bool:
        return self.index == len(self.window.steps) - 1

    def noise(self, key: str = "") -> Tensor:
        """Noise of the shape of the latents as `Window.noise` gives it, another one in every step.

        Example, a solver that goes on from the clean latents that the network sees:
        `(1 - step.sigma_next) * clean + step.sigma_next * step.noise("lcm")`.
        """
        return self.window._noise(key, self.index)

    def velocity_at(self, latents: Tensor, sigma: float) -> Tensor:
        """The guided velocity (b c t h w) of other latents at another noise level, for `advance` of a solver.

        It is found as `velocity` was: frames that are held fixed are written over, then guidance asks the step's
        network. The window's latents stay as they are. The hooks `before_step` to `unembed` get a step of the same
        index, with the values of this one, whose `evaluation` counts from 1 within the step. Calls of further
        evaluations have a memory of their own, so that a cache reuses what the same one has added in an earlier step.
        """
        self._evaluations += 1
        other = Step(self.window, self.index, sigma * 1000, sigma, self.sigma_next)
        other.outer, other.evaluation = self, self._evaluations
        other.expert, other.regimes = self.expert, self.regimes
        kept, self.window.latents = self.window.latents, latents.clone()
        try:
            return self.loop.evaluate(other)
        finally:
            self.window.latents = kept

    def predict(self, branches: Sequence[Branch]) -> Sequence[Tensor]:
        """The velocity (b c t h w) of every branch; see `loop.predict`."""
        return self.loop.predict(self, branches)

    def forward(self, branches: Sequence[Branch], frames: slice | None = None) -> Tensor:
        """One transformer call for these branches, joined along the batch: (len(branches)*b c t h w).

        frames: the latent frames of the window that the call is about; default: all.
        """
        return self.loop.call(Forward(self, branches, frames))


@dataclass(frozen=True)
class FrameTokens:
    """Where the tokens of latent frames are among those of a rank.

    frames: the latent frames that it has tokens of (f). tokens: places of their tokens (f n); a frame of which it has
    fewer than of others names its last one more than once.
    """

    frames: Tensor
    tokens: Tensor


def tokens_of(frame_index: Tensor) -> FrameTokens | None:
    """From the frame of every token (s), negative for those that do not count."""
    frame_of = frame_index.cpu()
    frames = frame_of[frame_of >= 0].unique()
    if not len(frames):
        return None
    places = [(frame_of == frame).nonzero().flatten() for frame in frames]
    longest = torch.arange(max(len(place) for place in places))
    tokens = torch.stack([place[longest.clamp(max=len(place) - 1)] for place in places])
    return FrameTokens(frames.to(frame_index.device), tokens.to(frame_index.device))


class Forward(Scope):
    """One transformer call for one branch, or for several joined along the batch. See `hookspecs.Pipeline.embed`.

    `frames` are the latent frames of the window that it is about, all of them unless a unit cuts the window in pieces.
    `conditions` are what the blocks get beside the tokens, by name: "text", "image", ...; see `wan_dit.BlockInputs`.
    `left_out` are the blocks that no sample of the call runs, known when it begins.
    `beside` are what the attentions of the last block that ran have found beside their results.
    """

    x: Tensor
    time: TimeValue
    t_mod: TimeValue
    rope: Tensor
    grid: tuple[int, int, int]
    frame_index: Tensor
    output: Tensor

    def __init__(self, step: Step, branches: Sequence[Branch], frames: slice | None = None) -> None:
        super().__init__(branches[0] if len(branches) == 1 else step.window)
        self.step = step
        self.window = step.window
        self.job = step.window.job
        self.loop = step.loop
        self.engine = step.engine
        self.expert = step.expert
        self.network: Any = step.network
        self.branches = tuple(branches)
        self.frames = frames or slice(0, step.window.latents.shape[2])
        self.latents = self.cut(step.window.latents)
        self.memory = self.window.memory(self.network, branches, self.frames, step.evaluation)
        self.sharding: Sharding | None = None
        self.conditions: dict[str, Tensor] = {}
        self.left_out: set[int] = set()
        self.beside: dict[str, Tensor] = {}

    def block_inputs(self, index: int) -> BlockInputs:
        """What block `index` is given beside `x`."""
        from omniavatar.models.wan_dit import BlockInputs

        self.beside = {}
        left_out = frozenset(self.left_out)
        return BlockInputs(self.t_mod, self.rope, self.conditions, index, left_out, call=self, beside=self.beside)

    def run_block(self, index: int) -> None:
        """One block of the network on `x`, unless it is left out, with the hooks around it."""
        self.loop.run_block(self, index)

    def run_block_for(self, index: int, rows: Tensor) -> Tensor:
        """The tokens (b s d) after a block that runs for some samples of the batch only (k) int64; no hook is called.

        The tokens of the others pass unchanged.
        """
        made: Tensor = self.network.blocks[index](self.x[rows], self.block_inputs(index).samples(rows))
        return self.x.index_copy(0, rows, made)

    def rows(self, wanted: Callable[[Branch], bool]) -> Tensor:
        """The samples of the batch (k) int64 that belong to branches of a kind."""
        samples = len(self.window.latents)
        kept = [number for number, branch in enumerate(self.branches) if wanted(branch)]
        return torch.tensor(
            [number * samples + sample for number in kept for sample in range(samples)],
            dtype=torch.int64,
            device=self.latents.device,
        )

    @property
    def lasting(self) -> dict[str, Tensor]:
        """What units remember about such calls beyond the window, by name; see `Job.memory`."""
        return self.job.memory(self.step.expert, self.branches)

    def frame_tokens(self, first: int = 0) -> FrameTokens | None:
        """Where the tokens of latent frames are among those of this rank; None if it has only others.

        first: the latent frame from which on they count. Call it behind `embed`, when the tokens are spread over ranks.
        """
        places = self.memory.places
        if first not in places:
            places[first] = tokens_of(self.frame_index - first)
        return places[first]

    def cut(self, values: Tensor) -> Tensor:
        """The frames of this call, of something that has a value for every latent frame of the window (b c t h w)."""
        return values[:, :, self.frames]

    def stacked(self, select: Callable[[Branch], Tensor]) -> Tensor:
        """What `select` gives for every branch, joined along the batch (dimension 0)."""
        parts = [select(branch) for branch in self.branches]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def repeated(self, tensor: Tensor) -> Tensor:
        """A tensor that all branches share, repeated along the batch once per branch."""
        return self.stacked(lambda _: tensor)

    @property
    def timesteps(self) -> Tensor:
        """What the network is told about each sample (branches*b) float64, or each of its frames (branches*b t)."""
        timestep = self.step.timestep
        if isinstance(timestep, torch.Tensor):
            return self.repeated(timestep if timestep.ndim == 1 else timestep[:, self.frames])
        count = len(self.branches) * len(self.window.latents)
        return torch.full((count,), timestep, dtype=torch.float64, device=self.latents.device)

    def shard(self, tokens: Tensor) -> Tensor:
        """This rank's part of something that has a value for every token (b s ...); all of it on one rank.

        A unit that makes values per token after `embed`, such as hints for every block, passes them through here.
        """
        return tokens if self.sharding is None else self.sharding.shard(tokens)

    def gather(self, tokens: Tensor) -> Tensor:
        """The opposite: the values of all tokens (b s ...), on every rank."""
        return tokens if self.sharding is None else self.sharding.gather(tokens)

    def shard_tokens(self, sharding: Sharding) -> None:
        """Keep this rank's tokens only, with their positions, frames and modulation. Padding belongs to no frame."""
        from omniavatar.models.wan_dit import PerToken

        self.sharding = sharding
        self.x = sharding.shard(self.x)
        self.rope = sharding.shard(self.rope, dim=0)
        self.frame_index = sharding.shard(self.frame_index, dim=0, fill=-1)
        if isinstance(self.time, PerToken) and isinstance(self.t_mod, PerToken):
            self.time = replace(self.time, index=sharding.shard(self.time.index))
            self.t_mod = replace(self.t_mod, index=sharding.shard(self.t_mod.index))
