"""The engine: the skeleton of chunked video denoising. Everything it does happens in the units of its plan.

engine = Engine(plan, models, device="cuda", dtype=torch.bfloat16)
job = engine.generate(Request(inputs={"image": "me.png", "audio": "me.wav", "prompt": "..."}))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from omniavatar.distributed.groups import Groups, grid_shape
from omniavatar.distributed.world import ALONE, World
from omniavatar.engine.attention import AttentionSlot
from omniavatar.engine.hooks import Hooks
from omniavatar.engine.plan import Plan
from omniavatar.engine.residency import Residency
from omniavatar.engine.scopes import Branch, Forward, Job, Request, Scope, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span, ceil_4k1
from omniavatar.errors import CheckpointError, PlanError
from omniavatar.hookspecs import hookimpl


class Adapter(Protocol):
    """A LoRA file: what to call it, the role of the network it changes, the alpha written beside it, its tensors."""

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> str: ...

    @property
    def alpha(self) -> float | None: ...

    def tensors(self) -> Mapping[str, Tensor]: ...


class Models(Protocol):
    """Where the engine gets its networks from, by role; `omniavatar.checkpoints.Bundle` is one."""

    def __contains__(self, role: object) -> bool: ...

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """Build the network of this role with its weights on `device`.

        constructor: further arguments of its constructor, as far as it takes them. One is for the models: with
        `blocks=False` the weights of a network's `blocks` may stay on the meta device, if the models have `read_into`.
        """
        ...

    def config(self, role: str) -> Mapping[str, Any]:
        """The numbers of this role's network, such as `num_heads`, without loading it."""
        ...

    def beside(self, role: str, path: Path) -> Path:
        """The path, or, if it is relative, that path beside the files of this role."""
        ...

    def adapters(self) -> Sequence[Adapter]:
        """The LoRA files, in the order given."""
        ...


class Engine:
    """Makes videos by one plan with one set of models.

    plan: the ordered units.
    models: the networks by role.
    device, dtype: where and in what precision the networks run; latents stay in float32 between steps.
    observers: further implementations of `hookspecs.Pipeline`, called before the units (progress, timing).
    world: the ranks that make the video together; each has an engine with the same plan and gets the same requests.
    Raises CheckpointError if a unit's role has no model.
    """

    def __init__(
        self,
        plan: Plan,
        models: Models,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        observers: Iterable[Any] = (),
        world: World = ALONE,
    ) -> None:
        self.plan = plan
        self.models = models
        self.device = torch.device(device)
        self.dtype = dtype
        self.world = world
        self.groups = Groups()
        self.values = Scope()
        self.attention = AttentionSlot()
        units = [unit for unit in plan.units if world.is_main or not unit.main_rank_only]
        self.residency = Residency(plan.units)
        self.hooks = Hooks(units, [*observers, self.residency, _Calls()])
        self._around = self.residency.watching(self.hooks, plan.units)
        self._networks: dict[str, nn.Module] = {}
        self._is_set_up = False
        self._set_up_failure: BaseException | None = None
        for unit in plan.units:
            for role in unit.roles:
                if role not in models:
                    raise CheckpointError(
                        f"unit '{unit.name}' needs a model for the role '{role}' and no given file has one; "
                        f"add the file with --model, or leave the unit out with -{unit.name}"
                    )
            unit.check_models(models)

    @property
    def roles(self) -> list[str]:
        """The roles that the plan works with and that have a model."""
        wanted = [role for unit in self.plan.units for role in (*unit.roles, *unit.optional_roles)]
        return [role for role in dict.fromkeys(wanted) if role in self.models]

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that are loaded by now, by role."""
        return self._networks

    def model(self, role: str) -> Any:
        """The network of this role, loaded on first use: on the device, or in host memory if a unit wants that."""
        if role not in self._networks:
            in_host_memory = any(unit.hosts(role) for unit in self.plan.units)
            device = torch.device("cpu") if in_host_memory else self.device
            options: dict[str, Any] = {"attention": self.attention}
            if any(unit.reads_blocks for unit in self.plan.units):
                options["blocks"] = False
            self._networks[role] = self.models.load(role, device=device, dtype=self.dtype, **options).eval()
        return self._networks[role]

    def check_frozen(self, network: nn.Module, unit: PipelineUnit) -> None:
        """For a unit that keeps weights in another form. Raises PlanError if they change."""
        is_training = any(one.trains for one in self.plan.units)
        if is_training or any(weight.requires_grad for weight in network.parameters()):
            raise PlanError(f"unit '{unit.name}' is for making videos, and training changes weights; leave it out")

    def set_up(self) -> None:
        """Run the units' `setup`, once; `generate` does it when the caller has not.

        After a failure the models may be changed halfway, so every later call fails in the same way.
        """
        if self._set_up_failure is not None:
            raise self._set_up_failure
        if not self._is_set_up:
            self._is_set_up = True
            try:
                self.groups = Groups.make(self.world, self.degrees(), self.device)
                self.hooks.setup(self)
            except BaseException as error:
                self._set_up_failure = error
                raise

    def degrees(self) -> dict[str, int]:
        """Over how many ranks the plan spreads work, by axis; units that take what is left are asked last."""
        degrees: dict[str, int] = {}
        ranks = self.world.size
        for unit in sorted(self.plan.units, key=lambda unit: unit.fills_ranks):
            for axis, degree in unit.degrees(self, ranks).items():
                degrees[axis] = degree
                ranks //= degree
        return degrees

    def check_split(self) -> None:
        """Raise PlanError if the plan cannot spread its work over the ranks of the world."""
        grid_shape(self.degrees(), self.world.size)

    @torch.inference_mode()
    def generate(self, request: Request) -> Job:
        """Make one video; what the units made of it is in `job.results`.

        However it ends, `job.resources` is closed, so that nothing half-written stays behind.
        """
        self.plan.check_complete()
        job = Job(self, request, self.plan.parse_inputs(request.inputs))
        self.set_up()
        with job.resources:
            self.run(job)
        return job

    def run(self, job: Job) -> None:
        """The algorithm."""
        hooks = self.hooks
        hooks.begin_job(job)
        job.spans = hooks.plan_windows(job) or [whole_video(job)]
        window: Window | None = None
        for index, span in enumerate(job.spans):
            window = self.open_window(job, index, span, window)
            hooks.begin_window(window)
            self.denoise(window)
            hooks.end_window(window)
            window.close()
        hooks.end_job(job)

    def denoise(self, window: Window) -> None:
        """All steps of a window."""
        hooks = self.hooks
        for step in window.steps:
            hooks.before_step(step)
            step.velocity = hooks.guide(step)
            window.latents = hooks.advance(step)
            hooks.after_step(step)

    def forward(self, forward: Forward) -> Tensor:
        """One transformer call: the velocity (b c t h w) for `forward.latents`."""
        self.hooks.embed(forward)
        forward.x = self.hooks.run_blocks(forward)
        self.hooks.unembed(forward)
        return forward.output

    def open_window(self, job: Job, index: int, span: Span, previous: Window | None) -> Window:
        """A window with its noise and its steps; only the values of the window just before it are kept."""
        if previous is not None:
            previous.previous = None
        window = Window(job, index, span, previous)
        window.latents = self.noise(job, index, span)
        window.steps = self.hooks.plan_steps(window)
        return window

    def noise(self, job: Job, index: int, span: Span) -> Tensor:
        """Starting noise (1 c t h w), float32; the same for any device, rank and order of windows.

        Leading frames get what is drawn last, as in the first VACE program.
        """
        vae = self.model("vae")
        height, width = (side // vae.spatial_factor for side in job.size)
        generator = torch.Generator().manual_seed(job.request.seed * 1_000_003 + index)
        shape = (1, vae.z_dim, span.latent_frames + job.leading, height, width)
        return torch.randn(shape, generator=generator).roll(job.leading, dims=2).to(self.device)


class _Calls:
    """The engine's own `predict` and `call`, asked after all units."""

    @hookimpl(trylast=True)
    def predict(self, step: Step, branches: Sequence[Branch]) -> Sequence[Tensor]:
        return one_call_each(step, branches)

    @hookimpl(trylast=True)
    def call(self, forward: Forward) -> Tensor:
        return forward.engine.forward(forward)


def one_call_each(step: Step, branches: Sequence[Branch]) -> list[Tensor]:
    """One transformer call per branch: the velocities (b c t h w)."""
    return [step.forward([branch]) for branch in branches]


def whole_video(job: Job) -> Span:
    """One window over all frames, with nothing given: what a plan without `plan_windows` makes."""
    return Span(0, ceil_4k1(job.length), 0, 0, job.length)
