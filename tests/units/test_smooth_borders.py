"""The difference that a border makes is put back and faded out; everything else stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from omniavatar.engine.scopes import Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.units import SmoothBorders
from tests.scenes import Scene, denoising_units, fake_engine, request


class Shown(PipelineUnit):
    """Frames of a grey that falls with each window, as if the VAE made everything darker."""

    name = "shown"
    provides = ("frames",)

    @hookimpl
    def end_window(self, window: Window) -> None:
        window["frames"] = torch.full((1, 3, window.span.frames, *window.job.size), 0.8 - 0.1 * window.index)


class Seen:
    """What the windows show, and what the next ones continue from."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []
        self.given: list[int] = []

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        self.shown.append(window["output_frames"][0, 0, :, 0, 0])
        self.given.append(window.span.given)
        assert window["frames"].unique().numel() == 1, "what the next window continues from stays as it is"


def shown(fade: int) -> Seen:
    seen = Seen()
    units = [Scene(), *denoising_units(), Shown(), SmoothBorders(fade=fade)]
    fake_engine([unit for unit in units if unit.name != "vae-decode"], observers=[seen]).generate(request(0.48))
    return seen


def test_the_difference_fades_out() -> None:
    seen = shown(fade=3)
    assert len(seen.shown) == 2
    torch.testing.assert_close(seen.shown[0], torch.full_like(seen.shown[0], 0.8))
    given = seen.given[1]
    later = seen.shown[1]
    torch.testing.assert_close(later[:given], torch.full((given,), 0.7))
    torch.testing.assert_close(later[given : given + 3], torch.tensor([0.775, 0.75, 0.725]))
    torch.testing.assert_close(later[given + 3 :], torch.full_like(later[given + 3 :], 0.7))
