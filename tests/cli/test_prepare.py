"""`omni train prepare`: what becomes of clips, caches and processes when something is in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from omniavatar.cli import prepare
from omniavatar.training.folder import claimed
from omniavatar.training.preparation import Preparation
from omniavatar.training.samples import places, samples_in
from omniavatar.training.takes import Take
from tests.cli.conftest import Omni
from tests.cli.test_train import cache, config, configuration, one_thread, studio

__all__ = ["cache", "config", "one_thread", "studio"]
CLIPS = {"path": "clips", "limits": {"sizes": [[32, 32]], "quietest": None}}
"""Those of the fixture `clips`."""
CACHED = "cache  (made before; remove it to make it anew)\n"


@pytest.fixture
def clips(studio: Path, folder: Path) -> Path:
    """A copy of the two good clips, to be changed, in the working folder."""
    shutil.copytree(studio / "clips", folder / "clips")
    (folder / "clips" / "bad.mp4").unlink()
    return folder / "clips"


def made(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The samples of a cache by key."""
    shards = folder.glob("*.safetensors")
    return {
        key: dict(place.read())
        for path in shards
        for key, (_, place) in zip(samples_in(path), places(path), strict=True)
    }


def test_a_cache_knows_its_clips(omni: Omni, studio: Path, clips: Path, folder: Path) -> None:
    """It is refused when one is added or gets another prompt, and goes on without any; it is told from no other place,
    and how bad clips are taken does not matter."""
    path = configuration(studio, folder, data=CLIPS)
    call = ("train", "prepare", "--config", path)
    assert omni(*call).out == "cache  (2 samples)\n"
    same = ("--set=data.bad=stop", "--set=data.most_bad=0.1", f"--set=data.path={clips}")
    assert omni(*call, *same).out == CACHED
    (clips / "1.txt").write_text("A man talks.")
    assert "the cache cache was made with another clips.prompts: " in omni(*call).error
    (clips / "1.txt").unlink()
    shutil.copy(clips / "1.mp4", clips / "2.mp4")
    assert (
        "another clips.count: 2, and now it is 3; set that back, or remove the cache and make it" in omni(*call).error
    )
    clips.rename(folder / "away")
    assert omni("train", "--config", path, "--set=trainer.steps=1", "--quiet").code == 0


def test_other_weights_to_start_from_make_another_cache(omni: Omni, config: Path, folder: Path) -> None:
    save_file({"any": torch.ones(2)}, folder / "v1.safetensors")
    outcome = omni("train", "--config", config, "--set=start.vae.weights=v1.safetensors")
    assert "another weights.vae: " in outcome.error


def test_audio_layers_that_no_file_has_can_stay_as_they_are(omni: Omni, config: Path) -> None:
    """With LoRA alone they are among what is prepared."""
    outcome = omni("train", "prepare", "--config", config, "--set=train.weights=[]", "--set=cache=new")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("error", [ValueError("odd"), None])
def test_what_goes_wrong_in_the_networks_is_the_clips_fault(
    omni: Omni, config: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """An error, or numbers that are not finite: named, counted, and kept out of the cache; without a cache too."""
    sample = Preparation.sample

    def broken(self: Preparation, take: Take) -> Any:
        if take.prompt != "A woman talks.":
            return sample(self, take)
        if error is not None:
            raise error
        vae = self.engine.model("vae")
        whole = vae.encode
        monkeypatch.setattr(vae, "encode", lambda *given, **options: whole(*given, **options) * float("nan"))
        try:
            return sample(self, take)
        finally:
            monkeypatch.setattr(vae, "encode", whole)

    monkeypatch.setattr(Preparation, "sample", broken)
    any_number = "--set=data.most_bad=1"
    outcome = omni("train", "prepare", "--config", config, "--set=cache=new", any_number)
    assert (outcome.code, outcome.out) == (0, "new  (1 samples, bad clips: 2, see skipped.jsonl)\n"), outcome.err
    assert "0.mp4': passed over: " + ("ValueError: odd" if error else "the networks make of it 'clean' ") in outcome.err
    assert all(value.isfinite().all() for one in made(Path("new")).values() for value in one.values())
    live = omni("train", "--config", config, "--set=cache=null", "--set=trainer.steps=4", any_number)
    assert (live.code, live.err.count("0.mp4': passed over: ")) == (0, 1)


def test_a_sample_that_was_made_is_not_made_again(
    omni: Omni, studio: Path, clips: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip found bad in between does not shift the others, and what is there is not even read."""
    path = configuration(studio, folder, data=CLIPS, variants=3)
    call = ("train", "prepare", "--config", path)
    sample, taken = Preparation.sample, []

    def counted(self: Preparation, take: Take) -> Any:
        taken.append(take)
        if len(taken) == 4:
            raise KeyboardInterrupt
        if len(taken) == 5:
            raise ValueError("odd")
        return sample(self, take)

    monkeypatch.setattr(Preparation, "sample", counted)
    assert omni(*call).code == 130
    assert set(made(folder / "cache")) == {"0/0", "0/1", "1/0"}
    assert omni(*call, "--set=data.most_bad=0.5").out == "cache  (4 samples, bad clips: 1, see skipped.jsonl)\n"
    assert set(made(folder / "cache")) == {"0/0", "0/1", "1/0", "0/2"}
    assert len(taken) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus=2"], "omni train prepare takes no --gpus; --workers NUMBER shares the clips out over processes"),
        (["--max-minutes=2"], "omni train prepare takes no --max-minutes; stop it with Ctrl-C, the same command goes"),
        (["--set=cache=train.yaml"], "cache 'train.yaml' is a file or lies in one; name a folder"),
        (["--set=cache=train.yaml/x"], "cache 'train.yaml/x' is a file or lies in one; name a folder"),
        (["--set=cache=new", "--set=data.generated.x.clips=2"], "give path or generated, not both; the other is null"),
        (
            ["--set=cache=new", "--set=data.path=null", "--set=data.generated={unheard-of: {clips: 2}}"],
            "data.generated names 'unheard-of', which no installed package brings",
        ),
        (
            ["--set=cache=new", "--set=data.limits.min_frames=4"],
            "min_frames = 4: input should be greater than or equal",
        ),
    ],
)
def test_mistakes_are_one_line(
    omni: Omni, config: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any network is loaded."""
    monkeypatch.setattr(Preparation, "__init__", None)
    outcome = omni("train", "prepare", "--config", config, *words)
    assert outcome.code == 2
    assert message in outcome.error


def test_ranks_do_not_prepare(omni: Omni, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    error = omni("train", "prepare", "--config", config, "--set=cache=new").error
    assert error == "omni train prepare runs without torchrun; --workers NUMBER shares the clips out"


def test_one_works_in_a_cache_at_a_time(omni: Omni, config: Path) -> None:
    with claimed(Path("new"), "cache"):
        outcome = omni("train", "prepare", "--config", config, "--set=cache=new")
    assert outcome.error == "another run works in 'new'; wait until it has ended, or name another cache"
    assert omni("train", "prepare", "--config", config, "--set=cache=new").code == 0


@pytest.mark.slow
def test_processes_that_are_stopped_keep_what_they_made(
    omni: Omni, studio: Path, clips: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one process goes on with what two began; the samples are those of one."""
    path = configuration(studio, folder, data=CLIPS, variants=12)
    call = ("train", "prepare", "--config", path)
    shown = prepare.Progress.__call__

    def interrupted(self: prepare.Progress) -> None:
        shown(self)
        if self.done == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare.Progress, "__call__", interrupted)
        stopped = omni(*call, "--workers=2")
    assert stopped.code == 130
    assert "omni: stopping after the samples in work; once more stops at once\n" in stopped.err
    count = len(made(folder / "cache"))
    assert 3 <= count < 24
    assert stopped.err.endswith(f"omni: interrupted; {count} samples are kept in cache; the same command goes on\n")
    assert omni(*call).out == "cache  (24 samples)\n"
    assert omni(*call, "--set=cache=alone").code == 0
    both, alone = made(folder / "cache"), made(folder / "alone")
    assert both.keys() == alone.keys()
    torch.testing.assert_close(both, alone)


@pytest.mark.slow
def test_how_many_are_bad_is_judged_over_all_processes(omni: Omni, studio: Path, clips: Path, folder: Path) -> None:
    """All clips of the second process are bad, which is not too many; with one more it is."""
    (clips / "1.mp4").write_text("no video")
    path = configuration(studio, folder, data=CLIPS)
    call = ("train", "prepare", "--config", path, "--workers=2")
    assert omni(*call).out == "cache  (1 samples, bad clips: 1, see skipped.jsonl)\n"
    (line,) = (folder / "cache" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["video"].endswith("1.mp4")
    strict = omni(*call, "--set=cache=new", "--set=data.most_bad=0.4")
    assert strict.code == 2
    assert "1 of 2 clips cannot be used: 1 unreadable; all are named in 'new/skipped.jsonl'" in strict.err
