"""`omni run` with the published configurations and no weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.conftest import Omni


@pytest.mark.parametrize(
    ("name", "count", "commands"),
    [
        ("omniavatar-14b", 12, ["Wan-AI/Wan2.1-T2V-14B", "OmniAvatar/OmniAvatar-14B"]),
        ("omniavatar-1.3b", 7, ["Wan-AI/Wan2.1-T2V-1.3B", "OmniAvatar/OmniAvatar-1.3B"]),
    ],
)
def test_run_says_what_is_missing_of_a_published_model(
    omni: Omni, folder: Path, name: str, count: int, commands: list[str]
) -> None:
    outcome = omni("run", "--config", f"configs/{name}.yaml")
    assert (outcome.code, outcome.out) == (2, "")
    lines = outcome.err.splitlines()
    assert lines[0].startswith(f"omni: {count} model files are missing; looked in {folder}/pretrained_models")
    assert "  Wan2.1-T2V-" in lines[1]
    assert any(line.endswith("google/umt5-xxl") for line in lines)
    for repo in commands:
        target = f"pretrained_models/{repo.partition('/')[2]}"
        assert any(re.fullmatch(f"  hf download {repo}( .*)? --local-dir {target}", line) for line in lines)
    assert f"  omni models download configs/{name}.yaml" in lines
    assert not list(folder.iterdir())
    assert omni("run", "--config", name).err == outcome.err.replace(f"configs/{name}.yaml", name)
    assert omni("run", "--config", name, "--help").code == 0
