"""`omni run` on the packaged model: whole videos, small ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omniavatar.cli.options import unit_options
from omniavatar.cli.run import run
from omniavatar.cli.start import start
from omniavatar.cli.synonyms import MEANT, SYNONYMS, UNITS
from omniavatar.cli.videos import Video, VideoMaker
from omniavatar.errors import InputError
from omniavatar.media.audio import load_waveform
from omniavatar.media.video import probe_video, read_video
from omniavatar.testing.tiny import FILES, tiny_file
from tests.cli.conftest import SMALL, Omni, Outcome, tree
from tests.media.samples import convert, noise_burst, tone, write_float_wav, write_wav

PICTURES: dict[str, Callable[[], Image.Image]] = {
    "odd.png": lambda: Image.fromarray(colours(517, 333)),
    "sixteen_bit.png": lambda: Image.fromarray(colours(64, 48)[..., 0].astype(np.uint16) * 257),
    "transparent.png": lambda: Image.fromarray(colours(64, 48)).convert("RGBA"),
    "cmyk.jpg": lambda: Image.fromarray(colours(64, 48)).convert("CMYK"),
    "animated.gif": lambda: Image.fromarray(colours(64, 48)).convert("P"),
}


def colours(height: int, width: int) -> np.ndarray:
    """Bytes of all kinds (h w 3)."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_talking_video(omni: Omni, folder: Path, portrait: Path, speech: Path) -> None:
    outcome = omni(
        "run", "--image", portrait, "--audio", speech, "--prompt", "hi", "-o", "new/talk.mp4", *SMALL, "--quiet"
    )
    assert outcome == Outcome(0, "", "")
    assert tree(folder) == {"new", "new/talk.mp4"}
    info = probe_video(folder / "new" / "talk.mp4")
    assert (info.width, info.height, info.fps, info.frames, info.has_audio) == (32, 32, 25, 13, True)


def test_the_sound_starts_with_the_second_frame(omni: Omni, folder: Path, portrait: Path) -> None:
    """A burst at 0.2 s of the sound, behind 0.1 s of silence and the picture's one frame, is heard at 0.34 s."""
    sound = write_wav(folder / "burst.wav", noise_burst(0.5, 16000, start=0.2), 16000)
    omni("run", "--image", portrait, "--audio", sound, "-o", "talk.mp4", *SMALL, "--audio.silence", "0.1")
    heard = load_waveform(folder / "talk.mp4")
    start = np.argmax(np.abs(heard) > 0.1 * np.abs(heard).max()) / 16000
    assert start == pytest.approx(0.2 + 0.1 + 1 / 25, abs=0.004)


def test_the_demo_needs_no_arguments(omni: Omni, folder: Path) -> None:
    short = ("--schedule.steps", "1", "--reference-image.sizes", "[[32, 32]]", "--fixed-frames.window-frames", "49")
    outcome = omni("run", *short)
    assert outcome.code == 0
    said = r"4\.36 s of video, 32 pixels wide and 32 high, in [\d.]+ s"
    assert re.fullmatch(rf"{folder}/out/demo\.mp4  \({said}\)\n", outcome.out)
    assert probe_video(folder / "out" / "demo.mp4").frames == 109
    assert "\x1b" not in outcome.err
    loaded, *chunks = outcome.err.splitlines()
    assert re.fullmatch(r"loaded text_encoder, vae, audio_encoder, audio_adapter, dit in [\d.]+ s", loaded)
    assert [re.sub(", about.*", "", line) for line in chunks] == [f"chunk {number}/3 done" for number in (1, 2, 3)]


def test_a_shorter_demo_talks_too(omni: Omni, folder: Path) -> None:
    assert omni("run", "--seconds", "0.36", "--schedule.steps", "1", "--reference-image.sizes", "[[32, 32]]").code == 0
    info = probe_video(folder / "out" / "demo.mp4")
    assert (info.frames, info.has_audio) == (9, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--units", "default-audio-reference-image"), "the transformer takes 33 channels and the plan makes 16"),
        (("--units", "default-audio"), "the length of the video is unknown; give seconds (--seconds"),
    ],
)
def test_the_demo_is_for_who_asks_for_nothing_else(omni: Omni, arguments: tuple[str, ...], complaint: str) -> None:
    outcome = omni("run", *arguments)
    assert outcome.code == 2
    assert complaint in outcome.err


def test_json_is_one_line_of_figures(omni: Omni, folder: Path) -> None:
    outcome = omni("run", *SMALL, "-o", "a.mp4", "--json", "--units", "default+teacache(threshold=10)", "--quiet")
    (line,) = outcome.out.splitlines()
    figures = json.loads(line)
    assert figures["video"] == str(folder / "a.mp4")
    assert (figures["frames"], figures["fps"], figures["height"], figures["width"]) == (13, 25, 32, 32)
    assert (figures["windows"], figures["steps"], figures["transformer_calls"]) == (2, 2, 4)
    assert "teacache(threshold=10.0)" in figures["units"]
    assert (figures["device"], figures["dtype"]) == ("cpu", "float32")
    assert 0 < figures["denoise_seconds"] < figures["generate_seconds"]
    assert figures["peak_rss_mib"] > 50
    assert outcome.err == ""


def test_without_a_sound_the_length_must_be_given(omni: Omni, folder: Path, portrait: Path) -> None:
    outcome = omni("run", "--image", portrait, "-o", "a.mp4", *SMALL)
    assert outcome.code == 0
    info = probe_video(folder / "a.mp4")
    assert (info.frames, info.has_audio) == (13, False)
    outcome = omni("run", "--units", "default-audio", "--image", portrait, "-o", "b.mp4", "--quiet")
    assert outcome.code == 2
    assert outcome.error.startswith("the length of the video is unknown; give seconds (--seconds")


@pytest.mark.slow
def test_what_the_built_in_avatar_lacks_comes_from_the_demo(omni: Omni, folder: Path, portrait: Path) -> None:
    short = ("--schedule.steps", "1", "--reference-image.sizes", "[[32, 32]]", "--fixed-frames.window-frames", "49")
    sound = write_wav(folder / "tone.wav", tone(0.3, 16000), 16000)
    heard = omni("run", "--audio", sound, *short, "-o", "a.mp4")
    assert (heard.code, notes(heard)) == (0, ["omni: no --image is given, so the demo's talks"])
    with_portrait = omni("run", "--audio", sound, "--image", portrait, *short, "-o", "b.mp4")
    assert (with_portrait.code, notes(with_portrait)) == (0, [])
    assert np.array_equal(read_video(folder / "a.mp4"), read_video(folder / "b.mp4"))
    told = omni("run", "--prompt", "hi", *short, "--fps", "2")
    assert told.code == 0
    assert [note.partition(",")[0] for note in notes(told)] == [
        "omni: no --image is given",
        "omni: no --audio is given",
    ]
    assert probe_video(folder / "out" / "video.mp4").has_audio
    (folder / "list.txt").write_text(f"hi@@@@{sound}\nho@@{portrait}@@{sound}\n")
    listed = omni("run", "--input-file", "list.txt", *short)
    assert (listed.code, notes(listed)) == (0, ["omni: no --image is given, so the demo's talks"])


def test_photographs_are_spoken_of_before_the_work(omni: Omni, folder: Path, portrait: Path) -> None:
    Image.fromarray(colours(64, 64)).save(folder / "me.png")
    (folder / "list.txt").write_text("hi@@me.png\nho\n")
    for named in (("--image", "me.png"), ("--input-file", "list.txt")):
        first, *_ = omni("run", *named, *SMALL).err.splitlines()[("--input-file" in named) :]
        assert first == "omni: the built-in avatar knows drawn faces; for a photograph: --config omniavatar-1.3b"
    assert "drawn faces" not in omni("run", "--image", "me.png", "--quiet", *SMALL).err


def notes(outcome: Outcome) -> list[str]:
    """The lines of stderr that are no progress."""
    return [line for line in outcome.err.splitlines() if line.startswith("omni: ")]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--steps 3", "unknown option '--steps'; did you mean '--schedule.steps'?"),
        (
            "--num_inference_steps 3 --units default-euler+unipc",
            "--num-inference-steps'; did you mean '--schedule.steps'?",
        ),
        ("--denoise 0.5", "unknown option '--denoise'; did you mean '--schedule.strength'?"),
        ("--cfg 3", "unknown option '--cfg'; did you mean '--guidance.scale'?"),
        ("--negative-prompt x", "unknown option '--negative-prompt'; did you mean '--prompt.negative'?"),
        ("--resolution 3", "unknown option '--resolution'; did you mean '--size'?"),
        ("--num-frames 3", "unknown option '--num-frames'; did you mean '--seconds'?"),
        ("--checkpoint x", "unknown option '--checkpoint'; did you mean '--model'?"),
        ("--voice x", "unknown option '--voice'; did you mean '--audio'?"),
        ("--face x", "unknown option '--face'; did you mean '--image'?"),
        ("--outdir x", "unknown option '--outdir'; did you mean '--output'?"),
        ("--preset x", "unknown option '--preset'; did you mean '--units'?"),
        ("--precision x", "unknown option '--precision'; did you mean '--dtype'?"),
        ("--offload", "unknown option '--offload'; did you mean --units 'default+offload'?"),
        ("--scheduler x", "solvers are units, euler by default; for another one: --units default-euler+unipc"),
        ("--teacache-threshold 1", "did you mean '--teacache.threshold'? It wants --units 'default+teacache'"),
        ("--overwrite", "--output FILE replaces what is there without a question; without it names are numbered"),
        ("--width 33 --height 32", "--width is 33; give a positive multiple of 16"),
        ("--width 32", "--width is 32 and there is no --height; give both"),
        (
            "--width 32 --height 32 --size 32x32",
            "--size gives width and height already; leave --width and --height out",
        ),
        ("--size 832*480", "give WIDTHxHEIGHT in positive multiples of 16, such as 720x400 for a wide picture"),
    ],
)
def test_options_of_other_programs_are_understood(omni: Omni, words: str, complaint: str) -> None:
    outcome = omni("run", *words.split())
    assert outcome.code == 2
    assert complaint in outcome.error


def test_every_synonym_leads_to_an_option_or_a_unit() -> None:
    begin = start({"units": "default+teacache+attention+video-to-video", "config": None})
    known = {name for param in [*run.params, *unit_options(begin.units.values(), ())] for name in param.opts}
    assert {option for option in SYNONYMS if not option.startswith("*")} <= known
    assert set(UNITS) <= set(begin.catalog.units)
    assert not set(MEANT) & {name.removeprefix("--") for name in known}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TypeError("no such\nshape"), "TypeError: no such"),
        (MemoryError(), "out of memory"),
        (type("PanicException", (BaseException,), {})("overflow"), "PanicException: overflow"),
    ],
)
def test_no_line_of_a_list_ends_it_for_the_others(
    omni: Omni, folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    request = VideoMaker.request

    def read(self: VideoMaker, engine: Any, video: Video) -> Any:
        if video.inputs["prompt"] == "bad":
            raise error
        return request(self, engine, video)

    monkeypatch.setattr(VideoMaker, "request", read)
    (folder / "list.txt").write_text("bad\ngood\n")
    outcome = omni("run", "--input-file", "list.txt", *SMALL, "--seconds", "0.24")
    assert outcome.code == 1
    first, *_, last = notes(outcome)
    assert first.startswith(f"omni: list.txt, line 1: {said}")
    assert last.startswith(f"omni: 1 of 2 videos are made; failed: line 1: {said}")
    assert tree(folder / "out") == {"list", "list/result_001.mp4"}


def test_width_and_height_are_a_size(omni: Omni, folder: Path) -> None:
    assert omni("run", *SMALL[2:], "--width", "48", "--height", "32", "-o", "a.mp4").code == 0
    info = probe_video(folder / "a.mp4")
    assert (info.width, info.height) == (48, 32)


def test_the_same_seed_gives_the_same_pictures(omni: Omni, folder: Path) -> None:
    videos = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        omni("run", *SMALL, "--seconds", "0.24", "--seed", seed, "-o", f"{name}.mp4")
        videos.append(read_video(folder / f"{name}.mp4"))
    assert np.array_equal(videos[0], videos[1])
    assert not np.array_equal(videos[0], videos[2])


def test_verbose_says_what_is_going_on(omni: Omni) -> None:
    quiet, chatty = (omni("run", *SMALL, "--seconds", "0.24", "-o", "a.mp4", *flag) for flag in ((), ("-v",)))
    assert "omni: reading" not in quiet.err
    assert re.search(r"^omni: reading \d+ tensors from .*vae.safetensors$", chatty.err, re.MULTILINE)


def test_model_files_can_be_named(omni: Omni, folder: Path) -> None:
    models = [argument for name in FILES for argument in ("--model", str(tiny_file(name)))]
    assert omni("run", *models, *SMALL, "--seconds", "0.24", "-o", "a.mp4").code == 0
    outcome = omni("run", *models[:-2], *SMALL, "-o", "b.mp4")
    assert outcome.code == 2
    assert outcome.error.startswith("unit 'audio' needs a model for the role 'audio_encoder'")
    assert tree(folder) == {"a.mp4"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_all_kinds(omni: Omni, folder: Path, name: str) -> None:
    picture = PICTURES[name]()
    more: dict[str, Any] = {"save_all": True, "append_images": [picture.rotate(90)]} if name.endswith("gif") else {}
    picture.save(folder / name, **more)
    assert omni("run", "--image", name, *SMALL, "--seconds", "0.24", "-o", "a.mp4").code == 0
    assert probe_video(folder / "a.mp4").frames == 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stereo_8k", "mono_48k", "float", "mp3", "a_video"])
def test_sounds_of_all_kinds(omni: Omni, folder: Path, kind: str) -> None:
    if kind == "float":
        path = write_float_wav(folder / "sound.wav", tone(0.16, 16000, level=3.0), 16000)
    else:
        rate = {"stereo_8k": 8000, "mono_48k": 48000}.get(kind, 16000)
        sound = tone(0.16, rate)
        path = write_wav(folder / "sound.wav", np.stack([sound, sound], 1) if kind == "stereo_8k" else sound, rate)
    if kind == "mp3":
        path = convert(path, folder / "sound.mp3")
    if kind == "a_video":
        path = convert(path, folder / "sound.mp4")
    outcome = omni("run", "--audio", path, *SMALL, "--audio.silence", "0", "-o", "a.mp4", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["frames"] in ((5,) if path.suffix == ".wav" else range(5, 9))
    assert probe_video(folder / "a.mp4").has_audio


def test_odd_names_of_files(omni: Omni, folder: Path, portrait: Path, speech: Path) -> None:
    (folder / "-my $(touch x); picture's.png").write_bytes(portrait.read_bytes())
    (folder / "concat:a|b.flac").write_bytes(speech.read_bytes())
    before = tree(folder)
    outcome = omni(
        "run", "--image=-my $(touch x); picture's.png", "--audio", "concat:a|b.flac", "-o", "out 'put.mp4", *SMALL
    )
    assert outcome.code == 0, outcome.err
    assert tree(folder) == before | {"out 'put.mp4"}


def test_a_list_makes_a_video_a_line_and_goes_on_after_a_bad_one(omni: Omni, folder: Path, portrait: Path) -> None:
    lines = [f"first@@{portrait}", "", "second@@nowhere.png", "an @@ in it@@@@"]
    (folder / "list.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    outcome = omni("run", "--input-file", "list.txt", *SMALL, "--seconds", "0.24", "--json", "--quiet")
    assert outcome.code == 1
    assert outcome.err.startswith("omni: list.txt, line 3: image 'nowhere.png' does not exist; looked in ")
    videos = [json.loads(line)["video"] for line in outcome.out.splitlines()]
    assert videos == [str(folder / "out" / "list" / f"result_{number:03}.mp4") for number in (0, 3)]
    assert all(Path(video).is_file() for video in videos)


def test_each_video_of_a_list_has_its_own_figures(omni: Omni, folder: Path) -> None:
    (folder / "list.txt").write_text("one\ntwo\n")
    outcome = omni("run", "--input-file", "list.txt", *SMALL, "--seconds", "0.24", "--json", "-o", "videos")
    assert outcome.code == 0
    figures = [json.loads(line) for line in outcome.out.splitlines()]
    assert [entry["steps"] for entry in figures] == [1, 1]
    assert tree(folder) == {"list.txt", "videos", "videos/result_000.mp4", "videos/result_001.mp4"}
    assert "video 2/2, chunk 1/1 done" in outcome.err


def test_a_list_of_bad_lines_loads_nothing(omni: Omni, folder: Path) -> None:
    (folder / "list.txt").write_text("a@@x.png\nb@@y.png\n")
    outcome = omni("run", "--input-file", "list.txt")
    assert outcome.code == 2
    *lines, last = outcome.err.splitlines()
    assert [line[:22] for line in lines] == ["omni: list.txt, line 1", "omni: list.txt, line 2"]
    assert last == "omni: 0 of 2 videos are made"
    assert tree(folder) == {"list.txt"}


def test_a_list_starts_with_its_first_line(omni: Omni, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs of a line are looked at when those before are made."""
    told: list[str] = []

    def look(self: VideoMaker, engine: Any, video: Video) -> Any:
        told.append(f"look {video.line}")
        if video.inputs["prompt"] == "bad":
            raise InputError("it is bad")
        return video

    monkeypatch.setattr(VideoMaker, "request", look)
    monkeypatch.setattr(VideoMaker, "watched", lambda _, engine, video: told.append(f"make {video.line}"))
    monkeypatch.setattr(VideoMaker, "load", lambda *_: told.append("load"))
    (folder / "list.txt").write_text("bad\ngood\nbad\ngood\n")
    omni("run", "--input-file", "list.txt")
    assert told == ["look line 1", "look line 2", "load", "make line 2", "look line 3", "look line 4", "make line 4"]


def test_the_end_of_a_list_sums_up(omni: Omni, folder: Path, portrait: Path) -> None:
    lines = [f"good@@{portrait}", *(f"bad@@{number}.png" for number in range(5))]
    (folder / "list.txt").write_text("\n".join(lines))
    outcome = omni("run", "--input-file", "list.txt", *SMALL, "--seconds", "0.04")
    assert outcome.code == 1
    summary = notes(outcome)[-1]
    assert summary.startswith("omni: 1 of 6 videos are made; failed: line 2: image '0.png' does not exist")
    assert summary.endswith("; 2 more")
    assert summary.count("line ") == 3


def test_a_list_wants_a_folder(omni: Omni, folder: Path) -> None:
    (folder / "list.txt").write_text("one\ntwo\n")
    outcome = omni("run", "--input-file", "list.txt", "-o", "x/many.MP4")
    assert outcome.code == 2
    assert outcome.error == "--output is x/many.MP4 and a list makes many videos; name a folder, such as many"
    assert tree(folder) == {"list.txt"}


# Where videos go ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_names_that_nobody_has_given_are_numbered(omni: Omni, folder: Path, portrait: Path) -> None:
    short = (*SMALL, "--seconds", "0.04", "--quiet")
    (folder / "list.txt").write_text("one\n")
    for _ in range(3):
        assert omni("run", "--prompt", "hi", *short).code == 0
    for _ in range(2):
        assert omni("run", *short).code == 0
        assert omni("run", "--input-file", "list.txt", *short).code == 0
    files = {path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*.mp4")}
    videos = {"video.mp4", "video-2.mp4", "video-3.mp4", "demo.mp4", "demo-2.mp4"}
    assert files == {*videos, "list/result_000.mp4", "list-2/result_000.mp4"}


@pytest.mark.slow
def test_a_name_that_is_given_replaces_and_may_hold_the_seed(omni: Omni, folder: Path) -> None:
    short = (*SMALL, "--seconds", "0.04", "--quiet")
    for _ in range(2):
        assert omni("run", *short, "--seed", "7", "-o", "v/{seed}-a.mp4").code == 0
    (folder / "list.txt").write_text("one\n")
    assert omni("run", *short, "--seed", "8", "--input-file", "list.txt", "-o", "l-{seed}").code == 0
    assert tree(folder) == {"list.txt", "v", "v/7-a.mp4", "l-8", "l-8/result_000.mp4"}


# Lengths and sizes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "fps", "frames"), [(0.04, 25, 1), (0.2, 25, 5), (0.5, 1, 1), (3, 1, 3)])
def test_a_video_is_as_long_as_asked(omni: Omni, folder: Path, seconds: float, fps: int, frames: int) -> None:
    outcome = omni("run", *SMALL, "--seconds", str(seconds), "--fps", str(fps), "-o", "a.mp4")
    assert outcome.code == 0, outcome.err
    info = probe_video(folder / "a.mp4")
    assert (info.frames, info.shown) == (frames, Fraction(frames, fps))


def test_a_size_is_width_and_height(omni: Omni, folder: Path) -> None:
    outcome = omni("run", *SMALL, "--seconds", "0.04", "--size", "48x32", "-o", "a.mp4")
    assert "48 pixels wide and 32 high" in outcome.out
    info = probe_video(folder / "a.mp4")
    assert (info.width, info.height) == (48, 32)


def test_half_precision_on_a_cpu_is_warned_of(omni: Omni, folder: Path) -> None:
    short = (*SMALL, "--seconds", "0.04", "--device", "cpu")
    outcome = omni("run", *short, "--dtype", "bf16")
    first, *_ = outcome.err.splitlines()
    assert first == "omni: bf16 on a CPU can take 100 times as long as fp32, the default there; leave the dtype out"
    assert "100 times" not in omni("run", *short).err


def test_units_change_those_of_the_configuration(omni: Omni, folder: Path) -> None:
    (folder / "my.yaml").write_text("base: tiny\nunits: +teacache\n")
    short = (*SMALL, "--seconds", "0.04", "--quiet", "--json")
    for words, there, absent in (
        (("--units", "+teacache-lora"), {"teacache"}, {"lora"}),
        (("--units", "-lora"), {"euler"}, {"lora"}),
        (("--config", "my.yaml", "--units", "+cfg-merge"), {"teacache", "smooth-borders", "cfg-merge"}, set()),
    ):
        outcome = omni("run", *words, *short)
        assert outcome.code == 0, outcome.err
        names = {unit.partition("(")[0] for unit in json.loads(outcome.out)["units"]}
        assert there <= names
        assert not absent & names


# Help ---------------------------------------------------------------------------------------------------------------


def test_help_has_the_core_the_inputs_and_a_section_for_each_unit(omni: Omni) -> None:
    out = omni("run", "--help").out
    titles = re.findall(r"^(\S+):$", out, re.MULTILINE)
    assert titles[:3] == ["Options", "Inputs", "prompt"]
    assert "teacache" not in titles
    assert {"reference-image", "audio", "fixed-frames", "guidance", "schedule", "write-video"} <= set(titles)
    core, inputs = out.index("--config"), out.index("--prompt ")
    assert core < inputs < out.index("--prompt.negative")
    assert re.search(r"--image IMAGE +who talks: a portrait", out)
    assert re.search(r"--schedule.steps INTEGER +denoising steps  \[1 to 1000; default:\s+50\]", out)


def test_help_follows_the_plan(omni: Omni) -> None:
    out = omni("run", "--units", "default+teacache-guidance", "--help").out
    assert "--teacache.threshold NUMBER" in out
    assert "Cache: reuse what the blocks added" in out
    assert "--guidance." not in out
    assert "--euler.steps" not in out, "an old name works, and is not shown"


def test_units_of_plugins_get_options_and_help(omni: Omni, folder: Path, install: Callable[[str, str], None]) -> None:
    install("omniavatar_tint", TINT)
    out = omni("run", "--units", "default+tint", "--help").out
    assert re.search(
        r"tint:\n +Colours the video\.\n +--tint\.strength NUMBER +how much  \[0 to 1; default: 0\.5\]", out
    )
    assert re.search(r"--colour TEXT +which one", out)
    run = ("run", *SMALL, "--seconds", "0.24", "--units", "default+tint", "-o", "a.mp4")
    assert "tint red 0.25" in omni(*run, "--colour", "red", "--tint.strength", "0.25").err.splitlines()
    outcome = omni(*run, "--tint.strength", "2")
    assert outcome.error == "--tint.strength 2: at most 1"


TINT = '''
import sys
from pydantic import Field
from omniavatar.engine.unit import PipelineUnit, UnitInputs, UnitSettings
from omniavatar.hookspecs import hookimpl

class Tint(PipelineUnit):
    """Colours the video."""
    name = "tint"
    class Settings(UnitSettings):
        strength: float = Field(0.5, ge=0, le=1, description="how much")
    class Inputs(UnitInputs):
        colour: str = Field("blue", description="which one")
    @hookimpl
    def setup(self, engine):
        self.ready = True
    @hookimpl
    def begin_job(self, job):
        print("tint", job.inputs(self).colour, self.settings.strength, file=sys.stderr)

@hookimpl
def omni_units():
    return [Tint]
'''
