"""What `omni bench` writes down: the schema of its JSON, described field by field in docs/benchmarks.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omniavatar.errors import InputError, explain


class Schema(BaseModel):
    """Base of all parts of a record."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(Schema):
    """Several measurements of one thing."""

    median: float = Field(description="the middle value")
    low: float = Field(description="first quartile")
    high: float = Field(description="third quartile")
    values: tuple[float, ...] = Field(min_length=1, description="all of them, in the order in which they were made")

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and quartiles (linear between neighbours) of at least one value."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0], values=tuple(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, values=tuple(values))

    @property
    def iqr(self) -> float:
        """The interquartile range."""
        return self.high - self.low


class Machine(Schema):
    """What the record was made on."""

    device: str = Field(description="name of the GPU, or of the processor where the networks run on that")
    device_memory_gib: float | None = Field(description="memory of the GPU")
    devices: int = Field(description="GPUs that can be seen; one is used")
    processor: str = Field(description="name of the processor")
    cores: int | None = Field(description="its logical cores")
    torch_threads: int = Field(description="threads that torch uses for one operation")
    memory_gib: float | None = Field(description="memory of the machine")
    system: str = Field(description="operating system")
    python: str = Field(description="version of Python")
    torch: str = Field(description="version of torch")
    cuda: str | None = Field(description="version of CUDA that torch was built for")
    omniavatar: str = Field(description="version of this package")
    commit: str | None = Field(description="commit of its checkout, `-dirty` if files differ; null if installed")


class Asked(Schema):
    """What was measured; two records can be compared if these are the same, but for those marked *free*."""

    models: tuple[str, ...] = Field(description="the model files, names alone")
    device: str = Field(description="device of the networks")
    dtype: str = Field(description="their precision")
    inputs: dict[str, str] = Field(description="inputs by name; of files the names alone")
    faces: bool = Field(description="whether each seed has a generated portrait of its own, from a package")
    size: tuple[int, int] | None = Field(description="height and width asked for; null: what the picture asks for")
    seconds: float | None = Field(description="length asked for")
    fps: int = Field(description="frames per second")
    seeds: tuple[int, ...] = Field(description="a video each")
    settings: dict[str, dict[str, Any]] = Field(description="settings of units that hold for all combinations")
    repeats: int = Field(description="timed videos for each combination and seed (*free*)")
    warmup: int = Field(description="videos before that, which count in nothing but `first_seconds` (*free*)")
    interleaved: bool = Field(description="whether the combinations took turns (*free*)")


class Video(Schema):
    """What a combination's videos are."""

    frames: int = Field(description="length")
    height: int = Field(description="pixels")
    width: int = Field(description="pixels")
    windows: int = Field(description="chunks that were denoised one after the other")
    steps: int = Field(description="denoising steps of all windows together")


class Times(Schema):
    """Wall seconds; the device is waited for at the end of every step, window and video, as `omni run` does."""

    load_seconds: float = Field(description="loading all networks and setting the units up, once")
    first_seconds: float | None = Field(description="the first video after that, compilation included")
    total_seconds: Spread = Field(description="a whole video")
    window_seconds: Spread = Field(description="a window, from its conditions to its frames: mean over a video's")
    step_seconds: Spread = Field(description="a denoising step: mean over a video's")
    prepare_seconds: Spread = Field(description="conditions of the video and its windows")
    decode_seconds: Spread = Field(description="ends of windows and of the video: decoding, writing")


class Calls(Schema):
    """How much of the transformer ran, in one video."""

    made: int = Field(description="transformer calls of which some block ran")
    skipped: int = Field(description="transformer calls of which no block ran")
    blocks: int = Field(description="blocks that all these calls together have")
    blocks_run: int = Field(description="blocks of them that ran")


class Memory(Schema):
    """The most that was held while loading and in timed videos, without what other combinations held then."""

    peak_device_mib: float | None = Field(description="allocated on the GPU")
    peak_host_mib: float | None = Field(description="resident memory of the process; null where it cannot be measured")


class HookTime(Schema):
    """Seconds inside one hook of one unit, without hooks of other units that it calls; from profiled videos."""

    unit: str = Field(description="name of the unit")
    hook: str = Field(description="name of the hook")
    seconds: float = Field(description="of one video, mean over the seeds; `setup`: of loading")


class Quality(Schema):
    """How near the videos are to those of the first combination, seed by seed."""

    identical: bool = Field(description="whether all pictures are the same, bit by bit")
    psnr_db: Spread | None = Field(description="peak signal-to-noise ratio over all frames; null if identical")
    ssim: Spread = Field(description="structural similarity of the brightness, mean over the frames")
    latent_error: Spread | None = Field(
        description="|x - y| / |y| of the denoised latents of all windows; null if their shapes differ"
    )


class Measured(Schema):
    """A figure that a package measures, seed by seed."""

    name: str = Field(description="of the metric")
    package: str = Field(description="which brings it")
    heading: str = Field(description="short name, with the unit if it has one")
    description: str = Field(description="what the number is")
    better: Literal["higher", "lower"] | None = Field(description="which way is better; null: neither")
    tolerance: float = Field(description="`--compare`: a change for the worse by more than that counts")
    values: Spread = Field(description="a value for each seed that has one")


class Combination(Schema):
    """One combination of units."""

    name: str = Field(
        description="the plan expression, and ` with FILE` for other weights; ` #2` if it was asked for twice"
    )
    status: Literal["measured", "refused", "failed", "unfinished"] = Field(
        description="refused: the plan cannot be made; failed: loading or a video went wrong; unfinished: interrupted"
    )
    reason: str | None = Field(description="why it was refused or failed")
    units: tuple[str, ...] = Field(description="the plan, in order, with settings that differ from the defaults")
    video: Video | None = Field(None, description="null before the first video")
    times: Times | None = Field(None, description="null without timed videos")
    speed_up: float | None = Field(None, description="median total of the first combination by this one's")
    calls: Calls | None = Field(None, description="null before the first video")
    memory: Memory | None = Field(None, description="null before loading")
    hooks: tuple[HookTime, ...] = Field((), description="longest first")
    engine_seconds: float | None = Field(None, description="of a profiled video, in no hook of a unit")
    quality: Quality | None = Field(None, description="null for the first combination, and where frames do not match")
    metrics: tuple[Measured, ...] = Field((), description="what installed packages measure; without what no video has")


class Record(Schema):
    """All that one call of `omni bench` found."""

    version: Literal[2] = Field(2, description="of this schema")
    title: str = Field(description="of the suite")
    created: str = Field(description="when the record was written, UTC, ISO 8601")
    command: str = Field(description="what was typed")
    interrupted: bool = Field(description="whether it was ended before all was measured")
    machine: Machine = Field(description="hardware and versions")
    asked: Asked = Field(description="inputs and settings")
    combinations: tuple[Combination, ...] = Field(description="in the order asked for; the first is the reference")

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises InputError."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise InputError(f"cannot read {path}: {reason}; give a JSON file of omni bench") from None
        except ValidationError as error:
            raise InputError(f"{path} is no record of this omni bench: {explain(error)}; give its bench.json") from None


def described(schema: type[BaseModel] = Record, prefix: str = "") -> Iterator[str]:
    """Every field of a schema with what it means, a line of Markdown each; those of a `Spread` are listed once."""
    for name, info in schema.model_fields.items():
        path = f"{prefix}{name}"
        inner, is_list = inner_schema(info.annotation)
        mark = " (spread)" if inner is Spread else ""
        yield f"- `{path}{'[]' if is_list else ''}`{mark}: {info.description}"
        if inner is not None and inner is not Spread:
            yield from described(inner, f"{path}{'[]' if is_list else ''}.")


def inner_schema(annotation: Any) -> tuple[type[Schema] | None, bool]:
    """The schema in a type such as `Schema | None` or `tuple[Schema, ...]`, and whether there is a list of it."""
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        return annotation, False
    if get_origin(annotation) in (Union, UnionType):
        return next((inner for inner in map(inner_schema, get_args(annotation)) if inner[0]), (None, False))
    if get_origin(annotation) is tuple:
        return inner_schema(get_args(annotation)[0])[0], True
    return None, False
