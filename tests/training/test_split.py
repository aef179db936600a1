"""Which units are prepared and which run in every step follows from what they declare."""

from __future__ import annotations

import pytest

from omniavatar.errors import PlanError
from omniavatar.training.split import split
from tests.training.scenes import plan


def names(units: object) -> list[str]:
    return [unit.name for unit in units]  # type: ignore[attr-defined]


def test_what_the_trained_networks_do_not_touch_is_prepared() -> None:
    parts = split(plan(), {"dit", "audio_adapter"})
    assert names(parts.prepared) == ["prompt", "reference-image", "audio", "fixed-frames"]
    assert names(parts.live) == ["audio-adapter", "transformer", "lora"]
    assert names(parts.stepping.units) == ["prompt", "fixed-frames", "audio-adapter", "transformer", "lora"]


def test_what_only_guides_samples_decodes_or_writes_takes_no_part() -> None:
    parts = split(plan("default+teacache+cfg-merge"), {"dit"})
    taking_part = {*names(parts.prepared), *names(parts.live)}
    assert not taking_part & {"guidance", "euler", "vae-decode", "write-video"}
    assert {"teacache", "cfg-merge"} <= taking_part


def test_only_what_a_step_reads_is_stored() -> None:
    values = split(plan(), {"dit", "audio_adapter"}).values
    assert set(values) == {
        *("prompt_embedding", "negative_embedding", "encode_text", "image_latent", "condition"),
        *("audio_rows", "silent_rows", "given_latents"),
    }


def test_an_adapter_that_is_not_trained_is_prepared_too() -> None:
    parts = split(plan(), {"dit"})
    assert "audio-adapter" in names(parts.prepared)
    assert {"audio_residuals", "audio_silence"} <= set(parts.values)
    assert "audio_rows" in parts.values


@pytest.mark.parametrize(("role", "unit"), [("audio_encoder", "audio"), ("text_encoder", "prompt")])
def test_a_unit_that_reads_inputs_by_a_trained_network_is_refused(role: str, unit: str) -> None:
    with pytest.raises(PlanError, match=f"unit '{unit}' cannot be trained with: it works with {role} and takes inputs"):
        split(plan(), {role})


def test_what_reads_live_values_is_live() -> None:
    """The given latents come from the frames' latents; if the VAE changes, the condition made of them does too."""
    with pytest.raises(PlanError, match="'reference-image' cannot be trained with: it works with vae"):
        split(plan(), {"vae"})


def test_a_unit_that_spreads_one_video_over_ranks_is_refused() -> None:
    with pytest.raises(PlanError, match="unit 'sequence-parallel' spreads one video over ranks, and training gives"):
        split(plan("default+sequence-parallel"), {"dit"})
