"""How good the tiny avatar is.

    python -m omniavatar_drawn.tiny_quality [--device cuda] [--output FILE] [--strip FILE]

Makes videos of identities and utterances that were never trained on, and measures their pixels with the detector that
reads the renderer's own frames (`omniavatar_drawn.reading.quality`). The truth is that of the sound as the video
plays it, the audio unit's silence in front. Exits with 1 if a figure misses its bar.

Figures, means over the videos of their part unless they say otherwise; frame 0, the given picture, never counts:

- talk (`--identities` of `--seconds`): correlation of the mouth's opening with the truth, at the one lag that is best
  for all videos; that lag (positive: the mouth is late); correlation of the width, for information; the mean opening in
  deep silence (4 frames or more from any open mouth) as a share of that in speech, over all frames of all videos; how
  far the mean colours of skin, hair, clothes and background are from the picture's (largest channel, mean over the
  frames, worst region); SSIM of the face brought to its place in the picture, mouth and eyes left out. `--voice` gives
  the first one's sound.
- long (`--long` videos of `--long-seconds`, the head asked to keep still, so that what changes is no movement): the
  largest change of colours or SSIM from the first second to the last, and the largest ratio of the change at a chunk's
  first frame to the usual one (outside eyes and mouth), both the worst of all videos.
- scale (`--few` videos at each audio scale 1, 3, 6): mean opening in speech; the smallest growth from scale to scale.
- prompt (`--prompts` videos without a picture, guidance at scale 2): the prompt names the colours of a t-shirt and of a
  plain wall, dealt out evenly over the palette's 13 of each, so that who does not read it is right in 1 of 13. A video
  is right if, of the palette, the colour named is nearest (RGB) to the mean of its frames' foot, or of their upper
  corners.
- motion (`--few` pairs of one picture, sound and seed): how far the head is from its mean place (root mean square) when
  the prompt ends in "moving the head a lot" and in "keeping the head still".
  The bars of prompt and motion are our choice: half of the videos right, and one and a half times the motion.

JSON: {machine: {device, cores, python, torch, omniavatar, ...}, command, models: {maker, units, dtype, files, seed},
settings: {option: value}, seconds: {part: wall seconds}, generate_seconds_per_video_second, figures: [{part, name,
value, unit, bar: {sign, limit} or null, met: true, false or null, each: [a value a video], worst, share_met}], met}.
"""

from __future__ import annotations

import argparse
import json
import math
import operator
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from omniavatar.bench.machine import command, machine
from omniavatar.config import RunConfig, find_config, parse_config
from omniavatar.config_base import read_config
from omniavatar.errors import InputError, OmniError
from omniavatar.media.audio import load_waveform
from omniavatar.opening import torch_device, torch_dtype
from omniavatar.plugins import discover
from omniavatar_drawn.avatar_makers import Asked, Drawn, Engines, Made, Maker, through_vae
from omniavatar_drawn.faces import FPS, Identity, Performance, caption
from omniavatar_drawn.faces.clips import Clip
from omniavatar_drawn.faces.identity import Shade
from omniavatar_drawn.faces.mouth import SAMPLE_RATE
from omniavatar_drawn.faces.palette import CLOTHES, WALLS
from omniavatar_drawn.faces.performance import Manner
from omniavatar_drawn.faces.speech import utterance
from omniavatar_drawn.generator import UNSEEN
from omniavatar_drawn.reading import quality
from omniavatar_drawn.reading.detector import Detector
from omniavatar_drawn.reading.quality import Spoken

PARTS = ("talk", "long", "scale", "prompt", "motion")
FIRST = {"talk": UNSEEN, "long": UNSEEN + 200, "scale": UNSEEN + 300, "prompt": UNSEEN + 400, "motion": UNSEEN + 600}
"""Numbers of the first identities."""
SCALES = (1.0, 3.0, 6.0)
PROMPT_SCALE = 2.0
"""Of guidance, where the prompt is all there is."""
MANNERS: dict[Manner, str] = {"still": "keeping the head still", "lively": "moving the head a lot"}
SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
    "within": lambda value, limit: abs(value) <= limit,
}


@dataclass(frozen=True)
class Bar:
    """What a value must be."""

    sign: str
    limit: float

    def is_met(self, value: float) -> bool:
        """Never by what is no number."""
        return SIGNS[self.sign](value, self.limit)


@dataclass(frozen=True)
class Figure:
    """A measured value, its bar if it has one, and the values of single videos where the bar can be asked of them."""

    part: str
    name: str
    value: float
    bar: Bar | None = None
    unit: str = ""
    each: tuple[float, ...] = ()

    @property
    def met(self) -> bool | None:
        return None if self.bar is None else self.bar.is_met(self.value)

    @property
    def worst(self) -> float | None:
        if not self.each or self.bar is None:
            return None
        return min(self.each) if self.bar.sign in (">=", ">") else max(self.each)

    @property
    def share_met(self) -> float | None:
        """Videos that meet the bar by themselves."""
        if not self.each or self.bar is None:
            return None
        return sum(map(self.bar.is_met, self.each)) / len(self.each)

    def as_json(self) -> dict[str, Any]:
        numbers = {"value": self.value, "worst": self.worst, "share_met": self.share_met}
        return {
            **asdict(self),
            "each": [_rounded(value) for value in self.each],
            "met": self.met,
            **{name: _rounded(number) for name, number in numbers.items()},
        }


@dataclass(frozen=True)
class Sounds:
    """Speech never trained on: espeak-ng's, or recordings in order, repeated where they are too short."""

    recordings: tuple[Path, ...] = ()
    voice: Path | None = None

    def of(self, number: int, who: Identity, seconds: float, *, is_first: bool = False) -> np.ndarray:
        """(n,) float32 at 16 kHz for an identity."""
        if is_first and self.voice is not None:
            return load_waveform(self.voice)
        if not self.recordings:
            return utterance(number, seconds, person=who.person)
        return np.resize(load_waveform(self.recordings[number % len(self.recordings)]), round(seconds * SAMPLE_RATE))


@dataclass
class Study:
    """Has videos made and measures them."""

    maker: Maker
    sounds: Sounds = field(default_factory=Sounds)
    shown: list[np.ndarray] = field(default_factory=list)
    made_seconds: float = 0.0
    video_seconds: float = 0.0

    def talk(self, count: int, seconds: float) -> Iterator[Figure]:
        """Mouth and identity."""
        first = FIRST["talk"]
        spoken = [self.spoken(self.asked(n, seconds, is_first=n == first)) for n in range(first, first + count)]
        readings = [video.reading for video in spoken]
        sync = quality.synchrony(spoken)
        silence = quality.opening_in_silence(spoken)
        shifts = [quality.colour_shifts(reading) for reading in readings]
        region = max(shifts[0], key=lambda name: _mean([shift[name] for shift in shifts]))
        alike = [quality.likeness(reading) for reading in readings]
        widths = [video.width_correlation(sync.lag) for video in spoken]
        yield Figure("talk", "mouth opening, correlation", sync.correlation, Bar(">=", 0.85), each=sync.each)
        yield Figure("talk", "mouth, best lag", sync.lag, Bar("within", 1), "frames")
        yield Figure("talk", "mouth width, correlation", _mean(widths), each=tuple(widths))
        yield Figure("talk", "mouth open in silence, of speech", silence, Bar("<", 0.1))
        yield from (
            Figure("talk", f"{name} off the picture", _mean([shift[name] for shift in shifts]))
            for name in shifts[0]
            if name != region
        )
        of_region = [shift[region] for shift in shifts]
        each = tuple(max(shift.values()) for shift in shifts)
        yield Figure("talk", f"colours off, worst: {region}", _mean(of_region), Bar("<=", 0.05), each=each)
        yield Figure("talk", "face like the picture, SSIM", _mean(alike), Bar(">=", 0.85), each=tuple(alike))

    def long(self, count: int, seconds: float) -> Iterator[Figure]:
        """Drift and borders."""
        drifts, jumps, whole, spoken = [], [], [], []
        for number in range(FIRST["long"], FIRST["long"] + count):
            asked = self.asked(number, seconds, manner="still")
            made = self.made(asked)
            video = self.read(asked, made)
            spoken.append(video)
            drifts.append(max(quality.drift(video.reading).values()))
            jumps.append(quality.border_jumps(made.frames, made.borders, video.reading.alignments[0]))
            whole.append(quality.border_jumps(made.frames, made.borders))
        jump = [float(ratios.max(initial=0)) for ratios in jumps]
        yield Figure("long", "change from first second to last", max(drifts), Bar("<=", 0.03), each=tuple(drifts))
        yield Figure("long", "largest jump at a border", max(jump), Bar("<=", 1.5), "x usual", tuple(jump))
        yield Figure("long", "mean jump at a border", _mean(np.concatenate(jumps)), unit="x usual")
        yield Figure("long", "mean jump, eyes and mouth counted", _mean(np.concatenate(whole)), unit="x usual")
        yield Figure("long", "mouth opening, correlation", quality.synchrony(spoken).correlation)

    def scale(self, count: int, seconds: float) -> Iterator[Figure]:
        """What the audio scale does."""
        amplitudes = []
        for scale in SCALES:
            asked = [self.asked(n, seconds) for n in range(FIRST["scale"], FIRST["scale"] + count)]
            amplitudes.append(quality.mean_opening([self.spoken(replace(one, audio_scale=scale)) for one in asked]))
            yield Figure("scale", f"opening in speech at audio scale {scale:g}", amplitudes[-1])
        yield Figure("scale", "smallest growth with audio scale", float(np.diff(amplitudes).min()), Bar(">", 0))

    def prompt(self, count: int, seconds: float) -> Iterator[Figure]:
        """What the prompt does without a picture."""
        right: dict[str, list[bool]] = {"clothes": [], "background": []}
        for index in range(count):
            asked = replace(self.plain(index, seconds), scale=PROMPT_SCALE)
            named = {"clothes": asked.clip.who.clothes_colour.name, "background": asked.clip.who.wall_colour.name}
            seen = quality.scene_colours(self.made(asked).frames)
            for region, palette in (("clothes", CLOTHES), ("background", WALLS)):
                right[region].append(quality.nearest_colour(seen[region], palette) == named[region])
        for region, answers in right.items():
            yield Figure("prompt", f"{region} of the named colour", _mean(answers), Bar(">=", 0.5), "(chance 0.077)")

    def motion(self, count: int, seconds: float) -> Iterator[Figure]:
        """How far heads move that are asked to, with a picture."""
        motions: dict[Manner, list[float]] = {manner: [] for manner in MANNERS}
        for number in range(FIRST["motion"], FIRST["motion"] + count):
            picture = self.asked(number, seconds, manner="still").picture
            for manner, motion in motions.items():
                asked = replace(self.asked(number, seconds, manner=manner), picture=picture)
                motion.append(quality.head_motion(self.spoken(asked).reading))
        still, lively = (_mean(motion) for motion in motions.values())
        yield Figure("motion", "head motion, asked to keep still", still, unit="sides")
        yield Figure("motion", "head motion, asked to move a lot", lively, unit="sides")
        ratios = tuple(more / max(less, 1e-6) for less, more in zip(*motions.values(), strict=True))
        yield Figure("motion", "head motion, a lot to still", lively / max(still, 1e-6), Bar(">=", 1.5), "x", ratios)

    def clip(self, number: int, seconds: float, *, is_first: bool = False) -> Clip:
        """Identity `number` with a sound as the video will play it."""
        who = Identity.from_seed(number)
        sound = self.sounds.of(number, who, seconds, is_first=is_first)
        silence = np.zeros(round(self.maker.silence * SAMPLE_RATE), np.float32)
        return Clip.from_seed(number, round(seconds * FPS) + 1, np.concatenate([silence, sound]))

    def asked(self, number: int, seconds: float, *, is_first: bool = False, manner: Manner | None = None) -> Asked:
        """A video of identity `number`, whose first picture is given. Raises InputError for a sound without a voice."""
        clip = self.clip(number, seconds, is_first=is_first)
        if not clip.mouth[:, 0].any():
            raise InputError(f"the sound for identity {number} has no voice in its first {seconds:g} s; give another")
        if manner is not None:
            performance = Performance.from_seed(number, manner=manner)
            text = f"{caption(clip.who).removesuffix('.')}, {MANNERS[manner]}."
            clip = replace(clip, performance=performance, caption=text)
        return Asked(clip, clip.pictures(self.maker.side, [0])[0], self.maker.silence)

    def plain(self, index: int, seconds: float) -> Asked:
        """A video without a picture: somebody in a t-shirt in front of a plain wall, both of a colour that is named."""
        shirts, walls = list(CLOTHES), list(WALLS)
        shirt, wall = shirts[index % len(shirts)], walls[5 * (index + index // len(walls)) % len(walls)]
        clip = self.clip(FIRST["prompt"] + index, seconds)
        who = replace(
            clip.who,
            clothes="t-shirt",
            wall="plain",
            clothes_colour=Shade(shirt, CLOTHES[shirt]),
            wall_colour=Shade(wall, WALLS[wall]),
        )
        return Asked(replace(clip, who=who, caption=caption(who)), None, self.maker.silence)

    def made(self, asked: Asked) -> Made:
        made = self.maker.make(asked)
        if len(made.frames) != asked.frames:
            raise InputError(f"a video has {len(made.frames)} frames; {asked.frames} were asked for")
        self.made_seconds += made.seconds
        self.video_seconds += (asked.frames - 1) / FPS
        return made

    def spoken(self, asked: Asked) -> Spoken:
        return self.read(asked, self.made(asked))

    def read(self, asked: Asked, made: Made) -> Spoken:
        """A video with a picture, as the detector sees it."""
        if asked.picture is None:
            raise InputError("a video without a picture cannot be read")
        if len(self.shown) < 4:
            numbers = np.linspace(1, len(made.frames) - 1, 10).round().astype(int)
            self.shown.append(np.concatenate([asked.picture[None], made.frames[numbers]]))
        return Spoken(Detector(asked.picture).read(made.frames), asked.clip.mouth)

    def write_strip(self, path: Path) -> None:
        """The first videos: a row each, the given picture on the left."""
        Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in self.shown])).save(path)


def study(maker: Maker, sounds: Sounds, options: argparse.Namespace) -> tuple[Study, list[Figure], dict[str, float]]:
    """All parts that are asked for: the study, its figures, and the seconds of each part, told as they end."""
    progress = Console(stderr=True)
    made = Study(maker, sounds)
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "talk": lambda: made.talk(options.identities, options.seconds),
        "long": lambda: made.long(options.long, options.long_seconds),
        "scale": lambda: made.scale(options.few, options.seconds),
        "prompt": lambda: made.prompt(options.prompts, options.prompt_seconds),
        "motion": lambda: made.motion(options.few, options.seconds),
    }
    figures: list[Figure] = []
    seconds = {}
    for part in options.parts:
        started = time.perf_counter()
        figures += parts[part]()
        seconds[part] = round(time.perf_counter() - started, 1)
        progress.print(f"{part}: {seconds[part]} s", highlight=False)
    return made, figures, seconds


def table(figures: Sequence[Figure]) -> Table:
    """Figure, value, bar, whether it is met, the worst video and the share of videos that meet it."""
    result = Table("part", "figure", "value", "bar", "met", "worst", "videos that meet it")
    for figure in figures:
        bar = "" if figure.bar is None else f"{figure.bar.sign} {figure.bar.limit:g}"
        met = {None: "", True: "[green]yes[/]", False: "[bold red]no[/]"}[figure.met]
        share = (
            "" if figure.share_met is None else f"{round(figure.share_met * len(figure.each))} of {len(figure.each)}"
        )
        worst = "" if figure.worst is None else f"{figure.worst:.3f}"
        result.add_row(figure.part, figure.name, f"{figure.value:.3f} {figure.unit}".rstrip(), bar, met, worst, share)
    return result


def report(
    made: Study, figures: Sequence[Figure], seconds: dict[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """What is written; see the module's docstring."""
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {
        "machine": machine(torch_device(options.device)),
        "command": command("omniavatar_drawn.tiny_quality"),
        "models": made.maker.description,
        "settings": kept,
        "seconds": seconds,
        "generate_seconds_per_video_second": round(made.made_seconds / max(made.video_seconds, 1e-9), 3),
        "figures": [figure.as_json() for figure in figures],
        "met": all(figure.met is not False for figure in figures),
    }


def configuration(options: argparse.Namespace) -> RunConfig:
    """The configuration with the options laid over it."""
    content = read_config(find_config(options.config))
    if options.model:
        content.update(models=options.model, models_dir=".")
    if options.units:
        content["units"] = options.units
    return parse_config(content, options.config)


def maker_of(options: argparse.Namespace) -> Maker:
    """Who makes the videos."""
    if options.oracle == "drawn":
        return Drawn()
    device, plugins, config = torch_device(options.device), discover(), configuration(options)
    options.device = str(device)
    if options.oracle == "vae":
        files = [file for file in config.model_files() if isinstance(file, str)]
        return through_vae(files, plugins, device)
    return Engines.of(config, plugins, device, torch_dtype(config.dtype, device))


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=32, help="videos of the part talk")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of videos")
    parser.add_argument("--long", type=int, default=3, help="videos of the part long")
    parser.add_argument("--long-seconds", type=float, default=30.0)
    parser.add_argument("--few", type=int, default=4, help="identities of the part scale and of head motion")
    parser.add_argument("--prompts", type=int, default=26, help="videos without a picture, a multiple of 13")
    parser.add_argument("--prompt-seconds", type=float, default=1.92, help="their length, by default a window's")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sounds", type=Path, help="folder of recordings, instead of espeak-ng")
    parser.add_argument("--voice", type=Path, help="a recording for the first video")
    parser.add_argument("--config", default="tiny", help="configuration, as of omni run")
    parser.add_argument("--units", help="another plan, such as 'default+schedule(steps=20)'")
    parser.add_argument("--model", nargs="+", help="model files instead of the configuration's")
    parser.add_argument("--oracle", choices=("drawn", "vae"), help="no engine: the renderer, or it through the VAE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--strip", type=Path, help="picture to write: some frames of the first videos")
    options = parser.parse_args(given)
    least = {"identities": 1, "seconds": 1, "long": 1, "long_seconds": 3, "few": 1, "prompts": 1, "prompt_seconds": 1}
    for name, value in least.items():
        if getattr(options, name) < value:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name):g}; give {value} or more")
    return options


def recordings(folder: Path | None) -> tuple[Path, ...]:
    """The files of a folder of sounds."""
    if folder is None:
        return ()
    files = tuple(sorted(path for path in folder.glob("*") if path.is_file()))
    if not files:
        raise InputError(f"{folder} is no folder with recordings; give one, or leave --sounds out for espeak-ng")
    return files


def main(given: Sequence[str] | None = None, maker: Maker | None = None) -> int:
    """The exit code: 0 if all bars are met, 1 if one is missed, 2 for bad input."""
    options = arguments(given)
    console = Console(width=None if sys.stdout.isatty() else 130)
    try:
        sounds = Sounds(recordings(options.sounds), options.voice)
        made, figures, seconds = study(maker or maker_of(options), sounds, options)
    except OmniError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    result = report(made, figures, seconds, options)
    console.print(table(figures))
    per_second = result["generate_seconds_per_video_second"]
    console.print(f"{sum(seconds.values()):.0f} s in all; {per_second} s to make a second of video", highlight=False)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.strip and made.shown:
        made.write_strip(options.strip)
    return 0 if result["met"] else 1


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """NaN where there is nothing; what is no number is left out."""
    numbers = [float(value) for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def _rounded(value: float | None) -> float | None:
    """For JSON, which has no NaN."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


if __name__ == "__main__":
    sys.exit(main())
