"""The demo's portrait and voice: for who asks for nothing, and for what a video of the built-in avatar lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniavatar.resources import asset

if TYPE_CHECKING:
    from omniavatar.cli.videos import Video
    from omniavatar.engine.unit import PipelineUnit

DEMO = {"image": asset("demo", "portrait.png"), "audio": asset("demo", "speech.flac")}
DEMO_OUTPUT = Path("out", "demo.mp4")
NOTES = {
    "image": "no --image is given, so the demo's talks",
    "audio": "no --audio is given, so the demo's is heard; --seconds NUMBER makes a silent video",
}
"""What to say where the demo's inputs fill in."""
DRAWN_FACES = "the built-in avatar knows drawn faces; for a photograph: --config omniavatar-1.3b"


def asks_for_the_demo(inputs: Mapping[str, Any], units: Mapping[str, type[PipelineUnit]]) -> bool:
    """Whether nothing says what to show, and the units take what the demo shows."""
    return not set(inputs) - {"output"} and set(NOTES) <= taken_by(units)


def completed(
    videos: Sequence[Video], units: Mapping[str, type[PipelineUnit]], seconds: float | None
) -> tuple[list[Video], list[str]]:
    """Videos of the built-in avatar with the demo's portrait and voice where they have none; what to say beforehand.

    A length without a sound asks for a silent video.
    """
    names = [name for name in NOTES if name in taken_by(units) and (name != "audio" or seconds is None)]
    demo = {name: DEMO[name] for name in names}
    remarks = [NOTES[name] for name in names if not all(video.inputs.get(name) for video in videos)]
    if {str(video.inputs.get("image") or DEMO["image"]) for video in videos} != {str(DEMO["image"])}:
        remarks.append(DRAWN_FACES)
    own = [{name: value for name, value in video.inputs.items() if value or name not in demo} for video in videos]
    full = [replace(video, inputs={**demo, **inputs}) for video, inputs in zip(videos, own, strict=True)]
    return full, remarks


def taken_by(units: Mapping[str, type[PipelineUnit]]) -> set[str]:
    """The names of the inputs that units take."""
    return {name for unit in units.values() for name in unit.Inputs.model_fields}
