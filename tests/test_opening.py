"""An engine without the command line: the code of docs/python.md runs, and what cannot be opened is one line."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from safetensors.torch import save_file

from omniavatar.distributed.world import World
from omniavatar.engine.unit import PipelineUnit, UnitSettings
from omniavatar.errors import CheckpointError, InputError, OmniError, PlanError
from omniavatar.media.audio import load_waveform
from omniavatar.media.video import probe_video
from omniavatar.opening import open_engine
from omniavatar.plugins import Failure, Plugins
from omniavatar.resources import asset
from tests.media.samples import write_wav
from tests.test_docs import BLOCK

TINY_FILES = ["transformer.safetensors", "vae.safetensors", "text_encoder.safetensors", "wav2vec2"]
PAGE = Path(__file__).parents[1] / "docs" / "python.md"


SHORTER = {
    '"schedule": {"steps": 10}': '"schedule": {"steps": 1}, "fixed-frames": {"window_frames": 17, "overlap": 5}',
    '"schedule": {"steps": 4}}': '"schedule": {"steps": 1}, "fixed-frames": {"window_frames": 17, "overlap": 5}}',
    "seconds=3": "seconds=1.2",
    "seconds=4": "seconds=2",
}


@pytest.mark.slow
def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(asset("demo", "portrait.png"), "face.png")
    write_wav(tmp_path / "voice.wav", load_waveform(asset("demo", "speech.flac"), 16000)[:16000], 16000)
    code = "".join(block["text"] for block in BLOCK.finditer(PAGE.read_text()))
    for long, short in SHORTER.items():
        assert long in code
        code = code.replace(long, short)
    names: dict[str, Any] = {}
    exec(code, names)
    said = capsys.readouterr().out
    assert "chunk 1 of 3, from frame 0: (17, 128, 128, 3)" in said
    assert "stopped\n" in said
    assert "['left.mp4', 'right.mp4']" in said
    for name in ("talk", "quick", "left", "right"):
        assert probe_video(tmp_path / f"{name}.mp4").frames
    assert probe_video(tmp_path / "talk.mp4").has_audio
    assert names["video"].shape[1:] == (128, 128, 3)
    assert names["rest"] == [1, 2]
    assert names["result"].manifest["seed"] == 42


def test_what_is_given_takes_the_place_of_what_the_configuration_says() -> None:
    engine = open_engine("tiny", units="default+teacache", settings={"teacache": {"threshold": 0.5}}, dtype="bf16")
    (cache,) = (unit for unit in engine.plan.units if unit.name == "teacache")
    assert (cache.settings.threshold, str(engine.dtype)) == (0.5, "torch.bfloat16")
    assert "smooth-borders" in open_engine().plan


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"config": "tny"}, InputError, "there is no configuration tny; did you mean 'tiny'?"),
        ({"units": "default+nothing"}, PlanError, "unknown unit or preset 'nothing'"),
        ({"settings": {"schedule": {"steps": 0}}}, PlanError, "unit 'schedule': steps = 0"),
        ({"dtype": "int8"}, InputError, "open_engine: dtype = 'int8'"),
        ({"dtype": torch.int8}, InputError, "open_engine: dtype = 'int8'"),
        ({"config": "/no/such.yaml"}, InputError, "the configuration file /no/such.yaml does not exist"),
        ({"config": {"unitz": "default"}}, InputError, "config: unknown field 'unitz'; did you mean 'units'?"),
        ({"settings": {"euller": {"steps": 3}}}, PlanError, "settings: unknown unit 'euller'; did you mean 'euler'?"),
        (
            {"settings": {"schedule": {"step": 3}}},
            PlanError,
            "settings: unit 'schedule' has no setting 'step'; did you mean",
        ),
        ({"settings": {"euler": 3}}, InputError, "open_engine: settings.euler = 3: input should be a valid dict"),
        (
            {"settings": {"teacache": {"clamp": False}}},
            PlanError,
            "settings: unit 'teacache' is not in the plan; add it",
        ),
        ({"settings": {"teacache": {}}}, PlanError, "settings: unit 'teacache' is not in the plan; add it, such as"),
        (
            {"settings": {"schedule": {"steps": True}}},
            PlanError,
            "unit 'schedule': steps = True: true and false are",
        ),
        ({"settings": {"guidance": {"scale": float("nan")}}}, PlanError, "unit 'guidance': scale = nan: input should"),
        ({"models": "a.pth"}, InputError, "open_engine: models = 'a.pth': give a list of them"),
        ({"models": ["/no/a.pth"]}, CheckpointError, "no model at /no/a.pth; say where it is with models=, or with"),
        ({"models": [{"pth": "a"}]}, InputError, "open_engine: 'models.0.path' is required"),
        ({"config": "omniavatar-1.3b", "models_dir": "/no"}, CheckpointError, "7 model files are missing; looked in"),
        ({"tables": ["/no/t.toml"]}, CheckpointError, "checkpoint table /no/t.toml cannot be read"),
        ({"extra_units": [int]}, PlanError, "extra_units: <class 'int'> is not a PipelineUnit"),
        ({"device": "gpu"}, InputError, "there is no device 'gpu' here"),
    ],
)
def test_what_cannot_be_opened_is_one_line(arguments: dict[str, Any], error: type[OmniError], message: str) -> None:
    with pytest.raises(error) as caught:
        open_engine(**arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value) or "hf download" in str(caught.value)
    assert not re.search(r"--(models|units|config|model|table|seed)", str(caught.value)), "that is the command line"


class Mine(PipelineUnit):
    """A unit of a notebook."""

    name = "mine"

    class Settings(UnitSettings):
        level: float = Field(0.5, description="how much")


def test_a_unit_can_be_tried_without_a_package() -> None:
    engine = open_engine(units="default+mine", extra_units=[Mine], settings={"mine": {"level": 0.25}})
    assert engine.plan.units[-1].settings == Mine.Settings(level=0.25)
    with pytest.raises(PlanError, match="unknown unit or preset 'mine'"):
        open_engine(units="default+mine")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("euler", "extra_units: a unit 'euler' exists already; give yours another name"),
        ("default", "extra_units: a preset 'default' exists already; give yours another name"),
    ],
)
def test_a_unit_that_is_tried_takes_nobodys_name(name: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        open_engine(extra_units=[type("Taken", (Mine,), {"name": name, "__doc__": "Taken."})])
    assert str(caught.value) == message
    with pytest.raises(PlanError, match="extra_units: a unit 'mine' exists already"):
        open_engine(extra_units=[Mine, Mine])


@pytest.fixture
def lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LoRA file for the built-in avatar, in the working folder."""
    monkeypatch.chdir(tmp_path)
    shapes = {"lora_A": (4, 240), "lora_B": (240, 4)}
    tensors = {f"blocks.0.self_attn.q.{half}.weight": torch.zeros(shape) for half, shape in shapes.items()}
    save_file(tensors, "lora.safetensors")
    return tmp_path / "lora.safetensors"


def test_models_are_added_to_those_of_a_named_configuration(lora: Path) -> None:
    for model in ("lora.safetensors", lora, {"path": "lora.safetensors"}, ["lora.safetensors"], "dit=lora.safetensors"):
        models = open_engine("tiny", models=[model]).models
        assert [adapter.name for adapter in models.adapters()] == [str(lora)]
        assert "vae" in models
    with pytest.raises(CheckpointError):  # as omni run --model does without --config
        open_engine(models=[lora]).set_up()
    alone = open_engine(models=[asset("tiny", name) for name in TINY_FILES])
    assert alone.plan.origins["schedule"]["steps"] == "checkpoint omniavatar-tiny"


def test_tables_and_the_place_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(asset("tiny"), tmp_path / "elsewhere")
    Path("mine.toml").write_text(
        '[[tuned]]\nname = "x"\nhash = "68a14b0d7d626ed36c129085a97f2948"\n[tuned.settings]\neuler.steps = 6\n'
    )
    engine = open_engine("tiny", models_dir=Path("elsewhere"), tables=["mine.toml"], dtype=torch.bfloat16)
    assert engine.plan.units[6].settings.steps == 6
    assert (str(engine.dtype), str(engine.device)) == ("torch.bfloat16", "cpu")


def test_ranks_share_every_call() -> None:
    engine = open_engine(world=World(rank=1, size=2, local_rank=1, local_size=2), device="cpu")
    assert "sequence-parallel" in engine.plan


def test_what_an_engine_does_not_heed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = {"models_dir": "package:assets/tiny", "models": TINY_FILES}
    with caplog.at_level(logging.WARNING):
        open_engine(config)
        assert caplog.messages == []
        open_engine({**config, "fps": 30, "seed": 7, "gpus": 2})
    assert caplog.messages == [
        "the configuration's seed, fps: give them to Request, an engine has none",
        "the configuration's gpus = 2: start that many ranks and give world=",
    ]


def test_a_plugin_that_is_left_out_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Plugins.registry

    def failing(self: Plugins, *tables: Any) -> Any:
        self.failures.append(Failure("sparkle", "it is broken"))
        return registry(self, *tables)

    monkeypatch.setattr(Plugins, "registry", failing)
    with caplog.at_level(logging.WARNING):
        open_engine()
    assert "plugin 'sparkle': it is broken" in caplog.text


def test_loras_have_strengths_of_their_own(lora: Path) -> None:
    """Beside all models, also those of the configuration that nobody names."""
    ranges = [[0, 0.5, 1], [0.5, 1, 0.3]]
    given: list[Any] = [
        "lora.safetensors=0.7",
        lora,
        "dit=lora.safetensors=-2",
        {"path": lora.name, "strength": ranges},
    ]
    models = open_engine(loras=[*given, "lora.safetensors=[[0.2,0.4,3]]"]).models
    strengths = [0.7, 1.0, -2.0, ((0, 0.5, 1), (0.5, 1, 0.3)), ((0.2, 0.4, 3),)]
    assert [adapter.strength for adapter in models.adapters()] == strengths
    assert "vae" in models
    config = {"base": "tiny", "models": [{"path": str(lora), "strength": 0.25}]}
    assert [adapter.strength for adapter in open_engine(config).models.adapters()] == [0.25]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lora.safetensors=1e9", "--lora lora.safetensors=1e9: a strength is a number from -100 to 100, or a list"),
        ("lora.safetensors=[[0, 2, 1]]", "the range [0, 2, 1] is not between 0 and 1"),
        ("lora.safetensors=[[0.5, 1, 1], [0, 0.5, 1]]", "is not between 0 and 1 and behind the one before it"),
        ("lora.safetensors=[1]", "1 is no range of steps; give [begin, end, strength]"),
        ({"path": "lora.safetensors", "strength": "much"}, "a strength is a number from -100 to 100"),
        (str(asset("tiny", "vae.safetensors")), "is no LoRA (omniavatar-tiny-vae), so it cannot have a strength"),
    ],
)
def test_strengths_that_cannot_be(lora: Path, given: Any, message: str) -> None:
    with pytest.raises(OmniError) as caught:
        open_engine(loras=[given])
    assert message in str(caught.value)
