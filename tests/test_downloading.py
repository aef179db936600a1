"""Downloads from a local server that speaks the hub's API."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from omniavatar.checkpoints.library import snapshot
from omniavatar.config import Published, RunConfig, packaged_configs
from omniavatar.config_base import read_config
from omniavatar.downloading import Hub, Remote, quants_of, wishes_of
from omniavatar.errors import CheckpointError, InputError, OutputError
from omniavatar.locating import located
from tests.hub import COMMIT, FakeHub, serving

REPO = "some/net"
WEIGHTS = bytes(range(256)) * 4096
FILES = {"net.safetensors": WEIGHTS, "tok/config.json": b"{}\n", "README.md": b"# Net\n"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries of the hub's library
    with serving({REPO: dict(FILES)}) as hub:
        yield hub


@pytest.fixture
def hub(server: FakeHub, tmp_path: Path) -> Hub:
    return Hub(server.endpoint, tmp_path / "hub")


def one(hub: Hub, name: str = "net.safetensors") -> Remote:
    (remote,) = hub.files(Published(repo=REPO, files=(name,)))
    return remote


def test_a_listing_with_sizes_and_hashes(hub: Hub) -> None:
    remotes = hub.files(Published(repo=REPO, files=("net*", "tok/*")))
    assert [(remote.name, remote.size) for remote in remotes] == [("net.safetensors", 2**20), ("tok/config.json", 3)]
    assert [bool(remote.sha256) for remote in remotes] == [True, False]
    assert {remote.commit for remote in remotes} == {COMMIT}
    with pytest.raises(CheckpointError, match=r"some/net has no file missing\* any more; see http"):
        hub.files(Published(repo=REPO, files=("missing*",)))


def test_a_file_lies_in_the_cache_as_the_hubs_own_library_puts_it(hub: Hub, server: FakeHub) -> None:
    seen: list[int] = []
    for name in ("net.safetensors", "tok/config.json"):
        remote = one(hub, name)
        assert hub.cached(remote) is None
        path = hub.fetch(remote, seen.append)
        assert path == hub.cached(remote)
        assert path.read_bytes() == FILES[name]
        assert path.is_symlink()
    assert max(seen) == len(WEIGHTS)
    folder = snapshot(hub.cache, REPO)
    assert folder == hub.cache / "models--some--net" / "snapshots" / COMMIT
    assert not list(hub.cache.rglob("*.incomplete"))
    asked = len(server.asked)
    hub.fetch(one(hub))
    assert server.gets("net.safetensors") == [None]  # not a second time
    assert len(server.asked) > asked


def test_a_token_goes_to_the_hub_alone(hub: Hub, server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.fetch(one(hub))
    tokens = {path.split("/")[1]: token for _, path, _, token in server.asked}
    assert tokens == {"api": "Bearer hf_secret", "some": "Bearer hf_secret", "elsewhere": None}


def test_an_interrupted_download_goes_on_where_it_stopped(
    hub: Hub, server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)  # what comes is written in these pieces
    server.cut["net.safetensors"] = 700_000
    with pytest.raises(CheckpointError, match="what has come is kept: give the command again"):
        hub.fetch(one(hub))
    assert hub.cached(one(hub)) is None
    again = Hub(server.endpoint, hub.cache)
    server.down = False
    kept = again.partial(one(again))
    assert 0 < kept <= 700_000
    server.asked.clear()
    seen: list[int] = []
    path = again.fetch(one(again), seen.append)
    assert server.gets("net.safetensors") == [f"bytes={kept}-"]
    assert path.read_bytes() == WEIGHTS
    assert seen[0] == kept


def test_a_wrong_hash_is_found_and_nothing_is_left(hub: Hub, server: FakeHub) -> None:
    server.damaged |= {"net.safetensors", "config.json", "tok/config.json"}
    for name in ("net.safetensors", "tok/config.json"):
        with pytest.raises(CheckpointError, match="came with another hash than the hub states"):
            hub.fetch(one(hub, name))
    assert [path for path in hub.cache.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    server.damaged.clear()
    assert hub.fetch(one(hub)).read_bytes() == WEIGHTS


def test_a_rest_of_something_else_is_found_as_well(hub: Hub) -> None:
    remote = one(hub)
    incomplete = hub.cache / "models--some--net" / "blobs" / f"{remote.sha256}.incomplete"
    incomplete.parent.mkdir(parents=True)
    incomplete.write_bytes(b"?" * 1000)
    with pytest.raises(CheckpointError, match="another hash"):
        hub.fetch(remote)
    incomplete.write_bytes(b"?" * (2**20 + 5))  # longer than the whole file
    assert hub.fetch(remote).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, "GatedRepo"), "is for people whom its authors let in (403); ask at"),
        ((401, "RepoNotFound"), "is not there, or not for you (401)"),
        ((403, ""), "is not there, or not for you (403)"),
        ((404, "RepoNotFound"), "is not there, or not for you (404)"),
        ((500, ""), "answered 500; give the command again later"),
    ],
)
def test_refusals_are_one_line(hub: Hub, server: FakeHub, answer: tuple[int, str], words: str) -> None:
    remote = one(hub)
    server.refused[REPO] = answer
    for call in (lambda: hub.fetch(remote), lambda: one(Hub(server.endpoint, hub.cache))):
        with pytest.raises(CheckpointError) as error:
            call()
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def test_a_file_that_has_gone_or_changed_since_it_was_listed(hub: Hub, server: FakeHub) -> None:
    remote = one(hub)
    server.repos[REPO]["net.safetensors"] = b"other"
    with pytest.raises(CheckpointError, match="has changed on the hub since it was listed"):
        hub.fetch(remote)
    del server.repos[REPO]["net.safetensors"]
    with pytest.raises(CheckpointError, match=r"some/net/net\.safetensors cannot be had: .* answered 404"):
        hub.fetch(remote)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded from http://127\.0\.0\.1:9 \(.*HF_ENDPOINT=URL"):
        one(Hub("http://127.0.0.1:9", tmp_path))


def test_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    def offline(*_: Any, **__: Any) -> None:
        raise errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    with pytest.raises(CheckpointError, match="some/net is not here, and HF_HUB_OFFLINE is set"):
        one(hub)


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.check_room(1000)
    with pytest.raises(OutputError, match="do not fit"):
        hub.check_room(10**18)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, os.strerror(28))

    remote = one(hub)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(OutputError, match=r"the disk is full, so some/net/net\.safetensors is not complete"):
        hub.fetch(remote)


def test_a_cache_that_cannot_be_written(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    blocked = Hub(server.endpoint, tmp_path / "file" / "hub")
    remote = one(blocked)
    with pytest.raises(OutputError, match=f"cannot write {tmp_path}/file.*; name another folder with HF_HOME=FOLDER"):
        blocked.fetch(remote)
    hub = Hub(server.endpoint, tmp_path / "hub")

    def read_only(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr("omniavatar.downloading.Counted.__init__", lambda self, path, show: read_only(path))
    with pytest.raises(
        OutputError, match=r"cannot write .*\.incomplete: Permission denied; name another folder"
    ) as caught:
        hub.fetch(remote)
    assert "\n" not in str(caught.value)


def test_names_that_lead_out_of_the_folder_are_refused(hub: Hub, server: FakeHub) -> None:
    server.repos[REPO]["../../evil.safetensors"] = b"x"
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        one(hub)


def test_a_run_finds_what_was_downloaded(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omniavatar.locating.hub_cache", lambda: hub.cache)
    monkeypatch.delenv("OMNI_MODELS", raising=False)
    entry = {"path": "net/net.safetensors", "beside": ["tok"], "repo": REPO, "files": ["net*", "tok/*"]}
    config = RunConfig(models=[entry], models_dir=str(tmp_path))
    for wish in wishes_of(config):
        for remote in hub.files(wish.published):
            hub.fetch(remote)
    assert located(config).model_files() == [str(hub.cache / f"models--some--net/snapshots/{COMMIT}/net.safetensors")]


# --- what is published for a configuration


def packaged(name: str) -> RunConfig:
    return RunConfig(models=read_config(packaged_configs()[name])["models"], models_dir="x")


def test_precisions_of_the_packaged_configurations() -> None:
    assert quants_of(packaged("omniavatar-14b")) == ["bf16", "fp8", "gguf-q8"]
    assert quants_of(packaged("omniavatar-1.3b")) == ["bf16", "fp8", "gguf-q8"]
    names = [file for wish in wishes_of(packaged("omniavatar-14b"), "fp8") for file in wish.published.files]
    assert "split_files/diffusion_models/wan2.1_t2v_14B_fp8_scaled.safetensors" in names
    assert "split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors" in names
    assert "google/umt5-xxl/*" in names  # the tokenizer, which the repacked encoder comes without
    assert "pytorch_model.pt" in names


def test_a_precision_that_is_not_known_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match=r"--quant nf4: no such files are known .*; choices: bf16, fp8, gguf-q8"):
        wishes_of(packaged("omniavatar-14b"), "nf4")
    with pytest.raises(InputError, match="add repo: to their entries"):
        wishes_of(RunConfig(models=["a.safetensors"]))
