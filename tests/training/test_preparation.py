"""A sample is a window of a video: its values are those with which the video is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from omniavatar.engine.engine import Engine
from omniavatar.engine.scopes import Request, Window
from omniavatar.engine.windows import Span
from omniavatar.hookspecs import hookimpl
from omniavatar.testing.tiny import TinyModels
from omniavatar.training.data.clip import Unusable
from omniavatar.training.preparation import CLEAN, Shapes, joined
from omniavatar.units.audio import SAMPLE_RATE
from tests.training.scenes import Striped, diffusion, plan, take


@pytest.fixture(scope="module")
def preparation(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return diffusion(tmp_path_factory.mktemp("run"), train={"weights": ["audio_adapter.*", "dit.*"]}).preparation()


def test_the_clean_latents_are_those_of_the_pictures(preparation: Any) -> None:
    chosen = take()
    video = torch.from_numpy(chosen.pictures).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    expected = preparation.engine.model("vae").encode(video)
    torch.testing.assert_close(preparation.sample(chosen)[CLEAN], expected, atol=1e-5, rtol=1e-5)


def test_the_given_latents_are_the_clean_ones(preparation: Any) -> None:
    """The VAE is causal, so that the first frames have the same latents alone and in the clip."""
    sample = preparation.sample(take(given=5))
    torch.testing.assert_close(sample["given_latents"], sample[CLEAN][:, :, :2], atol=2e-5, rtol=1e-4)
    assert sample["condition"][0, -1, :, 0, 0].tolist() == [0, 0, 1]


def test_given_frames_that_have_been_through_the_vae_before(preparation: Any) -> None:
    """As in a long video: the window before has decoded them, and the one before that as well."""
    once = preparation.sample(take(given=5))
    vae, frames = preparation.engine.model("vae"), once["given_latents"]
    expected = vae.encode(vae.decode(vae.encode(vae.decode(frames))))
    twice = preparation.sample(dataclasses.replace(take(given=5), again=2))
    torch.testing.assert_close(twice["given_latents"], expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(twice["given_latents"], once["given_latents"], atol=1e-2)
    torch.testing.assert_close(twice[CLEAN], once[CLEAN])


def test_nothing_given_and_no_reference(preparation: Any) -> None:
    nothing = preparation.sample(take(given=0))
    assert "given_latents" not in nothing
    assert nothing["condition"][:, -1].min() == 1
    assert nothing["condition"][:, :-1].abs().max() > 0
    without = preparation.sample(take(given=0, reference=None))
    assert "image_latent" not in without
    assert without["condition"][:, :-1].abs().max() == 0


class Windows:
    """Keeps the windows of a video."""

    def __init__(self) -> None:
        self.seen: list[Window] = []
        self.values: list[dict[str, Tensor | None]] = []

    @hookimpl(trylast=True)
    def begin_window(self, window: Window) -> None:
        self.seen.append(window)
        self.values.append({name: window.get(name) for name in NAMES})


NAMES = ("prompt_embedding", "image_latent", "condition", "audio_rows", "given_latents")


def windows_of(inputs: dict[str, Any], frames: int) -> Windows:
    """The windows of a video that is made of these inputs."""
    watch = Windows()
    Engine(plan("default-write-video"), TinyModels(), observers=[watch]).generate(Request(inputs, seconds=frames / 25))
    return watch


def test_the_beginning_of_a_video_has_the_values_of_its_sample(preparation: Any) -> None:
    clip = Striped(frames=25)
    chosen = take(start=0, given=1, reference=0, count=25, clip=clip)
    sample = preparation.sample(chosen)
    inputs = {"image": chosen.reference, "audio": (chosen.sound, SAMPLE_RATE), "prompt": chosen.prompt}
    watch = windows_of(inputs, 25)
    assert watch.seen[0].span == Span(0, 25, 1, 0, 25)
    for name in NAMES:
        torch.testing.assert_close(sample[name], watch.values[0][name], atol=1e-5, rtol=1e-5)


def test_a_later_window_hears_the_rows_of_its_frames(preparation: Any) -> None:
    """The features are those of the whole clip, cut, not those of the piece."""
    clip = Striped(frames=25)
    whole = preparation.sample(take(start=0, given=1, reference=0, count=25, clip=clip))["audio_rows"]
    later = preparation.sample(take(start=8, given=5, count=9, clip=clip))["audio_rows"]
    torch.testing.assert_close(later, whole[:, 8:17])


def test_samples_of_equal_shapes_are_joined(preparation: Any) -> None:
    one, two, other = (preparation.sample(take(start=n, given=g)) for n, g in ((4, 5), (6, 5), (4, 9)))
    assert Shapes.of(one) == Shapes.of(two) != Shapes.of(other)
    batch = joined([one, two])
    assert all(len(value) == 2 for value in batch.values())
    assert batch[CLEAN][1].equal(two[CLEAN][0])


def test_gradients_can_pass_through_what_was_prepared(preparation: Any) -> None:
    """Tensors made in inference mode could not take part in training."""
    sample = preparation.sample(take())
    scale = torch.ones((), requires_grad=True)
    (sample[CLEAN] * scale).sum().backward()
    assert scale.grad is not None


def test_a_silent_take_hears_silence(preparation: Any) -> None:
    chosen = take()
    silent = dataclasses.replace(chosen, sound=np.zeros_like(chosen.sound))
    assert not preparation.sample(silent)["audio_rows"].equal(preparation.sample(chosen)["audio_rows"])


def test_numbers_that_are_not_finite_are_a_fault_of_the_clip(tmp_path: Path) -> None:
    preparation = diffusion(tmp_path).preparation()
    next(preparation.engine.model("vae").encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(Unusable, match="'clean' with numbers that are not finite"):
        preparation.sample(take())
