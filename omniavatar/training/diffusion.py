"""Training a transformer over the units with which videos are made: `omni train`.

    run = Diffusion.open(config, plan, models, device=device, dtype=dtype, world=world)
    Trainer(run.task(samples), run.config.trainer, folder, device=device, world=world, origin=run.base()).run()

Of a plan's units, those that work with networks that stay as they are prepare samples (`preparation`), and the others
run in every step (`split`). The loss is that of flow matching (`objective`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from omniavatar.config import RunConfig
from omniavatar.distributed.world import ALONE, World
from omniavatar.engine.conditions import nulls_of
from omniavatar.engine.engine import Engine
from omniavatar.engine.flow_match import TIMESTEPS
from omniavatar.engine.loop import Loop
from omniavatar.engine.plan import Plan
from omniavatar.engine.scopes import Request, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.engine.windows import Span
from omniavatar.errors import InputError, nearest
from omniavatar.training.data.clip import Limits
from omniavatar.training.data.clips import Clips
from omniavatar.training.data.faults import SKIPPED, Fault, Faults
from omniavatar.training.data.generated import ClipGenerator, generator_named
from omniavatar.training.data.lists import Entry, identity, read_entries
from omniavatar.training.gradients import Batch
from omniavatar.training.objective import FlowMatching, Levels
from omniavatar.training.preparation import CLEAN, Preparation
from omniavatar.training.samples import HOLD_GIB, NOT_HERE, Origin, Samples
from omniavatar.training.split import Split, split
from omniavatar.training.start import KnownModels, Starting, StartSettings
from omniavatar.training.takes import FilmedSource, GeneratedSource, Source, TakeSettings
from omniavatar.training.trained import Trained, WhatSettings
from omniavatar.training.trainer import Settings
from omniavatar.training.validation import Validation, ValidationSettings, check_requests, plan_of_videos


class DataSettings(BaseModel):
    """Where clips come from: files, or a package that makes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = Field(None, description="folder of clips, or a CSV or JSONL list of them")
    generated: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        max_length=1,
        description="clips that a package makes instead: its generator's name, and the settings of that",
    )
    prompt: str = Field("A person looks into the camera and talks.", description="of clips that have none")
    limits: Limits = Field(default_factory=Limits, description="what clips must be like")
    bad: Literal["skip", "stop"] = Field("skip", description="what a clip that cannot be used does to the run")
    most_bad: float = Field(0.5, ge=0, le=1, description="part of the clips that may be bad")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.generated:
            raise ValueError("give path or generated, not both; the other is null, or {}")
        return self

    @field_validator("generated", mode="before")
    @classmethod
    def _none_is_empty(cls, generated: Any) -> Any:
        return {} if generated is None else generated

    def entries(self) -> list[Entry]:
        """The clips of files. Raises InputError if their list cannot be read."""
        if self.path is None:
            raise InputError("data.path is missing; name a folder of clips, or a .csv or .jsonl list of them")
        return read_entries(self.path, self.prompt)

    def identity(self) -> dict[str, Any]:
        """What clips of files are, as JSON values; where they are gone, as after a move of the cache, `NOT_HERE`."""
        limits = {"limits": self.limits.model_dump(mode="json")}
        if self.path is None or not self.path.exists():
            return {**limits, "count": NOT_HERE, "files": NOT_HERE, "prompts": NOT_HERE}
        return {**limits, **identity(self.entries(), self.path)}


class ObjectiveSettings(BaseModel):
    """Noise levels and drops."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shift: float = Field(5.0, gt=0, le=100, description="how much of the levels is high noise")
    first: float = Field(0.0, ge=0, lt=1, description="where the trained part of the levels begins; 0: all noise")
    last: float = Field(1.0, gt=0, le=1, description="where it ends")
    drop: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=lambda: {"audio": 0.1}, description="how often a condition is taken for its null form, by name"
    )

    @model_validator(mode="after")
    def _some_level(self) -> Self:
        if int(self.first * TIMESTEPS) >= int(self.last * TIMESTEPS):
            raise ValueError(f"there is no noise level between first = {self.first} and last = {self.last}")
        return self


class DiffusionConfig(RunConfig):
    """Everything about a training run."""

    task: Literal["diffusion"] = "diffusion"
    output: Path = Field(Path("out/train"), description="folder of checkpoints, log and result")
    data: DataSettings = Field(default_factory=DataSettings, description="the clips")
    samples: TakeSettings = Field(default_factory=TakeSettings, description="how samples are drawn from them")
    cache: Path | None = Field(None, description="folder of prepared samples; none: prepare them in every step")
    hold_gib: float = Field(
        HOLD_GIB, ge=0, description="a cache that takes up to so much memory, GiB, is held on the device"
    )
    variants: int = Field(1, ge=1, description="samples that are cached of every clip")
    start: dict[str, StartSettings] = Field(default_factory=dict, description="new or changed networks, by role")
    train: WhatSettings = Field(description="what is trained")
    objective: ObjectiveSettings = Field(default_factory=ObjectiveSettings, description="noise levels and drops")
    batch: int = Field(1, ge=1, description="samples of a micro-batch, on every rank")
    trainer: Settings = Field(description="steps, learning rate, precision, checkpoints")
    validation: ValidationSettings | None = Field(None, description="videos made in the course of training")
    merged: bool = Field(False, description="also write all weights, with LoRA merged into them")
    save_as: Literal["fp32", "bf16", "fp16"] = Field("bf16", description="type of the weights that are written")

    @property
    def saved_dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.save_as]


@dataclass(frozen=True)
class Diffusion:
    """A plan and models, divided for training."""

    config: DiffusionConfig
    plan: Plan
    split: Split
    models: Starting
    device: torch.device
    dtype: torch.dtype
    world: World = ALONE
    generator: ClipGenerator | None = None

    @classmethod
    def open(
        cls,
        config: DiffusionConfig,
        plan: Plan,
        models: KnownModels,
        *,
        device: torch.device,
        dtype: torch.dtype,
        world: World = ALONE,
        generators: Mapping[str, type[ClipGenerator]] | None = None,
    ) -> Diffusion:
        """Divide the plan. Raises PlanError or InputError if it cannot be trained so.

        generators: those of `data.generated` by name, as `Plugins.clip_generators` finds them.
        """
        data = config.data
        generator = generator_named(data.generated, generators or {}) if data.generated else None
        for condition in config.objective.drop:
            known = set(nulls_of(plan.units))
            if condition not in known:
                raise InputError(f"objective.drop names the condition '{condition}'{nearest(condition, known)}")
        config = config.model_copy(update={"trainer": with_precision(config.trainer, dtype)})
        starting = Starting(models, config.start, config.train.seed)
        known = {role for unit in plan.units for role in (*unit.roles, *unit.optional_roles) if role in starting}
        for role in config.train.roles:
            if role not in starting:
                raise InputError(f"train names the network '{role}'{nearest(role, known)}")
        return cls(config, plan, split(plan, config.train.roles), starting, device, dtype, world, generator)

    def check_clips(self) -> None:
        """Raise InputError if there is no list of the clips, or they cannot be generated."""
        if self.generator is None:
            self.config.data.entries()
        else:
            self.generator.check()

    def source(self, folder: Path, report: Callable[[Fault], None] | None = None) -> Source:
        """The clips; bad ones are named in `folder`, new ones given to `report` instead if there is one."""
        data = self.config.data
        if self.generator is not None:
            return GeneratedSource(self.generator)
        entries = data.entries()
        path = folder / SKIPPED
        faults = Faults(entries, policy=data.bad, most=data.most_bad, path=path, resume=True, report=report)
        return FilmedSource(Clips(entries, data.limits, faults))

    def preparation(self) -> Preparation:
        """What makes samples; loads the networks that stay as they are."""
        return Preparation(self.split, self.models, device=self.device, dtype=self.dtype)

    def origin(self) -> Origin:
        """What samples are made of: units, their networks' weights, how they are drawn, and from what."""
        roles = dict.fromkeys(role for unit in self.split.prepared for role in unit.roles)
        return {
            "units": {unit.name: repr(unit) for unit in self.split.prepared},
            "weights": {role: self.models.identity(role) for role in [*roles, "vae"]},
            "samples": self.config.samples.model_dump(mode="json"),
            "dtype": str(self.dtype).removeprefix("torch."),
            "variants": self.config.variants,
            "clips": self.config.data.identity() if self.generator is None else self.generator.identity(),
        }

    def base(self) -> dict[str, Any]:
        """What trained weights are a change to, by name: a checkpoint makes no sense on another one."""
        train = self.config.train
        lora = {} if train.lora is None else train.lora.model_dump(mode="json", include={"alpha", "targets"})
        roles = [*train.roles, *(["lora"] if self.models.adapters() else [])]
        weights = {f"weights.{role}": self.models.identity(role) for role in roles}
        return {**{f"train.lora.{name}": value for name, value in lora.items()}, **weights}

    def task(self, samples: Samples) -> DiffusionTask:
        """What the trainer needs; loads and sets up the networks that are trained."""
        trained = Trained(**self.config.train.model_dump())
        plan = Plan((*self.split.stepping.units, trained))
        engine = StepEngine(plan, self.models, device=self.device, dtype=self.dtype, world=self.world)
        engine.live = self.split.live
        engine.set_up()
        for role in {role for unit in self.split.live for role in unit.roles}:
            engine.model(role).train()
        return DiffusionTask(engine, self.split, samples, trained, self.config)

    @property
    def plan_of_videos(self) -> Plan:
        """By which validation videos are made."""
        settings = self.config.validation
        return self.plan if settings is None else plan_of_videos(self.plan, settings.settings)

    def requests(self) -> list[Request]:
        """The validation videos. Raises InputError or PlanError if they cannot be made."""
        config, settings = self.config, self.config.validation
        if settings is None:
            return []
        shared = Request(seed=config.seed, seconds=settings.seconds, fps=config.fps)
        requests = [replace(shared, inputs={**config.inputs, **video}) for video in settings.videos]
        check_requests(self.plan_of_videos, requests)
        return requests

    def validation(self, lenders: Sequence[Engine], observers: Sequence[Any] = ()) -> Validation:
        """What makes the validation videos; the networks of these engines are lent for it."""
        return Validation(self.plan_of_videos, self.models, self.requests(), lenders, observers)


def with_precision(settings: Settings, dtype: torch.dtype) -> Settings:
    """How to train networks of this precision. Raises InputError if that cannot be."""
    if dtype == torch.float16:
        raise InputError("dtype fp16 cannot be trained with; choices: bf16, fp32")
    if dtype == torch.bfloat16 and settings.precision == "fp32":
        raise InputError(
            "trainer.precision fp32 does not go with networks in bf16; leave it at auto, or give --set dtype=fp32"
        )
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    return settings.model_copy(update={"precision": precision}) if settings.precision == "auto" else settings


class StepEngine(Engine):
    """An engine for steps alone: it works with the networks of the live units, the others' work being done."""

    live: Sequence[PipelineUnit] = ()

    @property
    def roles(self) -> list[str]:
        wanted = {role for unit in self.live for role in (*unit.roles, *unit.optional_roles)}
        return [role for role in super().roles if role in wanted]


class DiffusionTask:
    """Flow matching on samples; see `omniavatar.training.trainer.Task`."""

    def __init__(
        self, engine: Engine, split: Split, samples: Samples, trained: Trained, config: DiffusionConfig
    ) -> None:
        self.engine, self.split, self.samples, self.trained, self.config = engine, split, samples, trained, config
        settings = config.objective
        self.objective = FlowMatching(shift=settings.shift, first=settings.first, last=settings.last)
        self.nulls = nulls_of(split.prepared)
        self.loop = Loop(engine, engine.plan, Request())

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return self.trained.parameters

    def batch(self, draw: torch.Generator) -> Batch:
        """Samples, noise (b c t h w), and for each its level and the weight of its error (b) float64."""
        values = self.with_drops(self.samples.draw(draw, self.config.batch), draw)
        clean = values[CLEAN]
        levels = self.objective.levels(self.objective.draw(len(clean), draw))
        noise = torch.randn(clean.shape, generator=draw)
        step = {"noise": noise, "sigma": levels.sigma, "weight": levels.weight}
        return {**values, **{name: value.to(clean.device, non_blocking=True) for name, value in step.items()}}

    def with_drops(self, values: dict[str, Tensor], draw: torch.Generator) -> dict[str, Tensor]:
        """The values with some samples' conditions replaced by their null forms."""
        count = len(values[CLEAN])
        for condition, chance in self.config.objective.drop.items():
            dropped = (torch.rand(count, generator=draw) < chance).to(values[CLEAN].device)
            for name, null in self.nulls.get(condition, {}).items():
                if name in values:
                    value = values[name]
                    instead = values.get(null, torch.zeros_like(value))
                    values[name] = torch.where(dropped.view(-1, *[1] * (value.ndim - 1)), instead, value)
        return values

    def loss(self, batch: Batch) -> Tensor:
        window = self.window(batch)
        levels = Levels(batch["sigma"], batch["weight"])
        return self.objective.loss(window, batch[CLEAN], batch["noise"], levels, window.branch("positive"))

    def window(self, batch: Batch) -> Window:
        """A window of the samples, with what the live units make for it."""
        clean = batch[CLEAN]
        given, geometry = batch.get("given_latents"), self.engine.geometry
        frames = geometry.frames(clean.shape[2])
        given_frames = 0 if given is None else geometry.frames(given.shape[2])
        job, span = self.loop.job, Span(0, frames, given_frames, given_frames, frames)
        job.frames, job.spans = frames, [span]
        values = {name: batch.get(name) for name in self.split.values}
        return self.loop.open_window(0, span, latents=clean, values=values, without=self.split.prepared)

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        config = self.config
        self.trained.save(folder, weights, merged=config.merged, dtype=config.saved_dtype, start=config.start)
