"""Generators of clips that packages bring: which are none, and how a configuration names one."""

from __future__ import annotations

from typing import Any

import pytest

from omniavatar.errors import InputError
from omniavatar.training.data.generated import ClipGenerator, generator_fault, generator_named
from tests.training.scenes import Stripes


class Half(ClipGenerator):
    name = "half"
    Settings = Stripes.Settings


class Nameless(Stripes):
    name = ""


class Loose(Stripes):
    Settings = dict  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("generator", "fault"),
    [
        (Stripes, ""),
        (Stripes.clip, "is not a ClipGenerator"),
        (Half, "clip generator 'half' has no __len__ and no clip"),
        (Nameless, "clip generator Nameless has no name"),
        (Loose, "clip generator 'stripes' has no Settings, a pydantic model"),
    ],
)
def test_what_is_no_generator(generator: Any, fault: str) -> None:
    found = generator_fault(generator)
    assert found.endswith(fault)
    assert bool(found) == bool(fault)


def test_the_one_that_a_configuration_names() -> None:
    made = generator_named({"stripes": {"clips": 3}}, {"stripes": Stripes})
    assert (len(made), made.clip(1).frames, made.identity()) == (3, 26, {"clips": 3, "frames": 25})
    with pytest.raises(InputError, match="names 'stripe', which no installed package brings; did you mean 'stripes'"):
        generator_named({"stripe": {"clips": 3}}, {"stripes": Stripes})
    with pytest.raises(InputError, match=r"data\.generated\.stripes: clips = 0: "):
        generator_named({"stripes": {"clips": 0}}, {"stripes": Stripes})
