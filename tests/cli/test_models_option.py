"""`omni run --models FOLDER`: the models are found wherever they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from omniavatar.checkpoints import Registry
from omniavatar.opening import open_engine
from omniavatar.testing.tiny import FILES, tiny_file
from tests.cli.conftest import SMALL, Omni


@pytest.fixture
def scattered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny avatar's files in folders and under names of their own, and a configuration that says what it needs."""
    monkeypatch.setattr("omniavatar.locating.hub_cache", lambda: folder / "hub")
    monkeypatch.delenv("OMNI_MODELS", raising=False)
    lines = ["units: default", "models_dir: nowhere", "models:"]
    for number, name in enumerate(FILES):
        source = Path(tiny_file(name))
        rows = ", ".join({found.row.name for found in Registry.builtin().detect_all(source)})
        target = folder / "mine" / f"kind{number}" / f"x{number}{source.suffix}"
        target.parent.mkdir(parents=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
            for one in source.parent.iterdir():
                if not (target.parent / one.name).exists() and not one.name.endswith(".safetensors"):
                    (target.parent / one.name).symlink_to(one)
        lines.append(f"  - {{path: 'some/{name}', serves: {{rows: [{rows}]}}}}")
    (folder / "my.yaml").write_text("\n".join(lines))
    return folder / "mine"


def test_run_with_models_that_lie_anywhere(omni: Omni, scattered: Path) -> None:
    missing = omni("run", "--config", "my.yaml", *SMALL, "-o", "a.mp4")
    assert missing.code == 2
    assert f"model files are missing; looked in {scattered.parent / 'nowhere'} for" in missing.err
    done = omni("run", "--config", "my.yaml", "--models", "mine", *SMALL, "-o", "a.mp4")
    assert done.code == 0, done.err
    assert "kind0" in done.err
    assert "is used as some/" in done.err


def test_open_engine_takes_several_folders(scattered: Path) -> None:
    engine = open_engine("my.yaml", models_dir=["nowhere", scattered])
    assert "dit" in engine.models.roles  # type: ignore[attr-defined]
