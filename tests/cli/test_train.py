"""`omni train`: from a folder of clips to a file that `omni run` uses, and everything that can go wrong between."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from omniavatar.cli.train import read
from omniavatar.config import find_config, packaged_configs, parse_config, read_yaml
from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.media.video import read_video
from omniavatar.models.audio_adapter import AudioAdapter
from omniavatar.resources import asset
from omniavatar.testing.models import WAN
from omniavatar.testing.tiny import ADAPTER, write_original
from omniavatar.training import trainer
from omniavatar.training.diffusion import DiffusionConfig, DiffusionTask
from omniavatar.training.folder import claimed
from omniavatar.training.preparation import Preparation
from omniavatar.training.samples import read_shard
from omniavatar.training.takes import Take
from omniavatar.training.validation import plan_of_videos
from tests.cli.conftest import Omni, Outcome
from tests.media.samples import tone, write_wav
from tests.training.scenes import Striped, write_clip

BASE = ("Wan2.1-T2V-tiny/*.safetensors", "Wan2.1-T2V-tiny/models_t5_umt5-xxl-enc-bf16.pth")
MODELS = (*BASE, "Wan2.1-T2V-tiny/Wan2.1_VAE.pth", "wav2vec2-tiny")
RELEASED = "OmniAvatar-tiny/pytorch_model.pt"
UNITS = {"prompt": {"tokenizer": "tokenizer", "length": 16}, "reference-image": {"sizes": [[32, 32]]}}
HINT = "try it: omni run --config out/run.yaml --image FILE --audio FILE --prompt TEXT\n"
PORTRAIT = asset("demo", "portrait.png")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are faster so, and the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in `models`, a sound, and `clips`: two good ones of 25 frames, one with a prompt, and a bad one."""
    folder = tmp_path_factory.mktemp("studio")
    write_original(folder / "models")
    for number in range(2):
        sound = tone(1.0, 16000, hertz=300 + 200 * number).astype(np.float32)
        write_clip(Striped(), folder / "clips" / f"{number}.mp4", sound)
    (folder / "clips" / "0.txt").write_text("A woman talks.")
    (folder / "clips" / "bad.mp4").write_bytes(b"This is no video.")
    write_wav(folder / "speech.wav", tone(0.4, 16000), 16000)
    return folder


def configuration(studio: Path, folder: Path, **fields: Any) -> Path:
    """A file that trains LoRA layers, new audio layers and a wider patch embedding, from text-to-video weights."""
    content: dict[str, Any] = {
        "models_dir": str(studio / "models"),
        "models": list(MODELS),
        "settings": UNITS,
        "data": {"path": str(studio / "clips"), "limits": {"sizes": [[32, 32]], "quietest": None}},
        "samples": {"frames": 9, "prefixes": [1, 5]},
        "cache": "cache",
        "start": {
            "dit": {"config": {"in_dim": 33}},
            "audio_adapter": {"network": "omniavatar.models.audio_adapter:AudioAdapter", "config": ADAPTER},
        },
        "train": {"lora": {"rank": 4, "alpha": 2}, "weights": ["audio_adapter.*", "dit.patch_embedding.*"]},
        "objective": {"drop": {"text": 0.1, "audio": 0.1}},
        "trainer": {"steps": 4, "learning_rate": 1e-3, "log_every": 1, "ema": 0.5},
        "output": "out",
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump({**content, **fields}))
    return path


@pytest.fixture(scope="session")
def cache(studio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `omni train prepare` makes with `configuration`."""
    from omniavatar.cli import run_cli

    folder = tmp_path_factory.mktemp("cache")
    path = configuration(studio, folder, cache=str(folder / "cache"))
    assert run_cli(["train", "prepare", "--config", str(path), "--quiet"]) == 0
    return folder / "cache"


@pytest.fixture
def config(studio: Path, cache: Path, folder: Path) -> Path:
    """The configuration of the working folder, with its cache."""
    shutil.copytree(cache, folder / "cache")
    return configuration(studio, folder)


def log(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's log, without the time they took."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "pytorch_model.pt", weights_only=True)
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


def test_from_a_folder_of_clips_to_a_video(omni: Omni, studio: Path, folder: Path) -> None:
    """The last validation video is the one that `omni run` makes with the result, on top of released weights too."""
    video = {"image": str(PORTRAIT), "audio": str(studio / "speech.wav"), "prompt": "A man talks."}
    shown = {"every": 2, "videos": [video], "seconds": 0.36, "settings": {"schedule": {"steps": 1}}}
    models = [*MODELS, RELEASED]
    path = configuration(
        studio,
        folder,
        models=models,
        start={},
        validation=shown,
        save_as="fp32",
        units="default+gradient-checkpointing",
    )
    prepared = omni("train", "prepare", "--config", path)
    assert (prepared.code, prepared.out) == (0, "cache  (2 samples, bad clips: 1, see skipped.jsonl)\n")
    assert "bad.mp4': passed over: " in prepared.err
    (skipped,) = (folder / "cache" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(skipped)["kind"] == "unreadable"

    trained = omni("train", "--config", path)
    assert (trained.code, trained.out) == (0, f"out  (trained, 4 steps)\n{HINT}"), trained.err
    made = ["step-000002-1.mp4", "step-000004-1.mp4"]
    assert sorted(file.name for file in (folder / "out" / "validation").iterdir()) == made

    inputs = [f"--{name}={value}" for name, value in video.items()]
    small = ("--seconds=0.36", "--schedule.steps=1", "--audio.silence=0", "--output=talk.mp4")
    run = omni("run", "--config=out/run.yaml", *inputs, *small)
    assert run.code == 0, run.err
    ours, theirs = (
        np.asarray(read_video(Path(file))).astype(int) for file in (f"out/validation/{made[1]}", "talk.mp4")
    )
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 2
    assert np.abs(ours - np.asarray(read_video(Path("out/validation", made[0]))).astype(int)).max() > 2


@pytest.mark.slow
def test_validation_changes_nothing_but_time(omni: Omni, config: Path, studio: Path, folder: Path) -> None:
    assert omni("train", "--config", config, "--output", "without", "--quiet") == Outcome(0, "", "")
    video = {"image": str(PORTRAIT), "audio": str(studio / "speech.wav")}
    shown = {"every": 1, "videos": [video], "seconds": 0.24, "settings": {"schedule": {"steps": 1}}}
    change = f"validation={json.dumps(shown)}"
    assert omni("train", "--config", config, "--set", change, "--output", "with", "--quiet").code == 0
    assert log(folder / "with") == log(folder / "without")
    assert equal(weights(folder / "with"), weights(folder / "without"))
    assert len(list((folder / "with" / "validation").iterdir())) == 4


def test_a_video_that_cannot_be_made_does_not_end_the_training(omni: Omni, config: Path, folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "validation").write_text("I am in the way.")
    shown = {"every": 4, "videos": [{"image": str(PORTRAIT)}], "seconds": 0.24, "settings": {"schedule": {"steps": 1}}}
    done = omni("train", "--config", config, "--set", f"validation={json.dumps(shown)}")
    assert done.code == 0
    assert "omni: out/validation/step-000004-1.mp4 cannot be made: " in done.err


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        ({"videos": [{"image": "no.png"}]}, "validation video 1: image 'no.png' does not exist; looked in "),
        (
            {"videos": [{"image": "train.yaml"}], "seconds": 1.04},
            "validation video 1: image 'train.yaml' is not a picture",
        ),
        ({"videos": [{"imag": "a"}]}, "validation video 1: no unit of the plan takes an input 'imag'; did you mean"),
        ({"videos": [{}]}, "validation video 1 has no sound, so its length is unknown; give validation.seconds"),
        ({"videos": [{}], "settings": {"eular": {}}}, "validation.settings: the plan has no unit 'eular'; did you"),
        (
            {"videos": [{}], "settings": {"schedule": {"step": 1}}},
            "unit 'schedule' has no setting 'step'; did",
        ),
        ({"videos": []}, "validation.videos = []: "),
    ],
)
def test_bad_validation_is_found_before_anything_starts(
    omni: Omni, config: Path, validation: dict[str, Any], message: str
) -> None:
    outcome = omni("train", "--config", config, "--set", f"validation={json.dumps(validation)}")
    assert outcome.code == 2
    assert message in outcome.error


@pytest.mark.slow
@pytest.mark.parametrize("train", [{"lora": {"rank": 4}}, {"weights": ["dit.*"]}], ids=str)
def test_what_was_trained_alone_is_used(omni: Omni, config: Path, studio: Path, train: dict[str, Any]) -> None:
    """A delta with the other model files, a whole transformer in place of one."""
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**content, "train": train, "cache": None}))
    steps = ("--set", "trainer.steps=2", "--set", "trainer.results_every=1")
    trained = omni("train", "--config", config, *steps)
    assert (trained.code, trained.out) == (0, f"out  (trained, 2 steps)\n{HINT}"), trained.err
    inputs = (f"--image={PORTRAIT}", f"--audio={studio / 'speech.wav'}", "--prompt=A man talks.")
    small = ("--seconds=0.36", "--schedule.steps=1", "--audio.silence=0", "--output=talk.mp4")
    Path("out").rename("moved")
    for file in ("moved/run.yaml", "moved/results/step-000001/run.yaml"):
        run = omni("run", f"--config={file}", *inputs, *small)
        assert run.code == 0, run.err


@pytest.mark.slow
def test_a_result_that_cannot_be_used_is_said(omni: Omni, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: DiffusionTask, folder: Path, weights: Any) -> None:
        torch.save({"surprise": torch.zeros(1)}, folder / "pytorch_model.pt")

    monkeypatch.setattr(DiffusionTask, "save", save)
    trained = omni("train", "--config", config, "--set", "trainer.steps=1")
    assert (trained.code, trained.out) == (0, "out  (trained, 1 steps)\n")
    assert f"omni: omni run cannot use the result as it is: {Path('out/pytorch_model.pt').absolute()}" in trained.err


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_a_run_that_was_stopped_goes_on_bit_by_bit(
    omni: Omni, config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert omni("train", "--config", config, "--output", "whole").code == 0
    loss, calls = DiffusionTask.loss, []

    def interrupted(self: DiffusionTask, batch: Any) -> torch.Tensor:
        calls.append(batch)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return loss(self, batch)

    monkeypatch.setattr(DiffusionTask, "loss", interrupted)
    stopped = omni("train", "--config", config)
    assert stopped.code == 130
    assert "omni: stopping after this step; once more stops at once\n" in stopped.err
    assert stopped.err.endswith("omni: interrupted; 2 steps are kept in out; the same command goes on\n")
    assert not (folder / "out" / "pytorch_model.pt").exists()
    assert omni("train", "--config", config).out == f"out  (trained, 4 steps)\n{HINT}"
    assert len(calls) == 4
    assert log(folder / "out") == log(folder / "whole")
    assert equal(weights(folder / "out"), weights(folder / "whole"))
    again = omni("train", "--config", config)
    assert again.out == f"out  (trained before, 4 steps; to train on, add --set trainer.steps=NUMBER)\n{HINT}"
    assert omni("train", "--config", config, "--set", "trainer.steps=5").out == f"out  (trained, 5 steps)\n{HINT}"


@pytest.mark.usefixtures("interruptible")
def test_a_second_interruption_does_not_wait(omni: Omni, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: DiffusionTask, batch: Any) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError

    monkeypatch.setattr(DiffusionTask, "loss", interrupted)
    assert omni("train", "--config", config).code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_an_interruption_keeps_what_several_ranks_have_parts_of(config: Path, folder: Path) -> None:
    """Ctrl-C for the launcher, which passes it on to the ranks."""
    changes = ("units=default+fsdp", "trainer.steps=100000", "trainer.save_every=100000")
    command = [sys.executable, "-m", "omniavatar", "train", "--config", str(config), "--gpus", "2", "--device", "cpu"]
    with (folder / "stderr").open("w+") as errors:
        process = subprocess.Popen(
            [*command, *(f"--set={change}" for change in changes)], stderr=errors, start_new_session=True
        )
        try:
            lines = folder / "out" / "log.jsonl"
            until = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < until and not lines.exists():
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            code = process.wait(60)
        finally:
            process.kill()
        errors.seek(0)
        said = errors.read().splitlines()
    assert code == 130, said
    steps = torch.load(folder / "out" / "state.pt", weights_only=True)["step"]
    assert 1 <= steps < 100000
    assert said[-1] == f"omni: interrupted; {steps} steps are kept in out; the same command goes on"
    assert sum("stopping after this step" in line for line in said) == 1


def test_time_that_is_up_ends_a_call(omni: Omni, config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is one on which every look takes a minute; there are two an update."""
    minutes = count(time.monotonic() + 60, 60)
    clock = SimpleNamespace(monotonic=lambda: next(minutes), perf_counter=time.perf_counter)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "time", clock)
        stopped = omni("train", "--config", config, "--max-minutes", "4.5")
    assert (stopped.code, stopped.out) == (0, "out  (stopped after 2 of 4 steps; the same command goes on)\n")
    assert not (folder / "out" / "pytorch_model.pt").exists()
    assert omni("train", "--config", config).out == f"out  (trained, 4 steps)\n{HINT}"
    assert len(log(folder / "out")) == 4


@pytest.mark.slow
def test_bad_clips_are_passed_over_without_a_cache_too(omni: Omni, config: Path, folder: Path) -> None:
    trained = omni("train", "--config", config, "--set", "cache=null", "--set", "trainer.steps=3")
    assert (trained.code, trained.out) == (0, f"out  (trained, 3 steps)\n{HINT}")
    assert trained.err.count("bad.mp4': passed over: ") == 1
    assert (folder / "out" / "skipped.jsonl").read_text().count("\n") == 1
    refused = omni("train", "--config", config, "--set=cache=null", "--set=data.bad=stop", "--output=strict")
    assert refused.code == 2
    assert "bad.mp4" in refused.err.splitlines()[-1]


def test_a_cache_that_is_there_is_left_alone(omni: Omni, config: Path) -> None:
    again = omni("train", "--config", config, "prepare")
    assert (again.code, again.out) == (0, "cache  (made before; remove it to make it anew)\n")
    Path("cache", "origin.json").unlink()
    assert (
        omni("train", "--config", config, "prepare").error == "cache holds files that are no cache; name another folder"
    )


@pytest.mark.slow
def test_preparing_goes_on_where_it_was_stopped(
    omni: Omni, config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, takes = Preparation.sample, []

    def interrupted(self: Preparation, take: Take) -> Any:
        takes.append(take)
        if len(takes) == 2:
            raise KeyboardInterrupt
        return sample(self, take)

    monkeypatch.setattr(Preparation, "sample", interrupted)
    prepare = ("train", "prepare", "--config", config, "--set", "cache=new")
    stopped = omni(*prepare)
    assert stopped.code == 130
    assert stopped.err.endswith("omni: interrupted; 1 samples are kept in new; the same command goes on\n")
    assert (
        "was not finished; make it with omni train prepare"
        in omni("train", "--config", config, "--set=cache=new").error
    )
    assert omni(*prepare).out == "new  (2 samples, bad clips: 1, see skipped.jsonl)\n"
    assert len(takes) == 3
    assert not (folder / "new" / "unfinished.json").exists()
    made, whole = (
        [s for path in sorted((folder / name).glob("*.s*")) for s in read_shard(path)] for name in ("new", "cache")
    )
    assert [equal(dict(one), dict(other)) for one, other in zip(made, whole, strict=True)] == [True, True]


@pytest.mark.slow
def test_several_processes_prepare_the_same(omni: Omni, config: Path, folder: Path) -> None:
    done = omni(
        "train", "prepare", "--config", config, "--workers", "2", "--set", "cache=other", "--set=data.most_bad=1"
    )
    assert (done.code, done.out) == (0, "other  (2 samples, bad clips: 1, see skipped.jsonl)\n")
    assert len(list((folder / "other").glob("*.safetensors"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("samples.frames=13", "another samples.frames: 9, and now it is 13"),
        ("settings.audio.segment=10", "another units.audio: "),
        ("dtype=bf16", 'another dtype: "float32", and now it is "bfloat16"'),
        ("data.prompt=Hello", "another clips.prompts: "),
        (
            "data.limits.min_frames=20",
            "another clips.limits.min_frames: 17, and now it is 20; set that back",
        ),
        ("variants=2", "another variants: 1, and now it is 2; set that back, or remove the cache and make it anew"),
    ],
)
def test_a_cache_of_other_settings_is_refused(omni: Omni, config: Path, change: str, named: str) -> None:
    for words in (["train"], ["train", "prepare"]):
        outcome = omni(*words, "--config", config, "--set", change)
        assert outcome.code == 2
        assert named in outcome.error


def test_a_cache_of_other_weights_is_refused(omni: Omni, config: Path, studio: Path, folder: Path) -> None:
    shutil.copytree(studio / "models", folder / "models")
    vae = folder / "models" / "Wan2.1-T2V-tiny" / "Wan2.1_VAE.pth"
    state = torch.load(vae, weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, vae)
    outcome = omni("train", "--config", config, "--models-dir", "models")
    assert outcome.code == 2
    assert "the cache cache was made with another weights.vae: " in outcome.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            "--config is missing; name a file, or a packaged configuration: omniavatar-1.3b-lora, omniavatar-14b-lora",
        ),
        (["train.yaml"], "'train.yaml' is no stage of training; give a configuration with --config train.yaml"),
        (["prepar", "--config=train.yaml"], "'prepar' is no stage of training; there is 'prepare', or no word at all"),
        (["--config=tran.yaml"], "the configuration file tran.yaml does not exist"),
        (["--config=omniavatar-1.3-lora"], "did you mean 'omniavatar-1.3b-lora'?"),
        (["--config=train.yaml", "--set=steps"], "--set steps: give KEY=VALUE, such as trainer.steps=2000"),
        (["--config=train.yaml", "--set=a=[1"], "--set a=[1: cannot read the value"),
        (["--config=train.yaml", "--set=output.x=1"], "output.x cannot be set: 'output' has no fields"),
        (["--config=train.yaml", "--set=trainr.steps=1"], "unknown field 'trainr'; did you mean 'trainer'?"),
        (["--config=train.yaml", "--set=trainer.step=1"], "unknown field 'trainer.step'; did you mean 'steps'?"),
        (
            ["--config=train.yaml", "--set=data.limits.size=1"],
            "unknown field 'data.limits.size'; did you mean 'sizes'?",
        ),
        (
            ["--config=train.yaml", "--set=trainer.steps=0"],
            "trainer.steps = 0: input should be greater than or equal to 1",
        ),
        (["--config=train.yaml", "--set=trainer=null"], "trainer = None: "),
        (["--config=train.yaml", "--set=trainer.betas=[2,3]"], "trainer.betas.0 = 2: input should be less than 1"),
        (
            ["--config=train.yaml", "--set=objective.drop.audio=7"],
            "objective.drop.audio = 7: input should be less than",
        ),
        (
            ["--config=train.yaml", "--set=objective.drop.audio=-1"],
            "objective.drop.audio = -1: input should be greater",
        ),
        (
            ["--config=train.yaml", "--set=objective.first=0.6", "--set=objective.last=0.5"],
            "there is no noise level between first = 0.6 and last = 0.5",
        ),
        (["--config=train.yaml", "--set=dtype=fp16"], "dtype fp16 cannot be trained with; choices: bf16, fp32"),
        (
            ["--config=train.yaml", "--set=dtype=bf16", "--set=trainer.precision=fp32"],
            "trainer.precision fp32 does not go with networks in bf16; leave it at auto, or give --set dtype=fp32",
        ),
        (["--config=train.yaml", "--max-minutes=0"], "trainer.max_minutes = 0.0: input should be greater than 0"),
        (
            ["--config=train.yaml", "--set=settings.eulr.steps=1"],
            "settings: unknown unit 'eulr'; did you mean 'euler'?",
        ),
        (["--config=train.yaml", "--set=objective.drop.sound=0.1"], "objective.drop names the condition 'sound'"),
        (["--config=train.yaml", "--set=models=[a.pth]"], "no model at "),
        (
            ["--config=train.yaml", "--set=cache=none-yet"],
            "none-yet holds no cache, or one that was not finished; make it",
        ),
        (["--config=train.yaml", "--device=cuda:7"], "there is no device 'cuda:7' here; choices: auto, cpu"),
        (
            ["prepare", "--config=train.yaml", "--set=cache=null"],
            "the configuration names no cache; add: cache: FOLDER",
        ),
        (
            ["prepare", "--config=train.yaml", "--set=cache=new", "--set=data.path=away"],
            "cannot read the list of clips",
        ),
        (["prepare", "--config=train.yaml", "--set=cache=new", "--set=data.path=null"], "data.path is missing; name a"),
    ],
)
def test_mistakes_are_one_line(omni: Omni, config: Path, arguments: list[str], message: str) -> None:
    outcome = omni("train", *arguments)
    assert outcome.code == 2
    assert message in outcome.error


def test_an_empty_cache_is_one_line(omni: Omni, config: Path) -> None:
    for shard in Path("cache").glob("*.safetensors"):
        shard.unlink()
    assert omni("train", "--config", config).error == (
        "the cache cache has no samples; make it with omni train prepare"
    )


def test_a_checkpoint_of_other_weights_is_one_line(omni: Omni, config: Path) -> None:
    assert omni("train", "--config", config, "--set", "trainer.steps=1").code == 0
    other = omni("train", "--config", config, "--set", "train.lora.rank=8")
    assert other.code == 2
    assert other.err.endswith("out/state.pt is a checkpoint of other weights; give another folder, or remove it\n")


def test_a_checkpoint_with_another_base_is_refused_by_its_name(omni: Omni, config: Path, studio: Path) -> None:
    call = ("train", "--config", config, "--set", "trainer.steps=1")
    assert omni(*call).code == 0
    other = omni(*call, "--set", "train.lora.alpha=64")
    assert other.code == 2
    assert "out/state.pt is a checkpoint with another train.lora.alpha: 2, and now it is 64; give another" in other.err
    shutil.copytree(studio / "models", "models")
    path = next(Path("models", "Wan2.1-T2V-tiny").glob("*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    moved = omni(*call, "--models-dir", "models")
    assert "out/state.pt is a checkpoint with another weights.dit: " in moved.err


def test_networks_in_bf16_are_trained_in_bf16(omni: Omni, config: Path, folder: Path) -> None:
    changes = ("--set", "dtype=bf16", "--set", "cache=null", "--set", "trainer.steps=2")
    assert omni("train", "--config", config, *changes).out == f"out  (trained, 2 steps)\n{HINT}"
    assert all(line["skipped"] == 0 for line in log(folder / "out"))


def test_a_run_says_what_it_has_skipped(omni: Omni, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, calls = DiffusionTask.loss, []

    def faulty(self: DiffusionTask, batch: Any) -> torch.Tensor:
        calls.append(batch)
        return loss(self, batch) * (torch.nan if len(calls) == 2 else 1)

    monkeypatch.setattr(DiffusionTask, "loss", faulty)
    done = omni("train", "--config", config)
    assert done.out == f"out  (trained, 4 steps, 1 of them skipped: their gradients were no numbers)\n{HINT}"
    assert all(value.isfinite().all() for value in weights(Path("out")).values())


def test_a_folder_belongs_to_one_run_at_a_time(omni: Omni, config: Path, folder: Path) -> None:
    with claimed(folder / "out", "output"):
        taken = omni("train", "--config", config)
    assert (taken.code, taken.error) == (
        2,
        "another run works in 'out'; wait until it has ended, or name another output",
    )
    assert omni("train", "--config", config, "--quiet").code == 0


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_loaded(
    omni: Omni, config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omniavatar.cli.train.samples_of", None)
    (folder / "file").write_text("")
    for output in ("file", "file/out"):
        refused = omni("train", "--config", config, "--output", output)
        assert (refused.code, refused.error) == (2, f"output '{output}' is a file or lies in one; name a folder")
    assert "cannot write in output '/proc/out': " in omni("train", "--config", config, "--output", "/proc/out").error


def test_nothing_usable_is_one_line(omni: Omni, config: Path, folder: Path) -> None:
    """And when the clips are repaired, they are tried again."""
    clips = folder / "clips"
    clips.mkdir()
    (clips / "a.mp4").write_text("no video")
    call = ("train", "prepare", "--config", config, "--set=cache=new", f"--set=data.path={clips}")
    outcome = omni(*call)
    assert (outcome.code, outcome.err.count("\n")) == (2, 2)
    assert "1 of 1 clips cannot be used: 1 unreadable; all are named in 'new/skipped.jsonl'" in outcome.err
    shutil.copy(Path(yaml.safe_load(config.read_text())["data"]["path"]) / "1.mp4", clips / "a.mp4")
    assert omni(*call).out == "new  (1 samples)\n"


def test_ranks_get_the_options_as_they_are_written(omni: Omni, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def start(*given: Any) -> int:
        started.append(given)
        return 7

    monkeypatch.setattr("omniavatar.cli.train.start_ranks", start)
    options = (
        "--config",
        config,
        "--gpus",
        "2",
        "--device",
        "cpu",
        "--max-minutes",
        "3",
        "--set",
        "batch=2",
        "--quiet",
    )
    assert omni("train", *options).code == 7
    written = ["--device=cpu", "--max-minutes=3.0", "--gpus=2", "--timeout=600.0", "--set=batch=2", "--quiet"]
    assert started == [(2, "train", [f"--config={config}", *written])]


def test_the_help_says_what_to_do(omni: Omni) -> None:
    text = omni("train", "--help").out
    assert "Usage: omni train [OPTIONS] [prepare]" in text
    assert "omni train prepare --config FILE    run the networks that stay as they are over all clips, once\n" in text
    assert "omni docs training" in text
    assert max(map(len, text.splitlines())) <= 120


def test_tensorboard_is_written_where_it_is_installed(
    omni: Omni, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            written.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, step))

        def flush(self) -> None: ...

        def close(self) -> None:
            written.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert omni("train", "--config", config, "--set", "trainer.steps=1", "--quiet").code == 0
    assert omni("train", "--config", config, "--set", "trainer.steps=2", "--quiet").code == 0
    names = ("loss", "gradient", "learning_rate", "seconds")
    first, second = ([(name, step) for name in names] for step in (1, 2))
    folder = "out/tensorboard"
    assert written == [(folder, 1), *first, "closed", (folder, 2), *second, "closed"]


def test_tensorboard_is_not_missed(omni: Omni, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert omni("train", "--config", config, "--set", "trainer.steps=1", "--quiet") == Outcome(0, "", "")
    assert not Path("out", "tensorboard").exists()


def parsed(config: Path | str) -> DiffusionConfig:
    return read(
        {
            **dict.fromkeys(("models_dir", "output", "device", "gpus", "max_minutes")),
            "config": str(config),
            "changes": (),
        }
    )


@pytest.mark.parametrize("name", sorted(packaged_configs("train")))
def test_packaged_configurations_are_sound(name: str) -> None:
    assert parsed(name).models


@pytest.mark.parametrize("name", ["omniavatar-1.3b-lora", "omniavatar-14b-lora"])
def test_what_packaged_configurations_have_in_comments_is_sound(name: str, folder: Path, catalog: Catalog) -> None:
    """And the models are those of `omni run`, in its order; the settings those of units that there are."""
    text = packaged_configs("train")[name].read_text()
    _, body = text.split("\n\n", 1)
    (folder / "all.yaml").write_text(re.sub(r"^# (start:|validation:|  .*)$", r"\1", body, flags=re.MULTILINE))
    config = parsed(folder / "all.yaml")
    assert config.start["dit"].config == {"in_dim": 33}
    assert config.validation is not None
    published = parse_config(read_yaml(find_config(name.removesuffix("-lora"))), name)
    assert {entry.path: entry.repo for entry in config.models} == {e.path: e.repo for e in published.models}
    plan = plan_of_videos(build_plan(config.units, catalog, config.settings), config.validation.settings)
    assert config.settings.keys() <= {unit.name for unit in plan.units}
    sizes = config.data.limits.sizes
    assert [list(size) for size in sizes] == config.settings["reference-image"]["sizes"]
    frames = [config.samples.fitted(WAN).at(*size).frames for size in sizes]
    assert frames == [105, 57, 105]
    layers = AudioAdapter(**config.start["audio_adapter"].config)
    assert (layers.entry_blocks[0], layers.audio_proj.proj.in_features) == (2, 4 * 10752)


def test_packaged_configurations_are_found_by_name(folder: Path) -> None:
    path = packaged_configs("train")["omniavatar-14b-lora"]
    names = ("omniavatar-14b-lora", "train/omniavatar-14b-lora.yaml", "configs/train/omniavatar-14b-lora.yaml")
    assert [find_config(name, "train") for name in names] == [path] * 3
