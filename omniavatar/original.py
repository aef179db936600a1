"""The original OmniAvatar's way of being told what to do: `inference.yaml`, `--hp key=value`, `prompt@@image@@audio`.

Each of its keys becomes a setting of ours; keys that have no effect here are named in the log, not dropped silently.
Stronger first: `--hp`, the command line, the YAML file, `config.json` in its `exp_path`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omniavatar.config import RunConfig, parse_config
from omniavatar.engine.settings import Chosen, Layer, Strength
from omniavatar.errors import InputError, nearest

log = logging.getLogger(__name__)

Values = Mapping[str, Any]
Settings = dict[str, dict[str, Any]]

MARKERS = ("dit_path", "exp_path", "text_encoder_path", "wav2vec_path")
"""A file with one of these keys is in the original's schema."""

SETTINGS = {
    "num_steps": ("schedule", "steps"),
    "guidance_scale": ("guidance", "scale"),
    "audio_scale": ("guidance", "audio_scale"),
    "negative_prompt": ("prompt", "negative"),
    "max_tokens": ("fixed-frames", "max_tokens"),
    "overlap_frame": ("fixed-frames", "overlap"),
    "silence_duration_s": ("audio", "silence"),
    "tea_cache_l1_thresh": ("teacache", "threshold"),
    "num_persistent_param_in_dit": ("offload", "resident_params"),
}
TOP = {"seed": "seed", "fps": "fps", "dtype": "dtype", "sp_size": "gpus"}
SIZES = {
    "720": [[400, 720], [720, 720], [720, 400]],
    "1280": [[720, 720], [528, 960], [960, 528], [720, 1280], [1280, 720]],
}
"""For each max_hw the sizes (height, width) where the file has no table `image_sizes_<max_hw>`."""

SPECIAL = {
    *MARKERS,
    "vae_path",
    "max_hw",
    *(f"image_sizes_{side}" for side in SIZES),
    "random_prefix_frames",
    "use_fsdp",
    "reload_cfg",
    "sample_rate",
}
WITHOUT_EFFECT: dict[str, tuple[Any, ...] | None] = {
    "image_encoder_path": ("None", None),
    "i2v": (True, None),
    "use_audio": (True, None),
    "seq_len": None,
    "infer": None,
    "debug": None,
    "train_architecture": None,
    "lora_rank": None,
    "lora_alpha": None,
    "lora_target_modules": None,
    "init_lora_weights": None,
    "model_config": None,
}
"""Keys that steer nothing here, each with the values that ask for nothing; None: any (the files know better)."""

KNOWN = {*SETTINGS, *TOP, *SPECIAL, *WITHOUT_EFFECT}


def is_original(content: Values) -> bool:
    """Whether a configuration is in the original's schema."""
    return any(marker in content for marker in MARKERS)


# `--hp` -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overrides:
    """What `--hp` says, in our words. `units` holds those that it wants in the plan (True) or out of it."""

    top: dict[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    units: dict[str, bool] = field(default_factory=dict)

    @property
    def layer(self) -> Layer:
        """The settings, which are stronger than all others."""
        return Layer(Strength.OVERRIDE, "--hp", self.settings)

    def apply(self, chosen: Chosen) -> Chosen:
        """The chosen units with those that are wanted, without the others."""
        wanted = {unit: chosen.get(unit, {}) for unit, is_wanted in self.units.items() if is_wanted}
        return {**{unit: values for unit, values in chosen.items() if self.units.get(unit, True)}, **wanted}


def parse_hparams(text: str) -> dict[str, Any]:
    """`key=value,key=value`: numbers, true/false and text. Unlike the original, 1e-4 is 0.0001 and None is nothing."""
    result: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key:
            raise InputError(f"--hp: '{item}' is not key=value; separate several with commas")
        if key not in KNOWN:
            raise InputError(f"--hp: unknown key '{key}'{nearest(key, [*SETTINGS, *TOP, *SPECIAL])}")
        if key in result:
            raise InputError(f"--hp: '{key}' is given twice")
        result[key] = parse_value(value)
    return result


def parse_value(text: str) -> Any:
    """A number, a boolean, nothing, or the text itself."""
    words = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def overrides(content: Values, hparams: Values) -> Overrides:
    """The `--hp` values in our words; the file's tables of sizes go with its `max_hw`."""
    tables = {key: value for key, value in content.items() if key.startswith("image_sizes_")}
    switches = {
        "tea_cache_l1_thresh": ("teacache", caches(hparams)),
        "use_fsdp": ("fsdp", shards(hparams)),
        "num_persistent_param_in_dit": ("offload", offloads(hparams)),
    }
    units = dict(switch for key, switch in switches.items() if key in hparams)
    return Overrides(top_fields(hparams), unit_settings({**tables, **hparams}), units)


# The configuration file ---------------------------------------------------------------------------------------------


def translate(content: Values, hparams: Values, source: Path) -> RunConfig:
    """An original configuration as ours, with the `--hp` values over it, and `config.json` of exp_path under it.

    `config.json` fills in keys that are absent; one that is null in the file stays null.
    """
    values = {**content, **hparams}
    experiment = experiment_folder(values)
    report_ignored(values, source)
    if experiment is not None and values.get("reload_cfg", True):
        values = {**stored_values(experiment), **values}
    fields = {
        "units": "default" + "+teacache" * caches(values) + "+fsdp" * shards(values) + "+offload" * offloads(values),
        "models_dir": ".",
        "models": model_entries(values, experiment),
        "settings": unit_settings(values),
        **top_fields(values),
    }
    return parse_config(fields, source)


def top_fields(values: Values) -> dict[str, Any]:
    """The fields of `RunConfig` that these values determine; a dtype that the original does not know is fp32 there."""
    fields = {field: values[key] for key, field in TOP.items() if values.get(key) is not None}
    if fields.get("dtype", "bf16") not in ("bf16", "fp16"):
        fields["dtype"] = "fp32"
    return fields


def unit_settings(values: Values) -> Settings:
    """The settings of units that these values determine. A null one leaves the unit's default, or means it."""
    if values.get("sample_rate") not in (None, 16000):
        raise InputError(f"sample_rate is {values['sample_rate']}; the audio encoder takes 16000 only")
    settings: Settings = {}
    for key, (unit, name) in SETTINGS.items():
        if values.get(key) is not None or (key == "audio_scale" and key in values):
            settings.setdefault(unit, {})[name] = values[key]
    if values.get("random_prefix_frames") is False:
        settings.setdefault("fixed-frames", {})["overlap"] = 1
    if values.get("max_hw") is not None:
        settings["reference-image"] = {"sizes": sizes(values)}
    if not caches(values):
        settings.pop("teacache", None)
    return settings


def caches(values: Values) -> bool:
    """Whether the cache is on: its threshold is above 0."""
    threshold = values.get("tea_cache_l1_thresh")
    return threshold > 0 if isinstance(threshold, int | float) else bool(threshold)


def shards(values: Values) -> bool:
    """Whether the weights are spread over the GPUs."""
    return bool(values.get("use_fsdp"))


def offloads(values: Values) -> bool:
    """Whether weights of the transformer wait in host memory: there is a limit of those that do not."""
    return values.get("num_persistent_param_in_dit") is not None


def sizes(values: Values) -> Any:
    """The table of sizes that `max_hw` chooses."""
    side = str(values["max_hw"])
    if side not in SIZES:
        raise InputError(f"max_hw is {side}; choices: {', '.join(SIZES)}")
    return values.get(f"image_sizes_{side}") or SIZES[side]


def report_ignored(values: Values, source: Path) -> None:
    """Name what has no effect, so that nobody waits for it."""
    unknown = sorted(str(key) for key in values if key not in KNOWN)
    if unknown:
        log.warning("%s: unknown keys without effect: %s", source, ", ".join(unknown))
    idle = [
        f"{key}={values[key]}"
        for key, harmless in WITHOUT_EFFECT.items()
        if key in values and harmless is not None and values[key] not in harmless
    ]
    if idle:
        log.warning("%s: without effect here: %s", source, ", ".join(idle))


def experiment_folder(values: Values) -> Path | None:
    """exp_path, or checkpoints/<exp_path> where only that exists."""
    if not values.get("exp_path"):
        return None
    folder = Path(str(values["exp_path"]))
    fallback = Path("checkpoints") / folder
    return fallback if fallback.exists() and not folder.exists() else folder


def stored_values(experiment: Path) -> dict[str, Any]:
    """What `config.json` in the experiment's folder says; nothing if there is none."""
    path = experiment / "config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return content


# The model files ----------------------------------------------------------------------------------------------------

REPOSITORIES = {
    "Wan2.1-T2V-14B": "Wan-AI/Wan2.1-T2V-14B",
    "Wan2.1-T2V-1.3B": "Wan-AI/Wan2.1-T2V-1.3B",
    "OmniAvatar-14B": "OmniAvatar/OmniAvatar-14B",
    "OmniAvatar-1.3B": "OmniAvatar/OmniAvatar-1.3B",
    "wav2vec2-base-960h": "facebook/wav2vec2-base-960h",
}
"""Folder in the original's layout `pretrained_models/<folder>/...` -> the repository that it is a download of."""


def model_entries(values: Values, experiment: Path | None) -> list[dict[str, Any]]:
    """The model entries; `dit_path` may name all shards of the transformer, separated by commas."""
    shards = [part for part in map(str.strip, str(values.get("dit_path") or "").split(",")) if part]
    if values.get("train_architecture", "lora") != "lora":
        shards = []  # pytorch_model.pt is then a whole transformer
    paths: list[str | list[str]] = [shards] if shards else []
    paths += [str(values[key]) for key in ("text_encoder_path", "vae_path", "wav2vec_path") if values.get(key)]
    if experiment is not None:
        paths.append(str(experiment / "pytorch_model.pt"))
    return [{"path": path, "repo": repository(path if isinstance(path, str) else path[0])} for path in paths]


def repository(path: str) -> str | None:
    """The repository of a file in the original's layout."""
    return next((REPOSITORIES[part] for part in Path(path).parts if part in REPOSITORIES), None)


# Lists of samples ---------------------------------------------------------------------------------------------------

SEPARATOR = "@@"


@dataclass(frozen=True)
class Sample:
    """One line of a list: its number, from 1, and its inputs. Blank lines count but are no samples."""

    line: int
    inputs: dict[str, str]


def read_samples(path: Path) -> list[Sample]:
    """`prompt`, `prompt@@image`, `prompt@@@@audio` or `prompt@@image@@audio`, a line each. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read the list {path}: {reason}") from None
    samples = [Sample(number, parse_line(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    if not samples:
        raise InputError(f"the list {path} holds no line of the form prompt{SEPARATOR}image{SEPARATOR}audio")
    return samples


def parse_line(line: str) -> dict[str, str]:
    """The inputs of one line; image and audio are the last two parts, so that a prompt may hold the separator."""
    parts = (part.strip() for part in line.rsplit(SEPARATOR, maxsplit=2))
    return {name: part for name, part in zip(("prompt", "image", "audio"), parts, strict=False) if part}
