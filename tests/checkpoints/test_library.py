from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from omniavatar.checkpoints import Registry, UnknownCheckpoint, library
from omniavatar.checkpoints.library import Library, Model, Need, snapshot, trees
from omniavatar.errors import CheckpointError
from omniavatar.resources import registry_tables
from tests.checkpoints.tiny import dit_state, write_base, write_delta, write_safetensors, write_table

NEED = Need(rows=("tiny",))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry([*registry_tables(), write_table(tmp_path_factory.mktemp("table") / "tiny.toml")])


def write(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    return write_safetensors(path, {name: tensor.to(dtype) for name, tensor in dit_state().items()})


def cached(cache: Path, repo: str, name: str, commit: str = "c0ffee", branch: str | None = "main") -> Path:
    """A file in a cache as huggingface_hub makes it: the blob, a link to it in a snapshot, the branch."""
    repository = cache / f"models--{repo.replace('/', '--')}"
    blob = write(repository / "blobs" / "x.safetensors").rename(repository / "blobs" / f"{'ab' * 31}{commit[:2]}")
    link = repository / "snapshots" / commit / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    if branch is not None:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
    return link


def names(models: list[Model]) -> list[str]:
    return [model.name for model in models]


def test_models_are_found_by_content_whatever_they_are_called(tmp_path: Path, registry: Registry) -> None:
    write(tmp_path / "deep" / "down" / "whatever.safetensors")
    write_delta(tmp_path / "delta")
    write_safetensors(tmp_path / "stranger.safetensors", {"a": torch.zeros(2)})
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    (tmp_path / "notes.txt").write_text("no model")
    found = {model.row.name: model for model in Library([tmp_path], registry).models()}
    assert {name: model.name for name, model in found.items()} == {
        "tiny": "deep/down/whatever.safetensors",
        "OmniAvatar": "delta/pytorch_model.pt",
    }
    assert found["tiny"].source == str(tmp_path / "deep" / "down" / "whatever.safetensors")
    assert (found["tiny"].dtype, found["tiny"].bits) == ("float32", 32)


def test_a_comfyui_installation_with_further_folders(tmp_path: Path, registry: Registry) -> None:
    comfy = tmp_path / "ComfyUI"
    write(comfy / "models" / "diffusion_models" / "wan" / "a.safetensors")
    write(comfy / "models" / "upscale_models" / "no.safetensors")
    write(comfy / "custom_nodes" / "x" / "no.safetensors")
    write(comfy / "output" / "no.safetensors")
    write(tmp_path / "big" / "unet" / "b.safetensors")
    write(tmp_path / "big" / "more" / "c.safetensors")
    write(tmp_path / "big" / "elsewhere" / "no.safetensors")
    text = "a111:\n  base_path: ../big\n  unet: unet\n  is_default: true\n  diffusion_models: |\n    unet\n    more\n"
    (comfy / "extra_model_paths.yaml").write_text(text)
    for root in (comfy, comfy / "models"):
        found = Library([root], registry).serving(NEED)
        assert [model.files[0].name for model in found] == ["a.safetensors", "b.safetensors", "c.safetensors"]
    (comfy / "extra_model_paths.yaml").write_text("a: [")
    assert trees(comfy) == [comfy / "models"]


def test_the_cache_of_hugging_face_by_its_snapshots(tmp_path: Path, registry: Registry) -> None:
    cached(tmp_path, "some/net", "sub/net.safetensors", "0000", branch=None)
    new = cached(tmp_path, "some/net", "sub/net.safetensors", "1111")
    found = Library([tmp_path], registry).serving(NEED)
    # Each has a blob of its own; that of the branch comes first, and no blob is listed beside its snapshots.
    assert names(found) == [f"models--some--net/snapshots/{commit}/sub/net.safetensors" for commit in ("1111", "0000")]
    assert snapshot(tmp_path, "some/net") == new.parents[1]
    assert snapshot(tmp_path, "some/other") is None


def test_folders_of_wan2gp_that_its_settings_name(tmp_path: Path, registry: Registry) -> None:
    write(tmp_path / "Wan2GP" / "ckpts" / "a.safetensors")
    write(tmp_path / "disk" / "b.safetensors")
    settings = {"checkpoints_paths": ["ckpts", "../disk"]}
    (tmp_path / "Wan2GP" / "wgp_config.json").write_text(json.dumps(settings))
    found = Library([tmp_path / "Wan2GP"], registry).serving(NEED)
    assert {model.files[0].name for model in found} == {"a.safetensors", "b.safetensors"}


def test_shards_and_folders_are_one_model(tmp_path: Path, registry: Registry) -> None:
    state = dit_state()
    half = len(state) // 2
    items = list(state.items())
    shards = [f"net-0000{n}-of-00002.safetensors" for n in (1, 2)]
    write_safetensors(tmp_path / "net" / shards[0], dict(items[:half]))
    write_safetensors(tmp_path / "net" / shards[1], dict(items[half:]))
    (found,) = Library([tmp_path], registry).models()
    assert found.source == tuple(str(tmp_path / "net" / shard) for shard in shards)
    (tmp_path / "net" / shards[0]).unlink()
    assert list(Library([tmp_path], registry).models()) == []


@pytest.mark.parametrize(
    ("asked", "order"),
    [
        ("bfloat16", ["bf16", "fp16", "fp32", "fp8"]),
        ("float16", ["fp16", "bf16", "fp32", "fp8"]),
        ("float32", ["fp32", "bf16", "fp16", "fp8"]),
    ],
)
def test_order_by_precision(tmp_path: Path, registry: Registry, asked: str, order: list[str]) -> None:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}
    for name, dtype in kinds.items():
        write(tmp_path / f"{name}.safetensors", dtype)
    assert [model.files[0].stem for model in Library([tmp_path], registry).serving(NEED, asked)] == order


def test_the_order_of_folders_is_stronger_than_precision(tmp_path: Path, registry: Registry) -> None:
    write(tmp_path / "one" / "a.safetensors", torch.float8_e4m3fn)
    write(tmp_path / "two" / "b.safetensors", torch.bfloat16)
    library = Library([tmp_path / "one", tmp_path / "two"], registry)
    assert [model.files[0].stem for model in library.serving(NEED)] == ["a", "b"]


@pytest.mark.parametrize(
    ("need", "fits"),
    [
        ({"rows": ("ti*",)}, True),
        ({"rows": ("other",)}, False),
        ({"rows": ("tiny",), "config": {"dim": 24, "num_layers": 6}}, True),
        ({"rows": ("tiny",), "config": {"dim": 32}}, False),
        ({"rows": ("tiny",), "named": ("*WAN2[._]1*",)}, True),
        ({"rows": ("tiny",), "named": ("*2.2*",)}, False),
        ({"rows": ("tiny",), "not_named": ("*distill*",)}, True),
        ({"rows": ("tiny",), "not_named": ("*t2v*",)}, False),
    ],
)
def test_what_serves(tmp_path: Path, registry: Registry, need: dict[str, Any], fits: bool) -> None:
    write(tmp_path / "x" / "Wan2_1-T2V.safetensors")
    assert bool(Library([tmp_path], registry).serving(Need(**need))) is fits
    assert Library([tmp_path], registry).serving(Need(**need), by_name=False) or "named" not in str(need)


def test_headers_are_read_once_for_each_state_of_a_file(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_base(tmp_path)
    write(tmp_path / "never.safetensors")
    read: list[str] = []
    detect = registry.detect_parts

    def noted(files: tuple[Path, ...], **options: Any) -> Any:
        read.append(files[0].name)
        return detect(files, **options)

    monkeypatch.setattr(registry, "detect_parts", noted)
    library = Library([tmp_path], registry)
    need = Need(rows=("tiny",), named=("*base*",))
    for _ in range(3):
        assert len(library.serving(need)) == 1
    assert read == ["base.safetensors"]  # a file whose name does not suit is not read at all
    os.utime(file, ns=(1, 1))
    assert len(library.serving(need)) == 1
    assert len(read) == 2


def test_links_in_a_circle_and_what_cannot_be_read(tmp_path: Path, registry: Registry) -> None:
    write_base(tmp_path / "a")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "bad.safetensors.index.json").write_text('{"weight_map": {"x": "../secret.safetensors"}}')
    assert names(list(Library([tmp_path], registry).models())) == ["a/base.safetensors"]


def test_a_huge_tree_is_left_with_a_word(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MOST", 20)
    for number in range(30):
        (tmp_path / "b" / f"{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "b" / f"{number}.txt").touch()
    write_base(tmp_path / "a")
    said: list[str] = []
    assert len(list(Library([tmp_path], registry, said.append).models())) == 1
    assert said == [f"{tmp_path} holds more than 20 files; name the folders below it that hold models"]


def test_strangers_are_not_compared_with_what_is_known(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any) -> str:
        raise AssertionError("a comparison takes a second the first time")

    monkeypatch.setattr("omniavatar.checkpoints.nearest.Neighbours.explain", slow)
    write_safetensors(tmp_path / "0.safetensors", {f"layer.{number}.weight": torch.zeros(1) for number in range(9)})
    assert list(Library([tmp_path], registry).models()) == []


def test_words_in_headers_rule_files_out_before_they_are_parsed(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {
        "blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 24),
        "blocks.0.self_attn.q.lora_B.weight": torch.zeros(24, 2),
    }
    write_safetensors(tmp_path / "lora.safetensors", lora)
    write_safetensors(tmp_path / "part.safetensors", {"patch_embedding.weight": torch.zeros(2)})
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in dit_state().items()}
    write_safetensors(tmp_path / "whole.safetensors", prefixed)
    parsed: list[str] = []
    detect = registry.detect_parts

    def noted(files: tuple[Path, ...], **options: Any) -> Any:
        parsed.append(files[0].name)
        return detect(files, **options)

    monkeypatch.setattr(registry, "detect_parts", noted)
    found = Library([tmp_path], registry)
    assert names(found.serving(NEED)) == ["whole.safetensors"]
    assert "lora.safetensors" not in parsed
    parsed.clear()
    assert found.serving(Need(rows=("OmniAvatar",))) == []
    assert parsed == []
    assert names(found.serving(Need(rows=("LoRA",)))) == ["lora.safetensors"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are Unix")
def test_pipes_in_a_tree_are_not_waited_for(tmp_path: Path, registry: Registry) -> None:
    write(tmp_path / "models" / "a.safetensors")
    for name in ("extra_model_paths.yaml", "wgp_config.json", "b.safetensors", "config.json"):
        os.mkfifo(tmp_path / "models" / name)
    assert names(Library([tmp_path / "models"], registry).serving(NEED)) == ["a.safetensors"]


# --- files that hold several models


AIO = Path(__file__).parents[1] / "formats" / "public" / "names" / "aio.safetensors"


def test_a_file_of_several_models_serves_with_each_of_them(tmp_path: Path) -> None:
    registry = Registry(registry_tables())
    shutil.copy(AIO, tmp_path / "aio.safetensors")
    library = Library([tmp_path], registry)
    rows = {"dit": "Wan*", "vae": "Wan2.1-VAE*", "text_encoder": "Wan*text-encoder*"}
    prefixes = {"dit": "model.diffusion_model", "vae": "vae", "text_encoder": "text_encoders.umt5xxl"}
    for role, pattern in rows.items():
        (model,) = [one for one in library.serving(Need(rows=(pattern,))) if role in one.row.components]
        assert model.source == f"{tmp_path / 'aio.safetensors'}::{prefixes[role]}"
        (detection,) = registry.detect_all(str(model.source))
        assert [part.role for part in detection.components] == [role]
        assert model.has("inside:tokenizer") is (role == "text_encoder")
    assert len(list(library.models())) == 3


def test_a_file_of_several_models_is_larger_than_what_it_serves_for(tmp_path: Path) -> None:
    tiny = dit_state()
    numbers = sum(tensor.numel() for tensor in tiny.values())
    registry = Registry([*registry_tables(), write_table(tmp_path / "tiny.toml", num_params=numbers)])
    large = {f"model.diffusion_model.{name}": tensor for name, tensor in tiny.items()}
    large["vae.nobody.knows"] = torch.zeros(10 * numbers)
    write_safetensors(tmp_path / "aio.safetensors", large)
    (found,) = Library([tmp_path], registry).serving(NEED)
    assert found.name == "aio.safetensors::model.diffusion_model"
    with pytest.raises(UnknownCheckpoint):
        registry.detect_all(tmp_path / "aio.safetensors")  # who names a file wants all of it


def test_a_model_that_a_file_does_not_hold(tmp_path: Path) -> None:
    registry = Registry(registry_tables())
    with pytest.raises(CheckpointError, match=r"has no 'clip'; it holds model\.diffusion_model, vae, text_encoders"):
        registry.detect_all(f"{AIO}::clip")
    with pytest.raises(CheckpointError, match=r"wan_2\.1_vae\.safetensors has no 'vae'; it holds Wan2\.1-VAE"):
        registry.detect_all(f"{AIO.parent / 'wan_2.1_vae.safetensors'}::vae")
