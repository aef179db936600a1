from __future__ import annotations

from pathlib import Path

import pytest

from omniavatar.checkpoints.tables import read_table
from omniavatar.errors import CheckpointError
from tests.checkpoints.tiny import write_table

HASH = "0" * 32


def test_a_row(tmp_path: Path) -> None:
    (row,) = read_table(write_table(tmp_path / "t.toml", note="hello"))
    assert (row.name, row.note) == ("tiny", "hello")
    assert row.components["dit"].config["num_layers"] == 6


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("= =", "cannot be read"),
        ("title = 'x'", "must consist of"),
        ("[[checkpoint]]\nname = 'x'", "row 'x': components"),
        (f"[[checkpoint]]\nname = 'x'\nhash = '{HASH}'\nhsah = 1\n[checkpoint.components.dit]", "hsah: Extra inputs"),
        ("[[checkpoint]]\nname = 'x'\nhash = 'xyz'\n[checkpoint.components.dit]", "hash: String should match"),
        ("[[checkpoint]]\nname = 'x'\n[checkpoint.components.dit]", "exactly one of"),
        (f"[[checkpoint]]\nname = 'x'\nhash = '{HASH}'\nmatch = ['a']\n[checkpoint.components.dit]", "exactly one of"),
        (
            f"[[checkpoint]]\nname = 'x'\nhash = '{HASH}'\n[checkpoint.components.dit]\n"
            "overlay = true\nnetwork = 'a:B'",
            "leave out 'network'",
        ),
        (
            f"[[checkpoint]]\nname = 'x'\nhash = '{HASH}'\n[checkpoint.components.dit]\n"
            "rename = [{ file = 'a.*', network = 'a' }]",
            "both sides",
        ),
    ],
)
def test_faults_are_one_line_with_table_and_row(tmp_path: Path, text: str, reason: str) -> None:
    table = tmp_path / "t.toml"
    table.write_text(text)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_table(table)
    assert str(table) in str(caught.value)
    assert "\n" not in str(caught.value)
