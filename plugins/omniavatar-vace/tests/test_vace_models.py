"""The checkpoint table against the network, and the command line with files in the layout of the published ones."""

from __future__ import annotations

import json
import math
import shutil
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omniavatar_vace.network import Vace
from PIL import Image
from safetensors.torch import load_file

from omniavatar.checkpoints import Bundle, Header, Registry, Row, fingerprint
from omniavatar.checkpoints.formulas import Formulas
from omniavatar.checkpoints.nearest import expected_shapes
from omniavatar.checkpoints.tables import read_table
from omniavatar.cli import run_cli
from omniavatar.errors import CheckpointError
from omniavatar.media.video import probe_video, read_video
from omniavatar.models.wan_dit import WanDiT
from omniavatar.resources import asset
from omniavatar.testing.tiny import DIT, save, tiny_file, weights, write_original
from tests.media.samples import write_lossless
from tests.models.networks import randomized

TABLE = resources("omniavatar_vace") / "vace.toml"
ROWS = read_table(TABLE)
BASE = {**DIT, "in_dim": 16}
BRANCH: dict[str, Any] = {
    **{key: DIT[key] for key in ("dim", "ffn_dim", "num_heads", "eps", "patch_size")},
    "in_dim": 96,
    "layers": [0, 3],
}
TINY = [part for name in ("vae", "text_encoder") for part in ("--model", tiny_file(f"{name}.safetensors"))]
SMALL = (
    "--seconds",
    "0.36",
    "--schedule.steps",
    "1",
    "--fixed-frames.window-frames",
    "9",
    "--fixed-frames.overlap",
    "5",
)


@pytest.mark.parametrize("row", [row for row in ROWS if row.hash], ids=lambda row: row.name)
def test_the_networks_of_a_row_have_the_published_hash(row: Row) -> None:
    shapes = expected_shapes(row)
    assert fingerprint(shapes) == row.hash
    assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (row.num_keys, row.num_params)
    assert not row.unclaimed(shapes)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VACE model, and a tiny OmniAvatar as it is published."""
    folder = tmp_path_factory.mktemp("pretrained")
    write_original(folder)
    base: dict[str, torch.Tensor] = {}
    for shard in sorted((folder / "Wan2.1-T2V-tiny").glob("*.safetensors")):
        base |= load_file(shard)
    branch = weights(randomized(Vace(**BRANCH)))
    (folder / "VACE-tiny").mkdir()
    save(folder / "VACE-tiny" / "diffusion_pytorch_model.safetensors", {**base, **branch})
    (folder / "VACE-tiny" / "config.json").write_text(json.dumps({"num_heads": DIT["num_heads"]}))
    return folder


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a video can be made from."""
    folder = tmp_path_factory.mktemp("controls")
    generator = np.random.default_rng(0)
    write_lossless(folder / "pose.mkv", generator.integers(0, 256, (13, 32, 32, 3), np.uint8))
    for name in ("mask", "me", "you"):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.builtin([TABLE])


def test_a_model_of_any_size_is_recognised(pretrained: Path, registry: Registry) -> None:
    models = Bundle.open([pretrained / "VACE-tiny"], registry)
    assert models.detections[0].row.name == "Wan-VACE"
    assert models.roles == {"dit", "vace"}
    assert models.config("vace") == {**BRANCH, "patch_size": [1, 2, 2]}
    assert models.config("dit") == {**BASE, "patch_size": [1, 2, 2]}
    for role, network in (("dit", WanDiT), ("vace", Vace)):
        assert isinstance(models.load(role), network)


def test_without_config_heads_are_of_128(tmp_path: Path, registry: Registry) -> None:
    numbers = {"dim": 256, "num_heads": 2}
    state = {**weights(WanDiT(**{**BASE, **numbers})), **weights(Vace(**{**BRANCH, **numbers}))}
    save(tmp_path / "vace.safetensors", state)
    models = Bundle.open([tmp_path], registry)
    assert models.config("dit")["num_heads"] == models.config("vace")["num_heads"] == 2


def vace_file(folder: Path, layers: list[int], **settings: Any) -> Path:
    """A model of 6 blocks with a branch beside these, and what config.json says."""
    branch = weights(randomized(Vace(**{**BRANCH, "layers": layers})))
    save(folder / "vace.safetensors", {**weights(WanDiT(**BASE)), **branch})
    (folder / "config.json").write_text(json.dumps({"num_heads": DIT["num_heads"], **settings}))
    return folder


@pytest.mark.parametrize("layers", [[0, 1, 4, 5], [1, 3, 5]])
def test_the_layers_of_a_branch_stand_in_the_configuration(
    tmp_path: Path, registry: Registry, layers: list[int]
) -> None:
    models = Bundle.open([vace_file(tmp_path, layers, vace_layers=layers)], registry)
    assert models.config("vace")["layers"] == layers
    branch = models.load("vace")
    assert isinstance(branch, Vace)
    assert branch.layers == tuple(layers)


def test_layers_at_other_distances_are_not_guessed(tmp_path: Path, registry: Registry) -> None:
    models = Bundle.open([vace_file(tmp_path, [0, 1, 3, 5])], registry)
    with pytest.raises(
        CheckpointError, match=r"is not known.*; put the config\.json .* 'vace_layers', beside"
    ) as caught:
        models.load("vace")
    assert "\n" not in str(caught.value)
    assert isinstance(models.load("dit"), WanDiT)


@pytest.mark.parametrize("said", [[0, 1, 2], [0], [0, 1.5, 3], "0, 1", {"0": 1}])
def test_layers_that_do_not_go_with_the_file(tmp_path: Path, registry: Registry, said: Any) -> None:
    models = Bundle.open([vace_file(tmp_path, [0, 3], vace_layers=said)], registry)
    with pytest.raises(CheckpointError) as caught:
        models.load("vace")
    assert "\n" not in str(caught.value)


def test_a_published_row_follows_the_configuration_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not one that lies where the program was started."""
    row = next(row for row in ROWS if row.name == "Wan2.1-VACE-1.3B")
    (tmp_path / "config.json").write_text('{"vace_layers": [0, 1]}')
    said = Formulas(Header((), {}, {}), tmp_path).evaluate(row.components["vace"].config)
    assert said["layers"] == [0, 1]
    monkeypatch.chdir(tmp_path)
    assert fingerprint(expected_shapes(row)) == row.hash


def test_two_experts_have_two_branches(pretrained: Path, registry: Registry) -> None:
    folder = pretrained / "VACE-tiny"
    models = Bundle.open([folder, folder], registry, [None, "dit2"])
    assert models.roles == {"dit", "vace", "dit2", "vace2"}
    assert isinstance(models.load("vace2"), Vace)


def run(folder: Path, *arguments: str | Path) -> np.ndarray:
    """The frames that the command line makes, with a tiny model's other networks."""
    output = folder / "out.mp4"
    code = run_cli([str(part) for part in ("run", *TINY, *arguments, *SMALL, "--quiet", "-o", output)])
    assert code == 0
    return read_video(output)


@pytest.mark.slow
def test_a_controlled_video_by_command(pretrained: Path, controls: Path, tmp_path: Path) -> None:
    """The size is that of the control video."""
    plan = ("--units", "vace-video", "--model", pretrained / "VACE-tiny", "--vace.pixels", "1024")
    control = ("--control-video", controls / "pose.mkv", "--control-mask", controls / "mask.png")
    references = ("--reference-images", f"[{controls / 'me.png'}, {controls / 'you.png'}]")
    full = run(tmp_path, *plan, *control, *references, "--vace.scale", "0.8")
    assert full.shape == (9, 32, 32, 3)
    less = run(tmp_path, *plan, *control, "--reference-images", controls / "me.png")
    assert not np.array_equal(full, less)


@pytest.mark.slow
def test_an_avatar_by_command(pretrained: Path, controls: Path, tmp_path: Path) -> None:
    """What OmniAvatar trained (LoRA, condition channels, sound) goes on the VACE model as on the one it extends."""
    given = ("--model", pretrained / "VACE-tiny", "--model", pretrained / "OmniAvatar-tiny", "--size", "32x32")
    audio = ("--model", pretrained / "wav2vec2-tiny", "--audio", asset("demo", "speech.flac"))
    common = (*given, *audio, "--image", controls / "me.png")
    control = ("--control-video", controls / "pose.mkv", "--reference-images", controls / "you.png")
    both = run(tmp_path, "--units", "default+vace+teacache", *common, *control)
    assert both.shape == (9, 32, 32, 3)
    assert probe_video(tmp_path / "out.mp4").has_audio
    assert not np.array_equal(both, run(tmp_path, "--units", "default+vace+teacache", *common))


def test_what_to_follow_is_all_that_must_be_given(pretrained: Path, controls: Path, tmp_path: Path) -> None:
    """One folder with all networks, as published; no prompt, portrait or sound."""
    folder = tmp_path / "VACE-all"
    shutil.copytree(pretrained / "VACE-tiny", folder)
    for name in ("vae.safetensors", "text_encoder.safetensors"):
        shutil.copy(tiny_file(name), folder)
    shutil.copytree(tiny_file("tokenizer"), folder / "tokenizer")
    words = ("run", "--units", "vace-video", "--model", folder, "--control-video", controls / "pose.mkv")
    code = run_cli(
        [str(word) for word in (*words, "--vace.pixels", "1024", *SMALL[2:], "--quiet", "-o", tmp_path / "o.mp4")]
    )
    assert code == 0
    assert len(read_video(tmp_path / "o.mp4")) == 13


def test_layers_that_are_not_known_are_named_before_anything_is_loaded(
    pretrained: Path, controls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = vace_file(tmp_path, [0, 1, 3, 5])
    plan = ["run", "--units", "vace-video", "--prompt", "hi", "--model", folder, *TINY, "--size", "32x32"]
    words = [str(part) for part in (*plan, "--control-video", controls / "pose.mkv", "-o", tmp_path / "out.mp4")]
    assert run_cli(words) == 2
    error = capsys.readouterr().err
    assert "which blocks of the transformer the VACE branch goes beside is not known" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.mp4").exists()
    settings = {"num_heads": DIT["num_heads"], "vace_layers": [0, 1, 3, 6]}
    (folder / "config.json").write_text(json.dumps(settings))
    assert run_cli([*words, "--quiet"]) == 2
    assert "goes up to block 6 and the transformer has 6 blocks" in capsys.readouterr().err


def test_bad_files_are_named_before_anything_is_loaded(
    pretrained: Path, controls: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["run", "--units", "vace-video", "--prompt", "hi", "--model", pretrained / "VACE-tiny"]
    for flag, path, reason in (
        ("--control-video", "no.mp4", "video 'no.mp4' does not exist"),
        ("--control-mask", str(pretrained / "VACE-tiny" / "config.json"), "is not a media file that ffmpeg can read"),
        ("--reference-images", "[no.png]", "image 'no.png' does not exist"),
    ):
        assert run_cli([str(part) for part in (*plan, *TINY, flag, path)]) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
