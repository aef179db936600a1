"""The engine: what is loaded. Networks, where they lie, how they attend, which ranks work together; and who uses them.

    engine = Engine(plan, models, device="cuda", dtype=torch.bfloat16)
    result = engine.generate(Request({"image": "me.png", "audio": "me.wav", "prompt": "..."}))

A video is a `Run` (`run.py`), the algorithm is in `loop.py`, and everything it does happens in the units of the plan.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from omniavatar.distributed.groups import Groups, grid_shape
from omniavatar.distributed.world import ALONE, World
from omniavatar.engine.attention import AttentionSlot
from omniavatar.engine.conversion import conversions_of, trains
from omniavatar.engine.draft import Draft
from omniavatar.engine.geometry import Geometry
from omniavatar.engine.hooks import Hooks
from omniavatar.engine.media_inputs import check_media
from omniavatar.engine.placing import placing_units
from omniavatar.engine.plan import Plan, SettingsByUnit, with_settings
from omniavatar.engine.ranks import degrees_of, working
from omniavatar.engine.residency import Residency
from omniavatar.engine.run import Result, Run, State
from omniavatar.engine.scopes import Forward, Request, Scope, Step
from omniavatar.engine.surround import Around
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, EngineBusy, InputError, OmniError, PlanError
from omniavatar.models.conversion import Conversions
from omniavatar.models.lora import Change
from omniavatar.roles import companion_of


class LoraFit(Protocol):
    """What a LoRA file does to a network: changes by weight name, in their order; as text: how much of it is used."""

    @property
    def changes(self) -> Mapping[str, Sequence[Change]]: ...

    def beside(self, other: Any) -> LoraFit:
        """What the same file does to this network and to another one with it."""
        ...

    def check(self) -> None:
        """Raise CheckpointError if it changes nothing."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """How much of the file is used, and why the rest is not, as JSON values."""
        ...


class LoraContent(Protocol):
    """What a LoRA file means."""

    def fit(
        self, shapes: Mapping[str, Sequence[int]], *, partial: bool = False, part: str = ..., is_named: bool = False
    ) -> LoraFit:
        """What it does to a network with weights of these names and shapes; `partial`: it may be for another alone.

        part: which of the networks that the file names this one is, by `Adapter.places`. is_named: see `Adapter`.
        Raises CheckpointError if it does not fit, so that nothing is applied by halves.
        """
        ...


class Adapter(Protocol):
    """A LoRA file; `omniavatar.checkpoints.LoraFile` is one.

    name: what to call it. target: the role of the network that it is given for; is_named: by the user, so that it
    changes no other one. strength: how strong the user wants it, for all steps, or as (begin, end, strength) by ranges
    of the steps. is_own: whether it is part of a checkpoint that brings more, and not a LoRA that the user has added.
    """

    @property
    def name(self) -> str: ...

    @property
    def target(self) -> str: ...

    @property
    def is_named(self) -> bool: ...

    def places(self, experts: Sequence[str]) -> Mapping[str, str]:
        """The roles that it may change, what lies beside a transformer in its files included: audio layers.

        Each comes with what `LoraContent.fit` is told of it. experts: the roles of the transformers that take turns.
        """
        ...

    @property
    def strength(self) -> float | tuple[tuple[float, float, float], ...]: ...

    @property
    def is_own(self) -> bool: ...

    def read(self) -> LoraContent:
        """Read the file. Raises CheckpointError if it is damaged."""
        ...


class Models(Protocol):
    """Where the engine gets its networks from, by role; `omniavatar.checkpoints.Bundle` is one.

    Models that have a `skeleton(role, dtype=...)`, the network of a role on the meta device, are asked for that where
    numbers of a network are wanted before it is loaded.
    """

    def __contains__(self, role: object) -> bool: ...

    def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
        """Build the network of this role with its weights on `device`.

        constructor: further arguments of its constructor, as far as it takes them. Two are for the models: with
        `blocks=False` the weights of a network's `blocks` may stay on the meta device, if the models have `read_into`.
        `conversions` are what the plan makes of the weights: models that read files apply them weight by weight; where
        they are not begun, the engine converts the loaded network.
        """
        ...

    def config(self, role: str) -> Mapping[str, Any]:
        """The numbers of this role's network, such as `num_heads`, without loading it."""
        ...

    def beside(self, role: str, path: Path) -> Path:
        """The path, or, if it is relative, that path beside the files of this role."""
        ...

    def tokenizer(self, role: str) -> Callable[[], Any] | None:
        """What makes the tokenizer that lies in this role's file, if one does."""
        ...

    def adapters(self) -> Sequence[Adapter]:
        """The LoRA files, in the order given."""
        ...


class Engine:
    """Makes videos by one plan with one set of models, one at a time.

    plan: the ordered units. models: the networks by role.
    device, dtype: where and in what precision the networks run; latents stay in float32 between steps.
    observers: further implementations of `hookspecs.Pipeline` for all runs, called before the units.
    world: the ranks that make the video together; each has an engine with the same plan and gets the same requests.

    `values` is the outermost scope, of what is constant for all videos; `resources` are closed with the engine.
    `conversions` are what the plan has made of the weights of each loaded network.
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
        self.observers = tuple(observers)
        self.groups = Groups()
        self.attention = AttentionSlot()
        self.values = Scope()
        self.resources = ExitStack()
        self.residency = Residency(plan)
        self._around: list[Around] = [self.residency.around]
        self._hooks: tuple[Any, Hooks] | None = None
        self._networks: dict[str, nn.Module] = {}
        self.conversions: dict[str, Conversions] = {}
        self._skeletons: dict[str, nn.Module] = {}
        self._is_set_up = self._is_closed = False
        self._set_up_failure: tuple[type[OmniError], str] | None = None
        self._loading = threading.RLock()
        self._lock = threading.Lock()
        self._run: weakref.ref[Run] | None = None
        for unit in plan.units:
            for role in unit.required_roles():
                if role not in models:
                    raise CheckpointError(
                        f"unit '{unit.name}' needs a model for the role '{role}' and no given file has one; "
                        f"add the file with --model, beside a configuration that has the others (--config NAME), "
                        f"or leave the unit out with -{unit.name}"
                    )
            unit.check(plan, models)

    # Networks ---------------------------------------------------------------------------------------------------------

    @property
    def roles(self) -> list[str]:
        """The roles that the plan works with and that have a model."""
        return [role for role in self.plan.roles if role in self.models]

    @property
    def roles_in_steps(self) -> list[str]:
        """Those of the roles whose networks work while steps run."""
        return [role for role in self.roles if role in self.residency.in_steps]

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that are loaded by now, by role."""
        return self._networks

    def model(self, role: str) -> Any:
        """The network of this role, loaded on first use: on the device, or in host memory if a unit wants that."""
        with self._loading:
            if role not in self._networks:
                self._networks[role] = self._loaded(role)
            return self._networks[role]

    @property
    def geometry(self) -> Geometry:
        """What latents and tokens of this engine stand for."""
        vae, transformer = self.plan.autoencoder, self.plan.experts[0]
        return Geometry(
            channels=self._number(vae, "z_dim"),
            temporal_factor=self._number(vae, "temporal_factor"),
            spatial_factor=self._number(vae, "spatial_factor"),
            patch_size=tuple(self._number(transformer, "patch_size", (1, 1, 1))),
        )

    def _number(self, role: str, name: str, *default: Any) -> Any:
        known = self.foreseen(role, name)
        return getattr(self.model(role), name, *default) if known is None else known

    def foreseen(self, role: str, name: str) -> Any:
        """A number of a role's network, such as `z_dim`, without reading weights; None if that cannot be told."""
        loaded = self._networks.get(role, self._skeletons.get(role))
        if loaded is None and role in self.models:
            found = self.models.config(role).get(name)
            if found is not None:
                return found
            make = getattr(self.models, "skeleton", None)
            if make is not None:
                loaded = self._skeletons[role] = make(role, dtype=self.dtype)
        return getattr(loaded, name, None)

    def companions(self, role: str) -> list[str]:
        """The roles of the networks of this kind that belong to an expert of the plan each, as far as there are models.

        Example: `companions("vace")` is ["vace", "vace2"] for two transformers of which each has a branch.
        """
        return [own for own in self.plan.companions(role) if own in self.models]

    def companion(self, role: str, at: Step | Forward) -> Any:
        """The network of this kind that goes with the expert at work, or the one that there is for all of them."""
        return self.model(self.companion_role(role, at))

    def companion_role(self, role: str, at: Step | Forward) -> str:
        """The role of `companion`."""
        own = companion_of(role, self.plan.experts[0], at.expert)
        return own if own in self.models else role

    def _loaded(self, role: str) -> nn.Module:
        """The network of this role, loaded now."""
        if self._is_closed:
            raise InputError("the engine is closed; open another one")
        placing = placing_units(self.plan.units)
        in_host_memory = any(unit.hosts(role) for unit in placing)
        device = torch.device("cpu") if in_host_memory else self.device
        options: dict[str, Any] = {"attention": self.attention}
        if any(unit.reads_blocks for unit in placing):
            options["blocks"] = False
        conversions = conversions_of(self, role)
        network = self.models.load(role, device=device, dtype=self.dtype, conversions=conversions, **options).eval()
        if conversions.network is None:  # from models that do not convert as they load
            conversions.convert(network)
        self.conversions[role] = conversions
        return network

    def load(self, show: Callable[[str, int, int], None] = lambda doing, done, total: None) -> None:
        """Load the networks that the plan needs, and set the units up; a run does it when it has not been done.

        show: called before each part with what is being done, how many parts are over, and how many there are.
        """
        roles = self.plan.required_roles
        if self._is_set_up and not self._is_closed:
            return
        with self._loading, self.current():
            for index, role in enumerate(roles):
                show(f"loading {role}", index, len(roles))
                self.model(role)
            show("setting up", len(roles), len(roles))
            self.set_up()

    def set_up(self) -> None:
        """Run the units' `setup`, once.

        After a failure the models may be changed halfway, so every later call fails in the same way.
        """
        with self._loading:
            if self._is_closed:
                raise InputError("the engine is closed; open another one")
            if self._set_up_failure is not None:
                kind, text = self._set_up_failure
                raise kind(text)
            if not self._is_set_up:
                try:
                    self.groups = Groups.make(self.world, self.degrees(), self.device)
                    self.hooks_of(self.plan).setup(self)
                except BaseException as error:
                    self._set_up_failure = failure_of(error)
                    raise
                self._is_set_up = True

    def check_frozen(self, network: nn.Module, unit: PipelineUnit) -> None:
        """For a unit that keeps weights in another form. Raises PlanError if they change."""
        if trains(self.plan.units) or any(weight.requires_grad for weight in network.parameters()):
            raise PlanError(f"unit '{unit.name}' is for making videos, and training changes weights; leave it out")

    def wait(self) -> None:
        """Wait until a GPU has done what it was told, so that times are those of the work and not of its order."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # Runs -------------------------------------------------------------------------------------------------------------

    def start(
        self,
        request: Request,
        *,
        settings: SettingsByUnit | None = None,
        observers: Iterable[Any] = (),
        resume: State | str | Path | None = None,
    ) -> Run:
        """A video that is made as the caller takes its chunks. Nothing is loaded or computed before the first.

        settings: by unit, stronger than the engine's, for units that do nothing in `setup`.
        observers: objects with hooks, called beside the units', such as `omniavatar.progress.Progress`.
        resume: what `Run.state` gave, or a safetensors file of it; chunks begin behind it.
        Raises EngineBusy while another run is in work, and what `check_request` does.
        """
        if not isinstance(request, Request):
            raise InputError(
                f"a run is started with a Request, not {type(request).__name__}: Request({{'image': ...}})"
            )
        if not isinstance(observers, Iterable):
            raise InputError(f"observers are a list of objects with hooks, not one {type(observers).__name__}")
        with self._lock:
            if self._is_closed:
                raise InputError("the engine is closed; open another one")
            if self._is_busy():
                gc.collect()  # a run that nobody can go on with, but that points at itself, is no reason to refuse
            if self._is_busy():
                raise EngineBusy(
                    "the engine is making another video; wait until it is done, cancel it, or open another engine"
                )
            plan = with_settings(self.plan, settings or {})
            self._check(plan, request)
            run = Run(self, plan, request, observers, resume)
            self._run = weakref.ref(run)
        return run

    def generate(
        self,
        request: Request,
        *,
        settings: SettingsByUnit | None = None,
        observers: Iterable[Any] = (),
        resume: State | str | Path | None = None,
    ) -> Result:
        """Make a whole video; see `start`. However it ends, nothing half-written stays behind."""
        with self.start(request, settings=settings, observers=observers, resume=resume) as run:
            return run.result()

    def check_request(self, request: Request, *, settings: SettingsByUnit | None = None) -> None:
        """Raise the OmniError that a run would end with, as far as inputs, settings and headers of files tell.

        `start` does it too; this is for who wants to know it of many requests before the first. No weights are read.
        """
        self._check(with_settings(self.plan, settings or {}), request)

    def _check(self, plan: Plan, request: Request) -> None:
        for unit in plan.units:
            unit.check(plan, self.models)
        draft = Draft(self, plan, request)
        check_media(plan, draft.inputs_by_unit, request.seconds)
        hooks = Hooks(self._working(plan))
        draft.settle(hooks)
        hooks.check_request(draft)
        draft.check_complete()

    def _is_busy(self) -> bool:
        current = self._run() if self._run is not None else None
        return current is not None and not current.is_over

    def close(self) -> None:
        """Cancel the run in work and give memory, threads and groups of ranks back. The engine cannot be used again."""
        with self._lock:
            current, self._run = self._run() if self._run is not None else None, None
            self._is_closed = True
        if current is not None:
            current.close()
        self.resources.close()
        self.residency.visitors.clear()
        self._networks.clear()
        self.conversions.clear()
        self._skeletons.clear()
        self.values.clear()
        self.attention = AttentionSlot()
        self.groups.close()
        self.groups = Groups()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # For loops --------------------------------------------------------------------------------------------------------

    def hooks_of(self, plan: Plan, observers: Iterable[Any] = ()) -> Hooks:
        """The hooks of a plan that this engine works by; made once for its own plan, if nobody observes."""
        key = (plan, tuple(observers), tuple(self._around))
        if self._hooks is not None and self._hooks[0] == key:
            return self._hooks[1]
        hooks = Hooks(self._working(plan), [*self.observers, *key[1], self.residency], self._around)
        if not key[1]:
            self._hooks = (key, hooks)
        return hooks

    def _working(self, plan: Plan) -> list[PipelineUnit]:
        """The units that this rank runs."""
        return working(plan.units, is_main=self.world.is_main)

    @contextmanager
    def instrumented(self, around: Around) -> Iterator[None]:
        """Have every hook of every unit run in a context, in what is started within the with-block."""
        self._around.append(around)
        try:
            yield
        finally:
            self._around.remove(around)

    @contextmanager
    def current(self) -> Iterator[None]:
        """What the engine works in: its GPU is the current one, since kernels that are not torch's run there."""
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            yield

    # Ranks ------------------------------------------------------------------------------------------------------------

    def degrees(self) -> dict[str, int]:
        """Over how many ranks the plan spreads work, by axis; units that take what is left are asked last."""
        return degrees_of(self.plan.units, self, self.world.size)

    def agreed(self, number: int) -> int:
        """The first rank's number, on all ranks."""
        mine = torch.tensor(number, device=self.device)
        return int(self.groups.world.broadcast(mine, 0)) if self.groups.world.size > 1 else number

    def check_split(self) -> None:
        """Raise PlanError if the plan cannot spread its work over the ranks of the world."""
        grid_shape(self.degrees(), self.world.size)


def failure_of(error: BaseException) -> tuple[type[OmniError], str]:
    """What later calls say of a set-up that has failed; the error itself would keep all that its frames hold."""
    if isinstance(error, OmniError):
        return type(error), str(error)
    text = f"{type(error).__name__}: {error}".rstrip(": ").partition("\n")[0]
    return InputError, f"the engine could not be set up before ({text}); open another one"
