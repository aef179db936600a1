"""What units that take pictures share."""

from __future__ import annotations

import pytest
import torch

from omniavatar.engine.pictures import check_size, encode, is_usable, usable_sizes
from omniavatar.errors import InputError
from tests.models.networks import noise
from tests.scenes import fake_engine, fake_models


def test_a_size_that_the_patches_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="the size 36x32 is not made of positive multiples of 8"):
        check_size((32, 36), 8)
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
