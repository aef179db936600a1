"""Decoding: frames in [0, 1], in the type of the networks, by tiles if it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.scopes import Job, Window
from omniavatar.engine.windows import Span
from omniavatar.errors import PlanError
from omniavatar.models.tiling import DECODE_TILING
from omniavatar.testing import FakeVAE
from omniavatar.units import VaeDecode
from tests.scenes import fake_engine, fake_models, request


class Listening(FakeVAE):
    """Keeps how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.options: dict[str, Any] = {}
        self.dtype = torch.float64

    def decode(self, latents: Tensor, **options: object) -> Tensor:
        self.options, self.dtype = options, latents.dtype
        return super().decode(latents)


def decoded(vae: FakeVAE, dtype: torch.dtype = torch.float32, **settings: Any) -> Tensor:
    engine = fake_engine([], models=fake_models(vae=vae), dtype=dtype)
    window = Window(Job(engine, request(), {}), 0, Span(0, 9, 0, 0, 9), None)
    window.latents = torch.tensor([-3.0, 0.0, 0.5]).view(1, 1, 3, 1, 1).expand(1, 4, 3, 2, 2)
    VaeDecode(**settings).end_window(window)
    frames: Tensor = window["frames"]
    return frames


def test_frames_lie_between_0_and_1() -> None:
    frames = decoded(FakeVAE())
    assert frames.shape == (1, 3, 9, 16, 16)
    assert frames[0, 0, :, 0, 0].tolist() == [0.0, 0.5, 0.5, 0.5, 0.5, 0.75, 0.75, 0.75, 0.75]


def test_the_vae_gets_its_own_type_and_frames_are_float32() -> None:
    vae = Listening()
    assert decoded(vae, torch.bfloat16).dtype == torch.float32
    assert vae.dtype == torch.bfloat16


def test_settings_reach_the_vae() -> None:
    vae = Listening()
    decoded(vae)
    assert vae.options == {"tiling": None, "latents_per_pass": 4}
    decoded(vae, tiled=True, latents_per_pass=1)
    assert vae.options == {"tiling": DECODE_TILING, "latents_per_pass": 1}


def test_settings_are_checked(catalog: Catalog) -> None:
    with pytest.raises(PlanError, match="unit 'vae-decode': latents_per_pass = 0"):
        build_plan("vae-decode(latents_per_pass=0)", catalog)


def test_what_takes_less_memory() -> None:
    remedies = [
        dict(VaeDecode(**settings).smaller("decode", None))
        for settings in ({}, {"latents_per_pass": 1}, {"tiled": True}, {"tiled": True, "latents_per_pass": 1})
    ]
    assert remedies == [{"latents_per_pass": 1}, {"tiled": True}, {"latents_per_pass": 1}, {}]
