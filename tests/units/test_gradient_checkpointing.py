"""Gradient checkpointing: blocks run twice, and no network is loaded for it that the step does not need."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from omniavatar.engine.engine import Engine
from omniavatar.models.wan_dit import BlockInputs
from omniavatar.testing.tiny import TinyModels
from tests.training.scenes import diffusion, plan


def test_only_networks_of_the_step_are_loaded(tmp_path: Path) -> None:
    """The text encoder and the VAE have blocks too, and are not wanted beside prepared samples."""
    run = diffusion(tmp_path, expression="default+gradient-checkpointing", train={"weights": ["audio_adapter.*"]})
    assert set(run.task(cast(Any, None)).engine.networks) == {"dit", "audio_adapter"}


def test_blocks_run_again_on_the_way_back() -> None:
    models = TinyModels()
    for _ in range(2):  # the second engine finds the blocks of the first
        engine = Engine(plan("default+gradient-checkpointing"), models)
        engine.set_up()
    dit = engine.model("dit").requires_grad_(True)
    block, calls = dit.blocks[0], []
    block.norm1.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    x = torch.randn(1, 4, dit.dim, requires_grad=True)
    output = block(
        x, BlockInputs(torch.randn(1, 6, dit.dim), dit.rope((1, 2, 2)), {"text": torch.randn(1, 3, dit.dim)})
    )
    assert len(calls) == 1
    output.sum().backward()
    assert len(calls) == 2
