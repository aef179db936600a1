"""A whole run: the loss is that of a video's window, it falls, drops do what they say, and a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from omniavatar.engine.flow_match import TIMESTEPS, velocity_target
from omniavatar.errors import InputError
from omniavatar.models.wan_dit import BlockInputs
from omniavatar.training.diffusion import DiffusionTask
from omniavatar.training.preparation import CLEAN
from omniavatar.training.samples import CachedSamples, CacheWriter, write_origin
from omniavatar.training.takes import Choice, Take
from omniavatar.training.trainer import LOG, Settings, Trainer, generator
from tests.training.scenes import Striped, diffusion

WHOLE = {"weights": ["dit.*", "audio_adapter.*"]}


def task(folder: Path, *, expression: str = "default", **fields: Any) -> DiffusionTask:
    """A task over a cache of four samples with one and with five given frames."""
    run = diffusion(folder, expression=expression, **{"train": WHOLE, "batch": 2, **fields})
    cache = folder / "cache"
    if not cache.exists():
        with CacheWriter(cache) as writer:
            for number in range(4):
                choice = Choice(0, 9, 1, 0) if number % 2 else Choice(number + 4, 9, 5, 20)
                writer.add(run.preparation().sample(Take.of(Striped(), choice)), str(number))
        write_origin(cache, run.origin())
    return run.task(CachedSamples.open(cache, run.origin(), "cpu"))


def test_the_loss_is_the_weighted_error_behind_the_given_frames(tmp_path: Path) -> None:
    """By hand: the transformer on noisy latents, the given frames of which are clean, with the sound added."""
    made = task(tmp_path, objective={"drop": {}})
    batch = made.batch(generator(1))
    clean, noise, sigma = batch[CLEAN], batch["noise"], batch["sigma"].float()
    levels = sigma.view(-1, 1, 1, 1, 1)
    given = batch["given_latents"].shape[2]
    noisy = (1 - levels) * clean + levels * noise
    noisy[:, :, :given] = batch["given_latents"]
    dit, adapter = made.engine.model("dit"), made.engine.model("audio_adapter")
    with torch.no_grad():
        x, grid = dit.embed_patches(torch.cat([noisy, batch["condition"]], dim=1))
        time, t_mod = dit.embed_time(batch["sigma"] * TIMESTEPS)
        context, rope = dit.embed_text(batch["prompt_embedding"]), dit.rope(grid)
        residuals = adapter(batch["audio_rows"])
        for index, block in enumerate(dit.blocks):
            if index in adapter.entry_blocks:
                heard = residuals[:, adapter.entry_blocks.index(index)]
                x = x + heard.repeat_interleave(grid[1] * grid[2], dim=1)
            x = block(x, BlockInputs(t_mod, rope, {"text": context}))
        velocity = dit.unembed(x, time, grid)
        error = (velocity - velocity_target(clean, noise))[:, :, given:].square().flatten(1).mean(1)
        expected = (error * batch["weight"]).mean()
        torch.testing.assert_close(made.loss(batch).double(), expected.double(), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def loss_of_same_batches(made: DiffusionTask) -> float:
    """The mean of the losses of eight batches: noise levels change a loss more than twelve steps do."""
    return sum(made.loss(made.batch(generator(seed))).item() for seed in range(8)) / 8


def test_it_learns_and_only_what_it_shall(tmp_path: Path) -> None:
    made = task(tmp_path, train={"weights": ["audio_adapter.*"], "lora": {"rank": 4, "alpha": 4}})
    frozen = made.engine.model("dit").patch_embedding.weight.clone()
    before = loss_of_same_batches(made)
    Trainer(made, Settings(steps=12, learning_rate=5e-3, log_every=1), tmp_path / "out").run()
    assert loss_of_same_batches(made) < 0.9 * before
    assert made.engine.model("dit").patch_embedding.weight.equal(frozen)


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """20 steps are 10, and 10 more after everything was loaded anew."""
    settings = {"learning_rate": 1e-3, "log_every": 1, "ema": 0.9, "warmup": 2, "schedule": "cosine"}
    Trainer(task(tmp_path), Settings(steps=20, **settings), tmp_path / "whole").run()
    first = Trainer(task(tmp_path), Settings(steps=20, **settings), tmp_path / "parts")
    first.resume()
    for _ in range(10):
        first.update()
    first.checkpoint()
    Trainer(task(tmp_path), Settings(steps=20, **settings), tmp_path / "parts").run()
    whole, parts = ((tmp_path / name / LOG).read_text().splitlines() for name in ("whole", "parts"))
    losses = [json.loads(line)["loss"] for line in whole]
    assert [json.loads(line)["loss"] for line in parts] == losses[10:]
    results = [(tmp_path / name / "transformer.safetensors").read_bytes() for name in ("whole", "parts")]
    assert results[0] == results[1]


def test_dropped_conditions_take_their_null_forms(tmp_path: Path) -> None:
    made = task(tmp_path, objective={"drop": {"text": 1.0, "audio": 1.0}})
    batch = made.batch(generator(2))
    assert batch["prompt_embedding"].equal(batch["negative_embedding"])
    assert not batch["audio_rows"].any()
    half = task(tmp_path, batch=64, objective={"drop": {"audio": 0.5}}).batch(generator(3))
    heard = half["audio_rows"].flatten(1).any(dim=1)
    assert 16 < int(heard.sum()) < 48
    assert not half["prompt_embedding"].equal(half["negative_embedding"])


def test_a_dropped_sound_is_replaced_by_silence_if_guidance_compares_with_that(tmp_path: Path) -> None:
    made = task(tmp_path, expression="default+audio(dropped=silence)", objective={"drop": {"audio": 1.0}})
    batch = made.batch(generator(2))
    assert batch["silent_rows"].any()
    assert batch["audio_rows"].equal(batch["silent_rows"].expand_as(batch["audio_rows"]))


def test_a_condition_that_no_unit_brings_cannot_be_dropped(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names the condition 'sound'; choices: audio, text"):
        diffusion(tmp_path, objective={"drop": {"sound": 0.1}})


def test_every_sample_has_a_noise_level_of_its_own(tmp_path: Path) -> None:
    batch = task(tmp_path, batch=8).batch(generator(4))
    assert len(set(batch["sigma"].tolist())) == 8


def test_checkpointed_gradients_are_the_same(tmp_path: Path) -> None:
    def gradients(expression: str) -> dict[str, torch.Tensor]:
        made = task(tmp_path, expression=expression)
        made.loss(made.batch(generator(5))).backward()
        return {name: weight.grad for name, weight in made.parameters().items() if weight.grad is not None}

    plain, checkpointed = gradients("default"), gradients("default+gradient-checkpointing")
    assert plain.keys() == checkpointed.keys()
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)
