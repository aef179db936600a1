"""What units that take pictures share."""

from __future__ import annotations

import pytest
import torch

from omniavatar.engine.pictures import encode, is_usable, settle_size, usable_sizes
from omniavatar.engine.scopes import Job, Request
from omniavatar.errors import InputError
from tests.models.networks import noise
from tests.scenes import bare_job, fake_engine, fake_models


def job(height: int | None = None, width: int | None = None) -> Job:
    return bare_job(asked=Request(height=height, width=width))


def test_a_size_is_chosen_only_if_there_is_none() -> None:
    for video, size in ((job(), (32, 48)), (job(64, 80), (64, 80))):
        settle_size(video, lambda: (32, 48))
        assert video.size == size


def test_a_size_that_the_patches_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="the size 36x32 is not made of positive multiples of 8"):
        settle_size(job(32, 36), lambda: (32, 32))
    with pytest.raises(InputError, match="multiples of 64"):
        settle_size(job(), lambda: (32, 64), multiple=64)
    assert not is_usable((0, 16))
    assert is_usable((32, 16))
    with pytest.raises(ValueError, match=r"\[32, 8\] is not made of positive multiples of 16"):
        usable_sizes(((16, 16), (32, 8)))


def test_pictures_become_latents_in_float32() -> None:
    engine = fake_engine([], models=fake_models())
    engine.dtype = torch.bfloat16
    latents = encode(engine, noise(1, 3, 5, 16, 32))
    assert latents.dtype == torch.float32
    assert latents.shape[2:] == (2, 2, 4)
    assert encode(engine, noise(1, 3, 5, 16, 32), tiled=True).equal(latents)
