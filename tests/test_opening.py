"""An engine without the command line: the code of docs/python.md runs, and what cannot be opened is one line."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from omniavatar.errors import InputError, OmniError, PlanError
from omniavatar.media.video import probe_video
from omniavatar.opening import open_engine
from omniavatar.plugins import Failure, Plugins
from omniavatar.resources import asset
from tests.test_docs import BLOCK

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.mark.slow
def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(asset("demo", "portrait.png"), "face.png")
    shutil.copy(asset("demo", "speech.flac"), "voice.wav")
    code = "".join(block["text"] for block in BLOCK.finditer(PAGE.read_text()))
    short = code.replace('"steps": 10', '"steps": 1').replace("Request({", "Request(seconds=0.2, inputs={")
    names: dict[str, Any] = {}
    exec(short.replace("}, seconds=1)", "})"), names)
    assert probe_video(tmp_path / "talk.mp4").has_audio
    assert names["video"].shape == (3, 6, 128, 128)
    assert 0 <= names["video"].min() < names["video"].max() <= 1


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
        ({"settings": {"euler": {"steps": 0}}}, PlanError, "unit 'euler': steps = 0"),
        ({"dtype": "int8"}, InputError, "open_engine: dtype = 'int8'"),
        ({"device": "gpu"}, InputError, "there is no device 'gpu' here"),
    ],
)
def test_what_cannot_be_opened_is_one_line(arguments: dict[str, Any], error: type[OmniError], message: str) -> None:
    with pytest.raises(error) as caught:
        open_engine(**arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_plugin_that_is_left_out_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Plugins.registry

    def failing(self: Plugins, *tables: Any) -> Any:
        self.failures.append(Failure("sparkle", "it is broken"))
        return registry(self, *tables)

    monkeypatch.setattr(Plugins, "registry", failing)
    with caplog.at_level(logging.WARNING):
        open_engine()
    assert "plugin 'sparkle': it is broken" in caplog.text
