"""What has been trained, as a model among others: the model files with which it is used."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.checkpoints.registry import LORA, TRANSFORMER, Detection
from omniavatar.config import ModelEntry
from omniavatar.errors import CheckpointError
from omniavatar.training.diffusion import DiffusionConfig
from omniavatar.training.trained import DELTA, WHOLE


def models_with_result(config: DiffusionConfig, registry: Registry) -> list[dict[str, Any]]:
    """The models of a run that uses what the configuration has trained.

    A delta follows the files that it changes, whole networks replace theirs. Raises CheckpointError if the result is
    not recognised, or cannot be used together with the other files.
    """
    delta, whole = config.output / DELTA, config.output / WHOLE
    result, role = (delta if delta.exists() else whole).absolute(), config.train.transformer
    found = registry.detect(result).with_role(role)
    provided = set() if result.name == DELTA else {component.role for component in found.components}
    kept: list[dict[str, Any]] = []
    detections: list[Detection] = []
    before: list[Detection] = []
    for entry, files in zip(config.models, config.model_files(), strict=True):
        those = [detection.with_role(entry.role or TRANSFORMER) for detection in registry.detect_all(files)]
        left = [detection for detection in those if not is_replaced(detection, provided)]
        kept += [entry.model_dump(mode="json", exclude_unset=True)] if left == those else one_by_one(entry, left)
        detections += left
        before += those
    missing = Bundle(before).roles - Bundle([*detections, found]).roles - {LORA}
    if missing:
        raise CheckpointError(f"{result} lacks {' and '.join(sorted(missing))} of the files that it replaces")
    return [*kept, {"path": str(result), **({} if role == TRANSFORMER else {"role": role})}]


def is_replaced(detection: Detection, roles: Collection[str]) -> bool:
    """Whether all of a checkpoint, LoRA by what it changes, is in networks of these roles."""
    return all(
        (component.target if component.role == LORA else component.role) in roles for component in detection.components
    )


def one_by_one(entry: ModelEntry, detections: Iterable[Detection]) -> list[dict[str, Any]]:
    """An entry for each of the checkpoints that one named together."""
    fields = entry.model_dump(mode="json", include={"role", "strength"}, exclude_none=True)
    paths = ([str(Path(file).absolute()) for file in detection.files] for detection in detections)
    return [{"path": files if len(files) > 1 else files[0], **fields} for files in paths]
