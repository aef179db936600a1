"""The door of weight formats: which one a file is of, and a format from outside that is used like the built-in ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Registry, read_header
from omniavatar.checkpoints.formats import BUILTIN, FileHeader, Format, Formats, PackedTensor, TensorInfo
from omniavatar.checkpoints.loading import load_network
from omniavatar.errors import CheckpointError
from omniavatar.resources import registry_tables
from tests.checkpoints.tiny import dit_state, write_safetensors, write_table

PUBLIC = Path(__file__).parents[2] / "formats" / "public"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("gguf_named.safetensors", "is a GGUF file by its content; install omniavatar-gguf, .* end in .gguf"),
        ("gguf_control.gguf", "is a GGUF file by its content; install omniavatar-gguf"),
        ("safetensors_named.gguf", "is not a GGUF file, as its name says: its content is safetensors"),
        ("page.safetensors", "is a web page, not a model"),
        ("pointer.gguf", "is a Git LFS pointer"),
        ("evil.pth", "holds more than tensors"),
        ("evil_lora.bin", "holds more than tensors"),
    ],
)
def test_the_content_decides_and_the_name_must_agree(file: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        read_header([PUBLIC / "broken" / file])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.sft", "a.SafeTensors", "0123abcd"])
def test_a_name_without_a_known_ending_is_fine(tmp_path: Path, name: str) -> None:
    file = write_safetensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}).rename(tmp_path / name)
    assert read_header([file]).tensors["a"].shape == (2,)


def test_torch_files_named_otherwise_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    shutil.copy(tmp_path / "a.pt", tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="its content is pickle; rename it to end in"):
        read_header([tmp_path / "a.safetensors"])


class Halves(PackedTensor):
    """A weight that is kept in eighths."""

    def dense(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Tensor:
        return (self.parts["eighths"].to(device).float() / 8).to(dtype or torch.float32)


class Lines(Format):
    """A line of JSON with shapes, then the same names with numbers in eighths."""

    name, suffixes, magic = "lines", (".lines",), b"LINES"

    def read_header(self, file: Path) -> FileHeader:
        shapes = {name: tuple(shape) for name, shape in json.loads(file.read_text().split("\n")[1]).items()}
        infos = {name: TensorInfo(name, shape, "eighths", file, "lines", 1) for name, shape in shapes.items()}
        return FileHeader(infos, dict(shapes), {"by": "hand"})

    def read(self, file: Path, names: Iterable[str], device: torch.device | str) -> Iterator[tuple[str, Halves]]:
        values = json.loads(file.read_text().split("\n")[2])
        for name in names:
            numbers = torch.tensor(values[name], dtype=torch.int8, device=device)
            yield name, Halves(tuple(numbers.shape), {"eighths": numbers})

    @staticmethod
    def write(file: Path, state: dict[str, Tensor]) -> Path:
        shapes = json.dumps({name: list(tensor.shape) for name, tensor in state.items()})
        numbers = json.dumps({name: (tensor * 8).int().tolist() for name, tensor in state.items()})
        file.write_text(f"LINES\n{shapes}\n{numbers}")
        return file


def test_a_format_from_outside_is_read_like_any_other(tmp_path: Path) -> None:
    state = {name: (tensor * 8).round().clamp(-128, 127) / 8 for name, tensor in dit_state().items()}
    Lines.write(tmp_path / "dit.lines", state)
    registry = Registry([*registry_tables(), write_table(tmp_path / "t.toml")], formats=Formats([*BUILTIN, Lines()]))
    for source in (tmp_path, tmp_path / "dit.lines"):
        found = registry.detect(source)
        assert found.header.metadata == {"by": "hand"}
        assert found.header.num_params == sum(tensor.numel() for tensor in state.values())
        network = load_network(found.components, dtype=torch.bfloat16)
        for name, tensor in found.components[0].state().items():
            assert torch.equal(tensor, state[name]), name
        assert network.get_parameter("blocks.0.norm3.weight").dtype == torch.bfloat16
    (tmp_path / "dit.lines").write_text("LINES\nnothing")
    with pytest.raises(CheckpointError, match="cannot be examined"):
        registry.detect(tmp_path / "dit.lines")
    with pytest.raises(CheckpointError, match="known endings"):
        read_header([tmp_path / "dit.lines"])
