"""Blocks come from their files, with LoRA merged on the way, and make the same video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.checkpoints import Bundle, Registry
from omniavatar.engine.engine import Engine
from omniavatar.engine.placing import Kept
from omniavatar.engine.plan import Plan, build_plan
from omniavatar.engine.scopes import Request
from omniavatar.models.streaming import ReadBlocks
from omniavatar.testing import GivenLora
from omniavatar.testing.tiny import write_original
from omniavatar.units import DiskOffload
from tests.scenes import Frames
from tests.training.scenes import SETTINGS, catalog

SMALL = {**SETTINGS, "schedule": {"steps": 2}, "fixed-frames": {"window_frames": 9, "overlap": 5}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of files as they are published: shards, pickled ones, LoRA."""
    folder = tmp_path_factory.mktemp("models")
    write_original(folder)
    return folder


def opened(folder: Path) -> Bundle:
    names = ["Wan2.1-T2V-tiny/diffusion_pytorch_model-*.safetensors", "Wan2.1-T2V-tiny/*.pth"]
    return Bundle.open([folder / name for name in (*names, "OmniAvatar-tiny", "wav2vec2-tiny")], Registry.builtin())


def play(folder: Path, expression: str, dtype: torch.dtype) -> tuple[Tensor, Engine]:
    watch = Frames()
    plan = build_plan(expression, catalog(), SMALL)
    engine = Engine(plan, opened(folder), dtype=dtype, observers=[watch])
    engine.generate(Request({"prompt": "hi"}, seconds=0.36))
    return torch.cat(watch.seen, dim=2), engine


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_changes_no_bit(folder: Path, dtype: torch.dtype) -> None:
    plain, _ = play(folder, "default-write-video", dtype)
    read, engine = play(folder, "default-write-video+disk-offload", dtype)
    assert torch.equal(read, plain)
    source = engine.model("dit").blocks[0].stream.source
    assert isinstance(source, ReadBlocks)
    without, _ = play(folder, "default-write-video-lora+disk-offload", dtype)
    assert not torch.equal(read, without), "LoRA has been merged"
    assert torch.equal(play(folder, "default-write-video+offload", dtype)[0], plain)


def test_blocks_are_not_loaded_before_they_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[set[str]] = []
    read_into = Bundle.read_into

    def noting(models: Bundle, role: str, targets: dict[str, Tensor], *rest: Any) -> None:
        names.append({name.partition(".self_attn")[0] for name in targets if ".self_attn.q.weight" in name})
        read_into(models, role, targets, *rest)

    monkeypatch.setattr(Bundle, "read_into", noting)
    engine = Engine(build_plan("default-write-video+disk-offload", catalog(), SMALL), opened(folder))
    dit = engine.model("dit")
    assert all(weight.is_meta for weight in dit.blocks.parameters())
    engine.set_up()
    assert not names
    engine.generate(Request({"prompt": "hi"}, seconds=0.36))
    of_transformer = [block for (block,) in filter(None, names)]
    assert of_transformer[:8] == [f"blocks.{index % 6}" for index in range(8)]


def test_several_loras_on_one_layer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lora(seed: int) -> GivenLora:
        torch.manual_seed(seed)
        layer = "blocks.1.ffn.0"
        halves = (("lora_A", torch.randn(2, 96)), ("lora_B", torch.randn(256, 2)))
        return GivenLora({f"{layer}.{name}.weight": value for name, value in halves}, f"lora{seed}", alpha=1.0)

    def adapters(models: Any) -> Sequence[Any]:
        return [lora(1), lora(2)]

    monkeypatch.setattr(Bundle, "adapters", adapters)
    expression = "default-write-video+lora(scale=0.5)"
    plain, _ = play(folder, expression, torch.bfloat16)
    assert torch.equal(play(folder, f"{expression}+disk-offload", torch.bfloat16)[0], plain)


def test_what_estimates_are_told() -> None:
    assert DiskOffload().keeps("dit", 40, Plan()) == Kept(on_device=2, in_host=2, copied=40)
