from __future__ import annotations

import sys
from pathlib import Path

import pytest

from omniavatar.checkpoints.loading import import_network
from omniavatar.checkpoints.tables import check_network, network_modules, read_table
from omniavatar.errors import CheckpointError
from omniavatar.opening import open_engine
from omniavatar.plugins import discover
from tests.checkpoints.tiny import write_base, write_table

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
            "overlay = true\nnetwork = 'a:B'\nloader = 'folder'",
            "leave out 'loader'",
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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 50_000, "maximum recursion depth"),
        ("a = " + "[" * 300 + "]" * 300, "more than 40 lists or tables"),
        ("[[checkpoint]]\nname = 'x'\nnum_keys = " + "9" * 5_000, "Exceeds the limit"),
        ("[[checkpoint]]\nname = 'x'\nnum_keys = " + "9" * 100, "a number is too large"),
    ],
)
def test_tables_without_end_are_one_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_table(tmp_path / "t.toml")
    assert "\n" not in str(caught.value)


# A table that is given by hand is data


BY_HAND = """
[[checkpoint]]
name = "x"
hash = "{hash}"
[checkpoint.components.dit]
network = "{network}"
[checkpoint.components.dit.config]
args = ["touch", "PWNED"]
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `trap` that leaves a mark when it is imported."""
    mark = tmp_path / "mark"
    (tmp_path / "trap.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Net: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "trap", raising=False)
    return mark


@pytest.mark.parametrize("network", ["trap:Net", "os:system", "subprocess:check_output", "torch.nn:Linear"])
def test_a_table_given_by_hand_names_no_code(tmp_path: Path, trap: Path, network: str) -> None:
    table = tmp_path / "evil.toml"
    table.write_text(BY_HAND.format(hash=HASH, network=network))
    module = network.partition(":")[0]
    with pytest.raises(CheckpointError) as caught:
        discover().registry([table])
    assert str(caught.value) == (
        f"checkpoint table {table}, row 'x': components.dit.network = '{network}': only packages that are installed "
        f"can name code, and none names a network of '{module}'; install the package that brings it"
    )
    assert not trap.exists()
    with pytest.raises(CheckpointError):
        open_engine(tables=[table])
    with pytest.raises(CheckpointError):
        open_engine({"models_dir": "package:assets/tiny", "models": ["vae.safetensors"], "tables": [str(table)]})
    assert not trap.exists()


def test_a_table_given_by_hand_may_name_networks_of_packages(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.toml")
    assert "tiny" in {row.name for row in discover().registry([table]).rows}


def test_networks_are_modules(tmp_path: Path) -> None:
    for path in ("os:system", "subprocess:Popen", "omniavatar.models.wan_dit:torch", "torch.nn.functional:linear"):
        with pytest.raises(CheckpointError, match=f"the network {path} is no class derived from torch.nn.Module"):
            import_network(path)
    (tmp_path / "broken.py").write_text("1 / 0")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(CheckpointError, match="the network broken:Net cannot be imported"):
            import_network("broken:Net")
    finally:
        sys.path.remove(str(tmp_path))


def test_every_network_of_the_installed_tables_is_one() -> None:
    rows = discover().registry().rows
    for network in {spec.network for row in rows for spec in row.components.values() if spec.network}:
        import_network(network)


def test_training_configurations_name_no_code_either(tmp_path: Path, trap: Path) -> None:
    modules = network_modules(discover().registry().rows)
    check_network("omniavatar.models.audio_adapter:AudioAdapter", modules, "start.audio_adapter.network")
    check_network(None, modules, "start.dit.network")
    with pytest.raises(CheckpointError, match=r"start.dit.network = 'trap:Net': only packages that are installed can"):
        check_network("trap:Net", modules, "start.dit.network")
    assert not trap.exists()


def test_formulas_are_about_numbers(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.toml")
    text = table.read_text().replace("num_layers = 6", "num_layers = \"= 'a' * 99999999999\"")
    table.write_text(text)
    state = write_base(tmp_path)
    with pytest.raises(CheckpointError, match="is about other things than numbers"):
        discover().registry([table]).detect(state)
