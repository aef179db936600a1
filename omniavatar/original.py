"""The original OmniAvatar's way of being told what to do: `inference.yaml`, `--hp key=value,...`, `prompt@@image@@audio`.

Each of its keys is mapped to a setting of ours; keys that mean nothing here are named in the log, not dropped silently.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from omniavatar.config import RunConfig, parse_config
from omniavatar.errors import InputError, nearest

log = logging.getLogger(__name__)

MARKERS = ("dit_path", "exp_path", "text_encoder_path", "wav2vec_path")
SEPARATOR = "@@"

SETTINGS = {
    "num_steps": ("euler", "steps"),
    "guidance_scale": ("guidance", "scale"),
    "audio_scale": ("guidance", "audio_scale"),
    "negative_prompt": ("prompt", "negative"),
    "max_tokens": ("fixed-frames", "max_tokens"),
    "overlap_frame": ("fixed-frames", "overlap"),
    "silence_duration_s": ("audio", "silence"),
    "tea_cache_l1_thresh": ("teacache", "threshold"),
}
TOP = {"seed": "seed", "fps": "fps", "dtype": "dtype"}
HANDLED = {
    *MARKERS,
    "vae_path",
    "random_prefix_frames",
    "image_sizes_720",
    "image_sizes_1280",
    "max_hw",
    "reload_cfg",
    "i2v",
    "use_audio",
    "sample_rate",
}
# Without effect here: what they steer does not exist, is found in the files, or is always so.
IDLE = {
    "image_encoder_path",
    "seq_len",
    "sp_size",
    "use_fsdp",
    "num_persistent_param_in_dit",
    "train_architecture",
    "lora_rank",
    "lora_alpha",
    "lora_target_modules",
    "init_lora_weights",
    "model_config",
    "infer",
    "debug",
}
KNOWN = {*SETTINGS, *TOP, *HANDLED, *IDLE}


def is_original(content: Mapping[str, Any]) -> bool:
    """Whether a configuration is in the original's schema."""
    return any(marker in content for marker in MARKERS)


def parse_hparams(text: str) -> dict[str, Any]:
    """`key=value,key=value`: numbers, true/false and text. Unlike the original, 1e-4 is 0.0001 and None is nothing."""
    result: dict[str, Any] = {}
    for item in filter(None, (item.strip() for item in text.split(","))):
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise InputError(f"--hp: '{item}' is not key=value; separate several with commas")
        result[key.strip()] = _value(value.strip())
    return result


def _value(text: str) -> Any:
    if text == "None":
        return None
    try:
        return float(text) if "e" in text.lower() or "." in text else int(text)
    except ValueError:
        return yaml.safe_load(text) if text in ("true", "True", "false", "False") else text


def override(config: RunConfig, hparams: Mapping[str, Any]) -> RunConfig:
    """Our configuration with `--hp` values in the original's words laid over it. Raises InputError for an unknown key."""
    usable = {**SETTINGS, **TOP, "random_prefix_frames": None, "max_hw": None}
    for key in hparams:
        if key not in KNOWN:
            raise InputError(f"--hp: unknown key '{key}'{nearest(key, usable)}")
    return _merge(config, translate_values(hparams))


def translate(content: Mapping[str, Any], hparams: Mapping[str, Any], source: Path) -> RunConfig:
    """An original configuration as ours, with the `--hp` values over it, and `config.json` of exp_path under it."""
    values = {**content, **hparams}
    experiment = experiment_folder(values)
    if experiment is not None and values.get("reload_cfg", True):
        values = {**stored_values(experiment), **values}
    ignored = sorted(key for key in values if key not in KNOWN or (key in IDLE and values[key] not in (None, "None")))
    if ignored:
        log.info("%s: without effect here: %s", source, ", ".join(ignored))
    return parse_config({"models_dir": ".", "models": model_paths(values, experiment), **translate_values(values)}, source)


def translate_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `RunConfig` that these values determine."""
    result: dict[str, Any] = {TOP[key]: values[key] for key in TOP if values.get(key) is not None}
    if "dtype" in result and result["dtype"] not in ("bf16", "fp16"):
        result["dtype"] = "fp32"
    settings: dict[str, dict[str, Any]] = {}
    for key, (unit, setting) in SETTINGS.items():
        if values.get(key) is not None:
            settings.setdefault(unit, {})[setting] = values[key]
    for rule in RULES:
        rule(values, settings, result)
    return {**result, "settings": settings}


def _prefix(values: Mapping[str, Any], settings: dict[str, dict[str, Any]], result: dict[str, Any]) -> None:
    """Without random_prefix_frames the original gives one frame to the next chunk."""
    if values.get("random_prefix_frames") is False:
        settings.setdefault("fixed-frames", {})["overlap"] = 1


def _sizes(values: Mapping[str, Any], settings: dict[str, dict[str, Any]], result: dict[str, Any]) -> None:
    if values.get("max_hw") is not None:
        table = f"image_sizes_{values['max_hw']}"
        default = DEFAULT_SIZES.get(table)
        if values.get(table, default) is None:
            raise InputError(f"max_hw is {values['max_hw']}; choices: 720, 1280")
        settings.setdefault("reference-image", {})["sizes"] = values.get(table, default)


def _cache(values: Mapping[str, Any], settings: dict[str, dict[str, Any]], result: dict[str, Any]) -> None:
    """The cache is on when its threshold is above 0."""
    if values.get("tea_cache_l1_thresh"):
        result["units"] = "default+teacache"
    else:
        settings.pop("teacache", None)


def _sound(values: Mapping[str, Any], settings: dict[str, dict[str, Any]], result: dict[str, Any]) -> None:
    if values.get("sample_rate") not in (None, 16000):
        raise InputError(f"sample_rate is {values['sample_rate']}; the audio encoder takes 16000 only")


DEFAULT_SIZES = {
    "image_sizes_720": [[400, 720], [720, 720], [720, 400]],
    "image_sizes_1280": [[720, 720], [528, 960], [960, 528], [720, 1280], [1280, 720]],
}
RULES: tuple[Callable[[Mapping[str, Any], dict[str, dict[str, Any]], dict[str, Any]], None], ...] = (
    _prefix,
    _sizes,
    _cache,
    _sound,
)


def _merge(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    settings = {unit: dict(values) for unit, values in config.settings.items()}
    for unit, values in changes.pop("settings").items():
        settings.setdefault(unit, {}).update(values)
    if "units" in changes:
        changes["units"] = f"{config.units}+teacache"
    return config.model_copy(update={**changes, "settings": settings})


def experiment_folder(values: Mapping[str, Any]) -> Path | None:
    """exp_path, or checkpoints/<exp_path> where that does not exist."""
    if not values.get("exp_path"):
        return None
    folder = Path(str(values["exp_path"]))
    return folder if folder.exists() else Path("checkpoints") / folder


def stored_values(experiment: Path) -> dict[str, Any]:
    """What `config.json` in the experiment's folder says; nothing if there is none."""
    path = experiment / "config.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    return content if isinstance(content, dict) else {}


def model_paths(values: Mapping[str, Any], experiment: Path | None) -> list[dict[str, Any]]:
    """The model entries; `dit_path` may name all shards of the transformer, separated by commas."""
    shards = [part.strip() for part in str(values.get("dit_path") or "").split(",") if part.strip()]
    paths: list[Any] = [shards[0] if len(shards) == 1 else shards] if shards else []
    paths += [str(values[key]) for key in ("text_encoder_path", "vae_path", "wav2vec_path") if values.get(key)]
    if experiment is not None:
        paths.append(str(experiment / "pytorch_model.pt"))
    return [{"path": path, **repository(path)} for path in paths]


def repository(path: str | list[str]) -> dict[str, str]:
    """The repository and folder of a file in the original's layout `pretrained_models/<repository's name>/...`."""
    parts = Path(path if isinstance(path, str) else path[0]).parts
    for index, part in enumerate(parts):
        if part in REPOSITORIES:
            return {"repo": REPOSITORIES[part], "folder": str(Path(*parts[: index + 1]))}
    return {}


REPOSITORIES = {
    "Wan2.1-T2V-14B": "Wan-AI/Wan2.1-T2V-14B",
    "Wan2.1-T2V-1.3B": "Wan-AI/Wan2.1-T2V-1.3B",
    "OmniAvatar-14B": "OmniAvatar/OmniAvatar-14B",
    "OmniAvatar-1.3B": "OmniAvatar/OmniAvatar-1.3B",
    "wav2vec2-base-960h": "facebook/wav2vec2-base-960h",
}


# Lists of samples ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One line of a list: its index in the file (blank lines count) and its inputs."""

    index: int
    inputs: dict[str, str]


def read_samples(path: Path) -> list[Sample]:
    """`prompt`, `prompt@@image`, `prompt@@@@audio` or `prompt@@image@@audio`, a line each. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the list {path}: {error}") from None
    samples = [Sample(index, parse_line(line)) for index, line in enumerate(lines) if line.strip()]
    if not samples:
        raise InputError(f"the list {path} holds no line of the form prompt{SEPARATOR}image{SEPARATOR}audio")
    return samples


def parse_line(line: str) -> dict[str, str]:
    """The inputs of one line; image and audio are the last two parts, so that a prompt may hold the separator."""
    parts = [part.strip() for part in line.strip().split(SEPARATOR)]
    if len(parts) > 3:
        parts = [SEPARATOR.join(parts[:-2]), *parts[-2:]]
    return {name: part for name, part in zip(("prompt", "image", "audio"), parts, strict=False) if part}
