"""What `omni calibrate` fits: curves that are known are found again, and tables are read back."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omniavatar.calibration import Change, Fit, Recorder, calibrated, fit_magcache, fit_teacache, table
from omniavatar.checkpoints import Bundle, Registry
from omniavatar.engine.plan import Catalog
from omniavatar.engine.scopes import Forward, Request
from omniavatar.errors import CheckpointError, InputError
from omniavatar.hookspecs import hookimpl
from omniavatar.resources import registry_tables
from omniavatar.testing.tiny import FILES, tiny_file
from omniavatar.units.teacache import modulations, polynomial, relative_changes
from tests.scenes import tiny_engine


def change(
    step: int = 1, count: int = 3, modulation: float = 0.0, output: float = 0.0, magnitude: float = 1.0
) -> Change:
    return Change(step, count, modulation, output, magnitude)


def test_a_polynomial_is_found_again() -> None:
    curve = (-300.0, 50.0, -2.6, 0.6, 0.01)
    xs = [0.02 + 0.005 * index for index in range(12)]
    fit = fit_teacache([change(modulation=x, output=polynomial(curve, x)) for x in xs for _ in range(3)])
    assert list(fit.settings["coefficients"]) == pytest.approx(curve, rel=1e-4)
    assert "root mean square error of 0.0000 (R2 1.000)" in fit.error


def test_noise_is_averaged_and_stated() -> None:
    xs = [0.02 + 0.005 * index for index in range(12)]
    fit = fit_teacache([change(modulation=x, output=2 * x + off) for x in xs for off in (-0.01, 0.01)])
    assert polynomial(tuple(fit.settings["coefficients"]), 0.05) == pytest.approx(0.1, abs=1e-6)
    assert "error of 0.0100" in fit.error


@pytest.mark.parametrize("count", [0, 1, 4])
def test_too_few_steps_for_a_polynomial(count: int) -> None:
    with pytest.raises(InputError, match=f"{count + 1} steps are too few .* take 6 or more"):
        fit_teacache([change(modulation=0.1 * index) for index in range(count)])


def test_ratios_are_means_by_step() -> None:
    """Step 2 has no ratio, since another network begins there."""
    measured = [(1, 1.2), (1, 1.4), (3, 0.5), (3, 0.7)]
    fit = fit_magcache([change(step, 4, magnitude=value) for step, value in measured])
    assert fit.settings == {"ratios": [1.0, 1.3, 1.0, 0.6]}
    assert "off by 0.1000 at most" in fit.error


def test_one_step_has_no_ratio() -> None:
    with pytest.raises(InputError, match="a video of 1 step has nothing to compare with"):
        fit_magcache([])


class Calls:
    """What every call of the positive branch adds to its tokens and predicts."""

    def __init__(self) -> None:
        self.added: list[Tensor] = []
        self.outputs: list[Tensor] = []

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.before = forward.x

    @hookimpl(tryfirst=True)
    def unembed(self, forward: Forward) -> None:
        self.added.append(forward.x - self.before)

    @hookimpl(specname="call", wrapper=True)
    def keep(self, forward: Forward) -> Generator[None, Tensor, Tensor]:
        output = yield
        self.outputs.append(output)
        return output


def test_what_is_recorded(tiny_models: Bundle, catalog: Catalog, portrait: Path, speech: Path) -> None:
    calls, recorder = Calls(), Recorder()
    settings = {"schedule": {"steps": 4}, "guidance": {"scale": 1.0}}
    engine = tiny_engine(tiny_models, catalog, "default-write-video", observers=[calls, recorder], **settings)
    engine.generate(Request(inputs={"image": portrait, "audio": speech}, seconds=0.24))
    assert [found.step for found in recorder.changes] == [1, 2, 3]
    for index, found in enumerate(recorder.changes):
        last, now = calls.outputs[index : index + 2]
        assert found.output == pytest.approx(float((now - last).abs().sum() / last.abs().sum()), rel=1e-4)
        before, after = (added.square().sum(-1).sqrt() for added in calls.added[index : index + 2])
        assert found.magnitude == pytest.approx(float((after / before).mean()), rel=1e-4)
    assert all(found.modulation > 0 for found in recorder.changes)


def test_a_table_is_read_for_its_checkpoint_only(tmp_path: Path, tiny_models: Bundle) -> None:
    path = tmp_path / "tuned.toml"
    path.write_text(table(Fit({"ratios": [1.0, 0.5]}, "found well"), calibrated(tiny_models), "magcache", ["2 videos"]))
    assert "# 2 videos\n# found well\n" in path.read_text()
    registry = Registry.builtin([path])
    tuned = Bundle.open([str(tiny_file(name)) for name in FILES], registry).settings()
    assert tuned.pop("magcache") == {"ratios": [1.0, 0.5]}
    assert tuned == tiny_models.settings()
    assert "magcache" not in registry.detect(tiny_file("vae.safetensors")).row.settings


def test_later_tables_are_stronger(tmp_path: Path, tiny_models: Bundle) -> None:
    paths = []
    tables: dict[str, dict[str, list[float]]] = {"a": {"ratios": [1.0]}, "b": {"ratios": [0.9], "threshold": [2]}}
    for name, settings in tables.items():
        paths.append(tmp_path / name)
        paths[-1].write_text(table(Fit(settings, ""), calibrated(tiny_models), "magcache", []))
    row = Registry([*registry_tables(), *paths]).detect(tiny_file("transformer.safetensors")).row
    assert row.settings["magcache"] == {"ratios": [0.9], "threshold": [2]}
    assert row.settings["schedule"] == {"steps": 10}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[tuned]]\nname='x'\nhash='0'\n[tuned.settings]\na.b=1", "row 'x': hash: "),
        (f"[[tuned]]\nname='x'\nhash='{'0' * 32}'", "row 'x': settings: "),
        ("[[tuned]]\n[[other]]", "must consist of"),
        ("tuned = 1", "must consist of"),
    ],
)
def test_bad_tables(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Registry([path])


def test_the_modulation_is_what_teacache_looks_at(tiny_models: Bundle, catalog: Catalog) -> None:
    """All steps at once give what single calls give."""
    engine = tiny_engine(tiny_models, catalog, "default-write-video")
    network = engine.model("dit")
    times = torch.tensor([900.0, 700.0, 200.0], dtype=torch.float64)
    single = relative_changes([network.embed_time(time[None])[1].float() for time in times])

    class At:
        def __init__(self, timestep: float) -> None:
            self.timestep, self.network, self.engine = timestep, network, engine

    with torch.inference_mode():
        together = relative_changes(modulations([At(float(time)) for time in times]))  # type: ignore[misc]
    assert together == pytest.approx(single, rel=1e-5)
