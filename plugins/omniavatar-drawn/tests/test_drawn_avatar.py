"""The packaged avatar talks: what `python -m omniavatar_drawn.tiny_quality` measures at length, on one short video."""

from __future__ import annotations

import pytest
import torch
from omniavatar_drawn.avatar_makers import Engines
from omniavatar_drawn.reading import quality
from omniavatar_drawn.tiny_quality import FIRST, Sounds, Study

from omniavatar.config import find_config, parse_config, read_yaml
from omniavatar.plugins import discover
from omniavatar.resources import asset


@pytest.mark.slow
def test_it_talks() -> None:
    """A face that it was not trained on says the demo's sentence."""
    config = parse_config(read_yaml(find_config("tiny")), "tiny")
    maker = Engines.of(config, discover(), torch.device("cpu"), torch.float32)
    study = Study(maker, Sounds(voice=asset("demo", "speech.flac")))
    video = study.spoken(study.asked(FIRST["talk"], 1.92, is_first=True))
    sync = quality.synchrony([video])
    assert abs(sync.lag) <= 1
    assert sync.correlation >= 0.85
    assert max(quality.colour_shifts(video.reading).values()) <= 0.05
    assert quality.likeness(video.reading) >= 0.85
