"""What a border makes is put back and faded out; motion and everything else stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from omniavatar.engine.scopes import Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.units import SmoothBorders
from tests.scenes import Scene, denoising_units, fake_engine, recorded, request


class Shown(PipelineUnit):
    """Frames of one grey each: `grey` says it by the window's number and the frames' places behind the given ones.

    The first frame comes alone, then `group` at once.
    """

    name = "shown"
    provides = ("frames",)

    def __init__(self, grey: Callable[[int, Tensor], Tensor], group: int) -> None:
        super().__init__()
        self.grey = grey
        self.group = group

    @hookimpl
    def decode_latents(self, window: Window) -> Iterator[Tensor]:
        place = torch.arange(window.span.frames) - window.span.given
        greys = self.grey(window.index, place).float()
        frames = greys.view(1, 1, -1, 1, 1).expand(1, 3, -1, *window.job.size)
        yield frames[:, :, :1]
        yield from frames[:, :, 1:].split(self.group, dim=2)


@dataclass(frozen=True)
class Seen:
    """The greys of the frames that each window shows, and of those of them that are new."""

    shown: list[Tensor]
    new: list[Tensor]


def shown(unit: SmoothBorders, grey: Callable[[int, Tensor], Tensor], group: int) -> Seen:
    units = [Scene(), *denoising_units(), Shown(grey, group), unit]
    windows = recorded(fake_engine([unit for unit in units if unit.name != "vae-decode"]), request(0.48))
    assert len(windows) == 2
    seen = Seen([], [])
    for window in windows:
        frames = window["output_frames"]
        assert torch.allclose(frames, frames[:, :1, :, :1, :1].expand_as(frames), atol=1e-6)
        seen.shown.append(frames[0, 0, :, 0, 0])
        seen.new.append(seen.shown[-1][window.span.given :])
        place = torch.arange(window.span.frames) - window.span.given
        assert window["frames"][0, 2, :, -1, -1].equal(grey(window.index, place).float()), "these stay as they are"
    return seen


by_groups = pytest.mark.parametrize("group", [2, 4, 16])


@by_groups
def test_what_the_vae_changes_fades_out(group: int) -> None:
    seen = shown(SmoothBorders(fade=3, still=0), lambda index, place: 0.8 - 0.1 * index + 0 * place, group)
    torch.testing.assert_close(seen.shown[0], torch.full_like(seen.shown[0], 0.8))
    given = len(seen.shown[1]) - len(seen.new[1])
    torch.testing.assert_close(seen.shown[1][:given], torch.full((given,), 0.7))
    later = seen.new[1]
    torch.testing.assert_close(later[:3], torch.tensor([0.8, 0.7 + 0.2 / 3, 0.7 + 0.1 / 3]))
    torch.testing.assert_close(later[3:], torch.full_like(later[3:], 0.7))


@by_groups
def test_a_small_step_to_the_first_new_frame_fades_out_too(group: int) -> None:
    seen = shown(SmoothBorders(fade=2, still=8), lambda index, place: 0.5 + 0.02 * index * (place >= 0), group)
    torch.testing.assert_close(seen.new[1][:3], torch.tensor([0.5, 0.51, 0.52]))


@by_groups
def test_a_large_step_is_motion(group: int) -> None:
    seen = shown(SmoothBorders(fade=2, still=8), lambda index, place: 0.5 + 0.1 * index * (place >= 0), group)
    torch.testing.assert_close(seen.new[1], torch.full_like(seen.new[1], 0.6))


@by_groups
def test_slow_motion_goes_on(group: int) -> None:
    seen = shown(SmoothBorders(still=8), lambda index, place: 0.5 + 0.01 * place if index else 0.49 + 0 * place, group)
    torch.testing.assert_close(seen.new[1], 0.5 + 0.01 * torch.arange(len(seen.new[1])))
