"""Training a VAE: it learns, looks at mouths, and what it saves has normal latents and gives the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from omniavatar_drawn.encoders.vae import (
    FILE,
    Footage,
    VaeSettings,
    VaeTask,
    box_mask,
    latent_statistics,
    main,
    normalised,
    start_as_pictures,
)
from safetensors.torch import load_file

from omniavatar.models.wan_vae import WanVAE
from omniavatar.testing.tiny import VAE
from omniavatar.training.trainer import Settings, Trainer, generator

SIZE, FRAMES = 32, 9


@pytest.fixture(scope="module")
def footage() -> Footage:
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randint(0, 255, (3, 1, SIZE // 8, SIZE // 8, 3), generator=generator, dtype=torch.uint8)
    pictures = pictures.expand(-1, FRAMES, -1, -1, -1).repeat_interleave(8, 2).repeat_interleave(8, 3).contiguous()
    return Footage(pictures, torch.tensor([8.0, 16.0, 24.0, 28.0]).expand(3, FRAMES, 4))


def vae() -> Any:
    torch.manual_seed(4)
    return WanVAE(**{**VAE, "dim": 4})


@pytest.mark.slow
def test_it_learns(footage: Footage, tmp_path: Path) -> None:
    task = VaeTask(vae(), footage, VaeSettings(lengths=(1, 5), frames=8))
    before = float(task.loss(task.batch(generator(9))).detach())
    Trainer(task, Settings(steps=30, learning_rate=0.01), tmp_path).run()
    assert float(task.loss(task.batch(generator(9))).detach()) < 0.6 * before
    assert set(load_file(tmp_path / "vae.safetensors")) == set(vae().state_dict())


def test_pieces_are_drawn_with_their_mouths(footage: Footage) -> None:
    video, mouths = footage.draw(generator(1), 4, 5)
    assert video.shape == (4, 3, 5, SIZE, SIZE)
    assert -1 <= float(video.min()) < float(video.max()) <= 1
    assert mouths.shape == (4, 1, 5, SIZE, SIZE)
    assert mouths[0, 0, 0].sum() == 16 * 12
    assert mouths[0, 0, 0, 16:28, 8:24].min() == 1


def test_errors_in_the_mouth_count_more(footage: Footage) -> None:
    tasks = [VaeTask(vae(), footage, VaeSettings(lengths=(5,), mouth=mouth)) for mouth in (0.0, 4.0)]
    losses = [float(task.loss(task.batch(generator(2))).detach()) for task in tasks]
    assert losses[1] > 1.2 * losses[0]


def test_masks_of_boxes_cover_pixel_centres() -> None:
    mask = box_mask(torch.tensor([1.4, 0.0, 3.0, 1.0]), (2, 4))
    assert mask.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


def test_normalised_weights_give_normal_latents_and_the_same_pictures(footage: Footage) -> None:
    network = vae().eval()
    mean, deviation = latent_statistics(network, footage)
    other = vae().eval()
    other.load_state_dict(normalised(network.state_dict(), mean, deviation))
    new_mean, new_deviation = latent_statistics(other, footage)
    torch.testing.assert_close(new_mean, torch.zeros_like(mean), atol=1e-3, rtol=0)
    torch.testing.assert_close(new_deviation, torch.ones_like(mean), atol=1e-3, rtol=0)
    video = footage.draw(generator(1), 1, 5)[0]
    with torch.inference_mode():
        expected = network.decode(network.encode(video))
        torch.testing.assert_close(other.decode(other.encode(video)), expected, atol=1e-4, rtol=0)


def test_groups_do_not_change_what_training_sees(footage: Footage) -> None:
    network, video = vae(), footage.draw(generator(1), 1, 9)[0]
    with torch.no_grad():
        torch.testing.assert_close(network.moments(video, 9), network.moments(video, 1), atol=1e-4, rtol=1e-4)
        latents = network.moments(video)[:, :16]
        torch.testing.assert_close(network.frames(latents, 3), network.frames(latents, 1), atol=1e-4, rtol=1e-4)


def test_a_new_vae_treats_every_frame_as_a_picture() -> None:
    network = vae().eval()
    start_as_pictures(network)
    still = torch.rand(1, 3, 1, SIZE, SIZE).expand(-1, -1, 9, -1, -1) * 2 - 1
    with torch.inference_mode():
        picture = network.decode(network.encode(still[:, :, :1]))
        torch.testing.assert_close(
            network.decode(network.encode(still)), picture.expand(-1, -1, 9, -1, -1), atol=1e-4, rtol=0
        )


def test_drawn_footage_has_moving_mouths_where_the_masks_are() -> None:
    drawn = Footage.render(range(2), 9, 64)
    assert drawn.pictures.shape == (2, 9, 64, 64, 3)
    changes = (drawn.pictures[:, 1:].float() - drawn.pictures[:, :-1].float()).abs().mean(-1)
    inside = box_mask(drawn.mouths[:, 1:], (64, 64)) > 0
    assert changes[inside].mean() > 3 * changes[~inside].mean()


@pytest.mark.slow
def test_the_command_trains_both_parts_and_says_how_well(tmp_path: Path) -> None:
    arguments = ["--clips", "2", "--side", "32", "--picture-steps", "1", "--steps", "1", "--tested", "1"]
    outcome = CliRunner().invoke(main, [str(tmp_path), *arguments], catch_exceptions=False)
    assert outcome.exit_code == 0
    assert '"49":' in outcome.output
    assert set(load_file(tmp_path / FILE)) == set(load_file(tmp_path / "pictures" / FILE))


def test_a_stop_in_the_pictures_leaves_the_clips_for_later(tmp_path: Path) -> None:
    arguments = ["--clips", "2", "--side", "32", "--picture-steps", "100000", "--steps", "1", "--minutes", "0.001"]
    assert CliRunner().invoke(main, [str(tmp_path), *arguments], catch_exceptions=False).exit_code == 0
    assert (tmp_path / "pictures" / "state.pt").exists()
    assert not (tmp_path / "clips").exists()


def test_what_changes_when_the_last_frames_pass_once_more_counts() -> None:
    pictures = torch.randint(0, 255, (1, 17, SIZE, SIZE, 3), generator=generator(3), dtype=torch.uint8)
    footage = Footage(pictures, torch.zeros(1, 17, 4))
    plain, again = (VaeTask(vae(), footage, VaeSettings(lengths=(17,), frames=17, again=w)) for w in (0.0, 3.0))
    batch = plain.batch(generator(1))
    mean, log_variance = plain.vae.moments(batch["video"], 17).chunk(2, dim=1)
    made = plain.vae.frames(mean + torch.exp(0.5 * log_variance) * batch["noise"], 17)
    tail = made[:, :, -13:].clamp(-1, 1)
    back = plain.vae.frames(plain.vae.moments(tail, 13)[:, :16], 13)
    expected = 3 * (back - tail).abs().mean()
    torch.testing.assert_close(again.loss(batch) - plain.loss(batch), expected, atol=1e-5, rtol=1e-4)
    short = VaeTask(vae(), footage, VaeSettings(lengths=(9,), frames=9, again=3.0))
    batch = short.batch(generator(1))
    plain.settings = short.settings.model_copy(update={"again": 0.0})
    torch.testing.assert_close(short.loss(batch), plain.loss(batch))
