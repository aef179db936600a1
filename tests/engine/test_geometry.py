"""Networks of another shape than Wan's make whole videos: the engine and its units take their numbers from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from einops import reduce, repeat
from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.geometry import Geometry
from omniavatar.engine.plan import build_plan
from omniavatar.engine.scopes import Request, Window
from omniavatar.errors import InputError, OmniError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing.tiny import DIT, TinyModels
from tests.models.networks import randomized
from tests.training.scenes import SETTINGS, catalog

CHANNELS, FRAMES, PIXELS = 6, 8, 4
PLAN = "prompt+reference-image+fixed-frames+guidance+euler+transformer+vae-decode+smooth-borders"
WINDOWS = {"window_frames": 25, "overlap": 9}


class Brightness(nn.Module):
    """A VAE of 8 frames and 4x4 pixels a latent with 6 channels: the brightness of the last of the frames."""

    def __init__(self) -> None:
        super().__init__()
        self.z_dim, self.temporal_factor, self.spatial_factor = CHANNELS, FRAMES, PIXELS

    def encode(self, video: Tensor, **options: object) -> Tensor:
        """(b 3 8k+1 4h 4w) -> (b 6 k+1 h w)."""
        assert video.shape[2] % FRAMES == 1
        grey = reduce(video[:, :, ::FRAMES], "b c t (h p) (w q) -> b 1 t h w", "mean", p=PIXELS, q=PIXELS)
        return repeat(grey, "b 1 t h w -> b c t h w", c=CHANNELS)

    def decode_frames(self, latents: Tensor, latents_per_pass: int = 1) -> Any:
        """(b 6 k+1 h w) -> (b 3 8k+1 4h 4w) in [-1, 1], by latent frames."""
        video = repeat(latents.mean(dim=1), "b t h w -> b c (t f) (h p) (w q)", c=3, f=FRAMES, p=PIXELS, q=PIXELS)
        yield from video[:, :, FRAMES - 1 :].clamp(-1, 1).split(FRAMES * latents_per_pass, dim=2)


class Spans:
    """The windows of a video and the shapes of their latents."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, tuple[int, ...]]] = []

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        self.seen.append((window.span.frames, window.span.given, tuple(window.latents.shape[1:])))


def networks(vae: nn.Module, channels: int, patch: tuple[int, int, int]) -> TinyModels:
    """The test networks with another VAE and a transformer for its latents: picture, mask and noise."""
    dit = randomized(WanDiT(**{**DIT, "in_dim": 2 * channels + 1, "out_dim": channels, "patch_size": patch}))
    return TinyModels(dit=dit, vae=vae)


def made(models: TinyModels, settings: dict[str, Any], plan: str = PLAN, **request: Any) -> tuple[Any, Spans]:
    """A video, and its windows."""
    spans = Spans()
    merged = {
        "prompt": SETTINGS["prompt"],
        "reference-image": {"sizes": [[24, 12]]},
        "euler": {"steps": 2},
        "fixed-frames": WINDOWS,
        **settings,
    }
    with Engine(build_plan(plan, catalog(), merged), models, observers=[spans]) as engine:
        result = engine.generate(Request({"prompt": "hi", "image": np.full((40, 24, 3), 128, np.uint8)}, **request))
    return result, spans


def test_a_long_video_of_another_vae_and_patch() -> None:
    """Windows of 25 frames are 4 latent frames; 40 frames take two, of which the second stops with the video."""
    models = networks(Brightness(), CHANNELS, (1, 1, 3))
    result, spans = made(models, {}, seconds=1.6)
    assert (result.frames, result.size) == (40, (24, 12))
    assert spans.seen == [(25, 1, (CHANNELS, 4, 6, 3)), (25, 9, (CHANNELS, 4, 6, 3))]


def test_tokens_of_several_latent_frames() -> None:
    models = networks(Brightness(), CHANNELS, (2, 1, 1))
    result, spans = made(models, {}, seconds=1.12)
    assert result.frames == 28
    assert spans.seen == [(25, 1, (CHANNELS, 4, 6, 3)), (25, 9, (CHANNELS, 4, 6, 3))], "28 - 16 frames fill 2 tokens"


def test_the_length_of_a_window_comes_from_the_networks() -> None:
    """A token is 8 frames of 4x12 pixels, 80 of them the pixels of 106 frames, of which 105 fill theirs."""
    models = networks(Brightness(), CHANNELS, (1, 1, 3))
    _, spans = made(models, {"fixed-frames": {"max_tokens": 80, "overlap": 9}}, seconds=4.2)
    assert spans.seen[0] == (105, 1, (CHANNELS, 14, 6, 3))


def test_without_windows_the_video_fills_its_latents() -> None:
    models = networks(Brightness(), CHANNELS, (1, 1, 1))
    result, spans = made(models, {}, plan=PLAN.replace("+fixed-frames", ""), seconds=0.48)
    assert result.frames == 12
    assert spans.seen == [(17, 0, (CHANNELS, 3, 6, 3))]


@pytest.mark.parametrize(
    ("settings", "request_", "kind", "reason"),
    [
        ({"fixed-frames": {"window_frames": 25, "overlap": 5}}, {}, PlanError, "overlap of 5 frames is not 8n"),
        ({"fixed-frames": {"window_frames": 21, "overlap": 9}}, {}, PlanError, "window length of 21 frames is not 8n"),
        ({}, {"height": 24, "width": 16}, InputError, "the size 16x24 is not made of positive multiples of 12"),
        (
            {"reference-image": {"sizes": [[24, 20]]}},
            {},
            PlanError,
            r"\[24, 20\] is not made of .* multiples of 12",
        ),
    ],
)
@pytest.mark.usefixtures("only_headers")
def test_what_the_networks_cannot_make_is_refused_before_loading(
    settings: dict[str, Any], request_: dict[str, Any], kind: type[OmniError], reason: str
) -> None:
    models = networks(Brightness(), CHANNELS, (1, 1, 3))
    sizes = {"reference-image": {"sizes": [[24, 12]]}}
    with pytest.raises(kind, match=reason):
        made(models, {**sizes, **settings}, seconds=1.0, **request_)


def test_what_the_engine_knows() -> None:
    engine = Engine(build_plan("vae-decode+transformer+prompt", catalog()), networks(Brightness(), CHANNELS, (1, 1, 3)))
    assert engine.geometry == Geometry(CHANNELS, FRAMES, PIXELS, (1, 1, 3))
    assert engine.foreseen("nobody", "z_dim") is None
