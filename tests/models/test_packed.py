"""Layers with packed weights: every linear layer of the networks may be one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.engine.scopes import Request
from omniavatar.models.fp8 import Fp8Weight
from omniavatar.models.packed import PackedLinear
from omniavatar.testing.tiny import TinyModels
from tests.scenes import Frames
from tests.training.scenes import SETTINGS, catalog

ROLES = ("dit", "audio_adapter", "text_encoder", "audio_encoder")


def linears(network: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Those that are not parts of a layer that uses their weights in its own way."""
    return [(name, layer) for name, layer in network.named_modules() if type(layer) is nn.Linear]


def video(models: TinyModels) -> Tensor:
    """The frames of a short video with a sound."""
    watch = Frames()
    settings = {**SETTINGS, "schedule": {"steps": 2}}
    engine = Engine(build_plan("default-write-video", catalog(), settings), models, observers=[watch])
    wave = np.sin(np.arange(4800) / 9).astype(np.float32) / 3
    engine.generate(Request({"prompt": "hi", "audio": (wave, 16000)}, seconds=0.2))
    return torch.cat(watch.seen, dim=2)


@pytest.mark.parametrize("role", ROLES)
def test_a_network_whose_linear_layers_are_all_packed_makes_the_video_of_the_rounded_weights(role: str) -> None:
    packed, rounded = TinyModels(), TinyModels()
    for name, layer in linears(packed.networks[role]):
        packed.networks[role].set_submodule(name, PackedLinear(Fp8Weight.of(layer.weight, "tensor"), layer.bias))
    for _, layer in linears(rounded.networks[role]):
        layer.weight.copy_(Fp8Weight.of(layer.weight, "tensor").dense())
    assert any(isinstance(layer, PackedLinear) for layer in packed.networks[role].modules())
    torch.testing.assert_close(video(packed), video(rounded), atol=1e-5, rtol=0)
