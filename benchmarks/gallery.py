"""What units do to a video of the built-in avatar, in pictures: `python -m benchmarks.gallery` writes docs/gallery.md.

Every picture comes from two runs that differ in the one thing that it shows. Its rows are frames without the change,
the same frames with it, and what has changed, made larger. The runs take minutes, so pictures and page are kept in the
repository instead of being made with the site; `make gallery` makes them anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omniavatar import Request, open_engine
from omniavatar.bench.measures import psnr
from omniavatar.bench.probe import Probe
from omniavatar.resources import asset

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "gallery"
SHOWN = 6
"""Frames in a row of a picture."""
GAP = 2
"""Pixels between frames."""
LARGER = 4
"""How much larger a difference is drawn than it is."""
FPS = 25
SIDE = 128
"""Pixels; the size of the built-in avatar."""
SECONDS = 1.8
"""45 frames, one window of the built-in avatar."""
Settings = Mapping[str, Mapping[str, Any]]
SAID = "A cartoon of a woman with long red hair, dressed in a green t-shirt, talking in front of a plain blue wall."
UNWANTED = "a yellow hoodie, a pink wall with a window"


@dataclass(frozen=True)
class Shot:
    """One video: the plan of the built-in avatar with a change, settings, inputs and a seed."""

    units: str = "default+smooth-borders"
    settings: Settings = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 1
    seconds: float = SECONDS

    def with_settings(self, settings: Settings) -> Shot:
        """The same with further settings, unit by unit."""
        merged = {
            unit: {**self.settings.get(unit, {}), **settings.get(unit, {})} for unit in {**self.settings, **settings}
        }
        return replace(self, settings=merged)


@dataclass(frozen=True)
class Entry:
    """A picture: its name, its heading and what there is to see, and the two videos that it compares.

    first: the first of the frames that are shown, one after the other; by default frames of the whole video are.
    """

    name: str
    title: str
    text: str
    without: Shot
    shot: Shot
    first: int | None = None


@dataclass(frozen=True)
class Video:
    """What came of a shot: frames (t h w 3) uint8, transformer calls in blocks, and the borders of its windows."""

    frames: np.ndarray
    blocks: int
    blocks_run: int
    borders: tuple[int, ...]


PLAIN = Shot(settings={"schedule": {"steps": 20}})
FEW = PLAIN.with_settings({"schedule": {"steps": 6}})
WORDS = replace(PLAIN, inputs={"image": None, "prompt": SAID})
GUIDED = WORDS.with_settings({"guidance": {"scale": 2.0}})
LONG = replace(PLAIN, seconds=3.4, units="default")
MOVED = "default+smooth-borders+video-to-video"


def plus(shot: Shot, unit: str, settings: Settings | None = None) -> Shot:
    """A shot with one unit more."""
    return replace(shot, units=f"{shot.units}+{unit}").with_settings(settings or {})


ENTRIES = (
    Entry(
        "seed",
        "Another seed",
        "The default against `--seed 2`: the same words of the same person, other movements of the head.",
        PLAIN,
        replace(PLAIN, seed=2),
    ),
    Entry(
        "steps",
        "Fewer steps",
        "20 steps against `--schedule.steps 4`.",
        PLAIN,
        PLAIN.with_settings({"schedule": {"steps": 4}}),
    ),
    Entry(
        "audio-scale",
        "Guidance by the audio",
        "No guidance against `--guidance.audio-scale 3`, one more transformer call a step: the mouth opens wider.",
        PLAIN,
        PLAIN.with_settings({"guidance": {"audio_scale": 3.0}}),
    ),
    Entry(
        "guidance",
        "Guidance",
        f"A video from words alone, without a picture (`{SAID}`), without guidance and at `--guidance.scale 2`, one "
        "more call a step: the prompt is followed more closely.",
        WORDS,
        GUIDED,
    ),
    Entry(
        "nag",
        "nag: a negative prompt without guidance",
        f"Words alone again, without guidance, against `+nag` that leads away from `{UNWANTED}`. No further call.",
        WORDS,
        plus(WORDS, "nag", {"nag": {"negative": UNWANTED}}),
    ),
    Entry(
        "skip-layer-guidance",
        "skip-layer-guidance",
        "Words alone, guidance at 2, against `+skip-layer-guidance`: the negative prediction leaves out a block, "
        "here block 5, so the result leads away from what fewer blocks predict.",
        GUIDED,
        plus(GUIDED, "skip-layer-guidance"),
    ),
    Entry(
        "cfg-zero-star",
        "cfg-zero-star",
        "Words alone, guidance at 2, against `+cfg-zero-star`, which rescales the negative prediction and skips the "
        "first step.",
        GUIDED,
        plus(GUIDED, "cfg-zero-star"),
    ),
    Entry(
        "guidance-interval",
        "guidance-interval",
        "Words alone, guidance at 2 in all steps, against `+guidance-interval(low=0.5)`: one call a step at low noise.",
        GUIDED,
        plus(GUIDED, "guidance-interval", {"guidance-interval": {"low": 0.5}}),
    ),
    Entry(
        "teacache",
        "teacache",
        "Every step computed against `+teacache`: skipped steps reuse what the blocks added in an earlier one.",
        PLAIN,
        plus(PLAIN, "teacache"),
    ),
    Entry(
        "magcache",
        "magcache",
        "The same with `+magcache`, which skips by how much the blocks' output is known to change.",
        PLAIN,
        plus(PLAIN, "magcache"),
    ),
    Entry(
        "first-block-cache",
        "first-block-cache",
        "The same with `+first-block-cache(threshold=0.1)`: the first block is always computed and tells whether the "
        "others are worth it.",
        PLAIN,
        plus(PLAIN, "first-block-cache", {"first-block-cache": {"threshold": 0.1}}),
    ),
    Entry(
        "unipc",
        "unipc: another solver",
        "6 steps of `euler` against 6 steps of `unipc`, which is of second order.",
        FEW,
        replace(FEW, units="default+smooth-borders-euler+unipc"),
    ),
    Entry(
        "lcm",
        "lcm: a solver for few-step models",
        "6 steps of `euler` against 6 steps of `lcm`, which predicts the clean video in every step and adds new "
        "noise, as models distilled for few steps want it. The built-in avatar is not one, and moves its head less.",
        FEW,
        replace(FEW, units="default+smooth-borders-euler+lcm"),
    ),
    Entry(
        "video-to-video",
        "video-to-video",
        "The video of seed 1 as footage, against what `+video-to-video` at `--schedule.strength 0.6` makes of it with "
        "seed 2.",
        PLAIN,
        replace(PLAIN, units=MOVED, seed=2, inputs={"video": PLAIN}).with_settings({"schedule": {"strength": 0.6}}),
    ),
    Entry(
        "smooth-borders",
        "smooth-borders",
        "Six frames around the place where a second window begins, without and with `+smooth-borders`: what changes "
        "there is faded out over a few frames.",
        LONG,
        plus(LONG, "smooth-borders"),
        first=-2,
    ),
    Entry(
        "sliding-window",
        "sliding-window",
        "One window of 45 frames against `+sliding-window`: overlapping pieces of it, blended in every step.",
        PLAIN,
        plus(PLAIN, "sliding-window", {"sliding-window": {"size": 6, "stride": 4}}),
    ),
    Entry(
        "fp8",
        "fp8",
        "Attention and feed-forward layers in full precision against `+fp8`, 8 bits.",
        PLAIN,
        plus(PLAIN, "fp8"),
    ),
    Entry(
        "cfg-merge",
        "cfg-merge: the same video",
        "Words alone, guidance at 2, two calls a step, against `+cfg-merge`, both in one call. Exact units change "
        "what a video costs, not what it shows: `cfg-merge`, `offload`, `disk-offload`, `compile`, several GPUs.",
        GUIDED,
        plus(GUIDED, "cfg-merge"),
    ),
)


class Studio:
    """Makes videos, each only once."""

    def __init__(self) -> None:
        self._made: dict[str, Video] = {}

    def make(self, shot: Shot) -> Video:
        """The video of a shot."""
        key = repr(shot)
        if key not in self._made:
            self._made[key] = self._run(shot)
        return self._made[key]

    def _run(self, shot: Shot) -> Video:
        probe = Probe()
        given = {"image": asset("demo", "portrait.png"), "audio": asset("demo", "speech.flac"), **shot.inputs}
        inputs = {
            name: (self.make(value).frames, FPS) if isinstance(value, Shot) else value
            for name, value in given.items()
            if value is not None
        }
        request = Request(inputs, seed=shot.seed, seconds=shot.seconds, height=SIDE, width=SIDE)
        plan = f"{shot.units}-write-video"
        with open_engine("tiny", units=plan, settings=shot.settings, device="cpu", observers=[probe]) as engine:
            with probe.keeping():
                engine.generate(request)
            made = probe.made()
        assert made.frames is not None
        return Video(made.frames, probe.timed.blocks, probe.timed.blocks_run, made.borders)


def picture(entry: Entry, without: Video, made: Video) -> Image.Image:
    """Three rows of frames: without, with, and the difference around grey, `LARGER` times as large."""
    count = len(made.frames)
    if entry.first is None:
        numbers = np.linspace(0, count - 1, SHOWN).round().astype(int)
    else:
        numbers = made.borders[0] + entry.first + np.arange(SHOWN)
    before, after = without.frames[numbers], made.frames[numbers]
    change = np.clip(128 + LARGER * (after.astype(np.int32) - before), 0, 255).astype(np.uint8)
    side = before.shape[1]
    sheet = np.full((3 * side + 2 * GAP, SHOWN * side + (SHOWN - 1) * GAP, 3), 255, np.uint8)
    for row, frames in enumerate((before, after, change)):
        for column, frame in enumerate(frames):
            top, left = row * (side + GAP), column * (side + GAP)
            sheet[top : top + side, left : left + side] = frame
    return Image.fromarray(sheet)


def figures(without: Video, made: Video) -> dict[str, Any]:
    """What the caption says in numbers. psnr_db is None of equal videos."""
    likeness = psnr(made.frames, without.frames)
    return {
        "psnr_db": None if np.isinf(likeness) else round(likeness, 1),
        "blocks_without": without.blocks_run,
        "blocks": made.blocks_run,
        "blocks_asked_for": made.blocks,
    }


def caption(numbers: Mapping[str, Any]) -> str:
    """The figures of a picture in words."""
    likeness = numbers["psnr_db"]
    same = "the videos are equal" if likeness is None else f"PSNR of one to the other {likeness} dB"
    run, before = numbers["blocks"], numbers["blocks_without"]
    cost = f"{run} blocks of the transformer computed, {before} without"
    skipped = numbers["blocks_asked_for"] - run
    return f"{same}; {cost}{f'; {skipped} skipped' if skipped else ''}"


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: a section with a picture for each entry. found: figures by the name of the entry."""
    lines = [
        "# Gallery",
        "",
        "What units and settings do to a video of the built-in avatar. Every picture is of two runs on a CPU that",
        "differ in one thing, with the demo's portrait and speech. The first row is without it, the second with it,",
        f"and the third is the difference: grey where there is none, and {LARGER} times as large as it is.",
        "A video that begins with a given picture has it as its first frame, whatever changes. `make gallery` makes",
        "pictures and page. The built-in avatar is small; with the real weights, effects of the same kind may be",
        "weaker or stronger.",
    ]
    for entry in ENTRIES:
        lines += [
            "",
            f"## {entry.title}",
            "",
            entry.text,
            "",
            f"![{entry.name}: frames without, with, and the difference](gallery/{entry.name}.webp)",
            "",
            f"*{caption(found[entry.name])}.*",
        ]
    return "\n".join([*lines, ""])


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", help="make these pictures anew and keep the others; by default all are made"
    )
    parser.add_argument("--texts", action="store_true", help="make no picture, write the page of those that there are")
    parser.add_argument("--folder", type=Path, default=PICTURES, help="where pictures and figures.json are written")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that shows them")
    options = parser.parse_args(given)
    known = [entry.name for entry in ENTRIES]
    if unknown := set(options.names) - set(known):
        parser.error(f"no picture {', '.join(sorted(unknown))}; choices: {', '.join(known)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / "figures.json"
    found: dict[str, Any] = json.loads(log.read_text()) if log.is_file() else {}
    studio = Studio()
    for entry in [] if options.texts else ENTRIES:
        if options.names and entry.name not in options.names:
            continue
        without, made = studio.make(entry.without), studio.make(entry.shot)
        picture(entry, without, made).save(options.folder / f"{entry.name}.webp", quality=70, method=6)
        found[entry.name] = figures(without, made)
        print(f"{entry.name}: {caption(found[entry.name])}", file=sys.stderr)
        log.write_text(json.dumps({name: found[name] for name in known if name in found}, indent=2) + "\n")
    lacking = [name for name in known if name not in found]
    if lacking:
        parser.error(f"the page lacks {', '.join(lacking)}; make these pictures first")
    options.page.write_text(page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
