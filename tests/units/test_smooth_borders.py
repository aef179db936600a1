"""What a border makes is put back and faded out; motion and everything else stay as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from omniavatar.engine.scopes import Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.units import SmoothBorders
from tests.scenes import Scene, denoising_units, fake_engine, request


class Shown(PipelineUnit):
    """Frames of one grey each: `grey` says it by the window's number and the frames' places behind the given ones."""

    name = "shown"
    provides = ("frames",)

    def __init__(self, grey: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.grey = grey

    @hookimpl
    def end_window(self, window: Window) -> None:
        place = torch.arange(window.span.frames) - window.span.given
        greys = self.grey(window.index, place).float()
        window["frames"] = greys.view(1, 1, -1, 1, 1).expand(1, 3, -1, *window.job.size)


class Seen:
    """What the windows show."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []
        self.new: list[Tensor] = []

    @hookimpl(trylast=True)
    def end_window(self, window: Window) -> None:
        frames = window["output_frames"]
        assert torch.allclose(frames, frames[:, :1, :, :1, :1].expand_as(frames), atol=1e-6)
        self.shown.append(frames[0, 0, :, 0, 0])
        self.new.append(self.shown[-1][window.span.given :])
        assert window["frames"][0, 0, :, 0, 0].equal(window["frames"][0, 2, :, -1, -1])


def shown(unit: SmoothBorders, grey: Callable[[int, Tensor], Tensor]) -> Seen:
    seen = Seen()
    units = [Scene(), *denoising_units(), Shown(grey), unit]
    fake_engine([unit for unit in units if unit.name != "vae-decode"], observers=[seen]).generate(request(0.48))
    assert len(seen.shown) == 2
    return seen


def test_what_the_vae_changes_fades_out() -> None:
    seen = shown(SmoothBorders(fade=3, still=0), lambda index, place: 0.8 - 0.1 * index + 0 * place)
    torch.testing.assert_close(seen.shown[0], torch.full_like(seen.shown[0], 0.8))
    given = len(seen.shown[1]) - len(seen.new[1])
    torch.testing.assert_close(seen.shown[1][:given], torch.full((given,), 0.7))
    later = seen.new[1]
    torch.testing.assert_close(later[:3], torch.tensor([0.8, 0.7 + 0.2 / 3, 0.7 + 0.1 / 3]))
    torch.testing.assert_close(later[3:], torch.full_like(later[3:], 0.7))


def test_a_small_step_to_the_first_new_frame_fades_out_too() -> None:
    seen = shown(SmoothBorders(fade=2, still=8), lambda index, place: 0.5 + 0.02 * index * (place >= 0))
    torch.testing.assert_close(seen.new[1][:3], torch.tensor([0.5, 0.51, 0.52]))


def test_a_large_step_is_motion() -> None:
    seen = shown(SmoothBorders(fade=2, still=8), lambda index, place: 0.5 + 0.1 * index * (place >= 0))
    torch.testing.assert_close(seen.new[1], torch.full_like(seen.new[1], 0.6))


def test_slow_motion_goes_on() -> None:
    seen = shown(SmoothBorders(still=8), lambda index, place: 0.5 + 0.01 * place if index else 0.49 + 0 * place)
    torch.testing.assert_close(seen.new[1], 0.5 + 0.01 * torch.arange(len(seen.new[1])))
