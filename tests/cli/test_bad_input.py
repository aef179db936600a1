"""Everything a user can get wrong: one clear line, exit code 2, and the folder as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from omniavatar.resources import asset
from omniavatar.testing.tiny import tiny_file
from tests.cli.conftest import Omni, tree
from tests.media.samples import convert, tone, write_wav

IMAGE = str(asset("demo", "portrait.png"))
SOUND = str(asset("demo", "speech.flac"))


@pytest.fixture(autouse=True)
def files(folder: Path) -> None:
    """Bad files of all kinds."""
    (folder / "empty.png").touch()
    (folder / "garbage.png").write_bytes(b"this is no picture")
    (folder / "cut.png").write_bytes(Path(IMAGE).read_bytes()[:2000])
    (folder / "empty.wav").touch()
    write_wav(folder / "nothing.wav", tone(0, 16000), 16000)
    convert(Path(IMAGE), folder / "mute.mp4", "-pix_fmt", "yuv420p")
    (folder / "garbage.yaml").write_text("{ [")
    (folder / "list.yaml").write_text("- a\n")
    (folder / "typo.yaml").write_text("unitz: default\n")
    (folder / "wrong.yaml").write_text("fps: many\n")
    (folder / "unit.yaml").write_text("settings: {guidence: {scale: 3}}\n")
    (folder / "setting.yaml").write_text(
        f"models_dir: {asset('tiny')}\nmodels: [vae.safetensors]\nsettings: {{schedule: {{stepz: 3}}}}\n"
    )
    (folder / "empty.txt").write_text("\n\n")
    (folder / "huge.safetensors").write_bytes((2**63 - 1).to_bytes(8, "little") + b"{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**60]}}).encode()
    (folder / "lies.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (folder / "cut.safetensors").write_bytes(tiny_file("vae.safetensors").read_bytes()[:-100])
    (folder / "pickle.pth").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    (folder / "a_folder.mp4").mkdir()
    (folder / "voice.mp4").write_bytes(asset("demo", "speech.flac").read_bytes())


CASES = {
    # inputs
    "no image": (["--image", "none.png"], "image 'none.png' does not exist"),
    "empty image": (["--image", "empty.png"], "image 'empty.png' is empty (0 bytes)"),
    "no picture": (["--image", "garbage.png"], "image 'garbage.png' is not a picture"),
    "half a picture": (["--image", "cut.png"], "image 'cut.png' is damaged"),
    "a folder as image": (["--image", "."], "image '.' is a folder"),
    "no audio": (["--audio", "none.wav"], "audio 'none.wav' does not exist"),
    "empty audio": (["--audio", "empty.wav"], "audio 'empty.wav' is empty (0 bytes)"),
    "a picture as audio": (["--audio", IMAGE], f"audio '{IMAGE}' has no audio track"),
    "a mute video as audio": (["--audio", "mute.mp4"], "audio 'mute.mp4' has no audio track"),
    "zero seconds of audio": (["--audio", "nothing.wav"], "audio 'nothing.wav' holds no sound"),
    # options
    "zero seconds": (["--seconds", "0"], "--seconds is 0; give a length above 0"),
    "not a number of seconds": (["--seconds", "nan"], "--seconds is nan; give a length above 0"),
    "endless": (["--seconds", "inf"], "--seconds is inf; give a length above 0"),
    "odd size": (["--size", "30x32"], "--size is '30x32'; give WIDTHxHEIGHT in positive multiples of 16"),
    "half a size": (["--size", "32"], "--size is '32'; give WIDTHxHEIGHT"),
    "unknown device": (["--device", "gpu"], "there is no device 'gpu' here; choices: auto, cpu"),
    "device without memory": (["--device", "meta"], "there is no device 'meta' here; choices: auto, cpu"),
    "unknown dtype": (["--dtype", "fp64"], "--dtype fp64: choices: auto, bf16, fp16, fp32"),
    "negative seed": (["--seed", "-2"], "--seed -2: at least -1"),
    "no frames a second": (["--fps", "0"], "--fps 0: at least 1"),
    "misspelt option": (["--promt", "x"], "unknown option '--promt'; did you mean '--prompt'?"),
    "unknown option": (["--xyzzy"], "unknown option '--xyzzy'; omni run --help lists all"),
    "left-over argument": (["talk.mp4"], "Got unexpected extra argument (talk.mp4)"),
    # units and settings
    "unknown unit": (["--units", "default+teacahe"], "unknown unit or preset 'teacahe'; did you mean 'teacache'?"),
    "no plan": (["--units", ""], "the plan expression is empty; for example: default"),
    "broken plan": (["--units", "default+"], "plan expression 'default+': a unit or preset is missing"),
    "unknown setting": (
        ["--schedule.step", "3"],
        "--schedule.step: unit 'schedule' has no setting 'step'; did you mean 'steps'?",
    ),
    "unknown setting in a plan": (["--units", "default+schedule(stepz=3)"], "unit 'schedule' has no setting 'stepz'"),
    "setting of an absent unit": (
        ["--teacache.threshold", "1"],
        "--teacache.threshold: unit 'teacache' is not in the plan; add it with --units 'default+teacache'",
    ),
    "setting of another solver": (
        ["--units", "default-euler+unipc", "--euler.order", "1"],
        "--euler.order: unit 'euler' is not in the plan; 'unipc' is in its place: --unipc.order",
    ),
    "old name of a setting": (["--euler.steps", "0"], "--euler.steps 0: at least 1"),
    "brackets without end": (
        ["--units", f"default+teacache(coefficients={'[' * 5000}{']' * 5000})"],
        f"setting 'coefficients={'[' * 87}...': cannot read the value: more than 40 lists or mappings",
    ),
    "nan in a list": (["--units", "default+teacache(coefficients=[.nan])"], "unit 'teacache': coefficients.0 = nan: "),
    "overlap": (["--fixed-frames.overlap", "12"], "overlap of 12 frames is not 4n+1; the nearest are 9 and 13"),
    "too many steps": (
        ["--schedule.steps", "1001"],
        "--schedule.steps 1001: at most 1000",
    ),
    "not a number": (["--guidance.scale", "nan"], "--guidance.scale nan: not a number"),
    "text for a number": (["--schedule.steps", "many"], "--schedule.steps many: not a whole number"),
    "half a number": (["--schedule.steps", "1.5"], "--schedule.steps 1.5: not a whole number"),
    "item of a list": (["--reference-image.sizes", "[[0, 32]]"], "--reference-image.sizes [[0, 32]]: "),
    "size of no tokens": (
        ["--reference-image.sizes", "[[20, 32]]"],
        "reference-image.sizes: [20, 32] is not made of positive multiples of 16",
    ),
    "neither true nor false": (["--vae-decode.tiled", "maybe"], "--vae-decode.tiled maybe: give true or false"),
    "unmet need": (["--units", "default-vae-decode"], "unit 'fixed-frames' needs 'previous.frames', which no unit"),
    # output
    "below a file": (["-o", "garbage.png/a.mp4"], "cannot write 'garbage.png/a.mp4': Not a directory"),
    "the voice itself": (
        ["--audio", "voice.mp4", "-o", "voice.mp4"],
        "the output {folder}/voice.mp4 is also the audio that is read; give it another name",
    ),
    "another format": (["-o", "a.avi"], "cannot write 'a.avi': the output is an mp4 file"),
    "a folder": (["-o", "a_folder.mp4"], "cannot write 'a_folder.mp4': it exists and is not a file"),
    "no such place": (["-o", "/proc/a.mp4"], "cannot write '/proc/a.mp4': "),
    # models
    "no model": (["--model", "none.pth"], "no model at "),
    "damaged header": (["--model", "huge.safetensors"], "{folder}/huge.safetensors is damaged"),
    "lying header": (["--model", "lies.safetensors"], "{folder}/lies.safetensors is damaged"),
    "cut model": (["--model", "cut.safetensors"], "{folder}/cut.safetensors is damaged"),
    "hostile pickle": (["--model", "pickle.pth"], "{folder}/pickle.pth"),
    "not a model": (["--model", "garbage.png"], "{folder}/garbage.png is not a model file by its name"),
    # configurations and lists
    "no configuration": (["--config", "omniavatar-14"], "there is no configuration omniavatar-14; did you mean"),
    "broken YAML": (["--config", "garbage.yaml"], "cannot read the configuration garbage.yaml: "),
    "YAML list": (["--config", "list.yaml"], "the configuration list.yaml is not a mapping of names to values"),
    "binary as YAML": (["--config", IMAGE], f"cannot read the configuration {IMAGE}: "),
    "unknown field": (["--config", "typo.yaml"], "typo.yaml: unknown field 'unitz'; did you mean 'units'?"),
    "wrong field": (["--config", "wrong.yaml"], "wrong.yaml: fps = 'many': input should be a valid integer"),
    "settings of no unit": (["--config", "unit.yaml"], "file unit.yaml: unknown unit 'guidence'"),
    "no such setting": (
        ["--config", "setting.yaml"],
        "file setting.yaml: unit 'schedule' has no setting 'stepz'; did you mean 'steps'?",
    ),
    "unknown hparam": (["--hp", "num_step=3"], "--hp: unknown key 'num_step'; did you mean 'num_steps'?"),
    "broken hparam": (["--hp", "num_steps"], "--hp: 'num_steps' is not key=value"),
    "hparam out of bounds": (
        ["--hp", "num_steps=0"],
        "unit 'schedule': steps = 0: input should be greater than",
    ),
    "no list": (["--input-file", "none.txt"], "cannot read the list none.txt: No such file or directory"),
    "empty list": (["--input-file", "empty.txt"], "the list empty.txt holds no line of the form prompt@@image@@audio"),
    "binary list": (["--input-file", IMAGE], f"cannot read the list {IMAGE}: it is not UTF-8 text"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_exit_code_2_and_nothing_written(omni: Omni, folder: Path, case: str) -> None:
    options, message = CASES[case]
    before = tree(folder)
    outcome = omni("run", *options)
    assert outcome.code == 2
    assert outcome.error.startswith(message.format(folder=folder))
    assert tree(folder) == before


def test_an_output_that_exists_survives_a_failure(omni: Omni, folder: Path) -> None:
    (folder / "talk.mp4").write_bytes(b"the old one")
    outcome = omni("run", "--audio", "nothing.wav", "-o", "talk.mp4")
    assert outcome.code == 2
    assert (folder / "talk.mp4").read_bytes() == b"the old one"
    assert not list(folder.glob(".*"))
