"""The original OmniAvatar's configuration, overrides, lists and folders."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from omniavatar import original
from omniavatar.config import RunConfig
from omniavatar.errors import InputError
from omniavatar.original import parse_hparams, parse_line, read_samples

MODELS = "pretrained_models"
BASE = f"{MODELS}/Wan2.1-T2V-tiny"
INFERENCE: dict[str, Any] = {
    "dtype": "bf16",
    "text_encoder_path": f"{BASE}/models_t5_umt5-xxl-enc-bf16.pth",
    "image_encoder_path": "None",
    "dit_path": ",".join(f"{BASE}/diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
    "vae_path": f"{BASE}/Wan2.1_VAE.pth",
    "wav2vec_path": f"{MODELS}/wav2vec2-tiny",
    "exp_path": f"{MODELS}/OmniAvatar-tiny",
    "num_persistent_param_in_dit": None,
    "reload_cfg": True,
    "sp_size": 1,
    "seed": 42,
    "image_sizes_720": [[64, 96], [64, 64], [96, 64]],
    "image_sizes_1280": [[128, 128]],
    "max_hw": 720,
    "max_tokens": 30000,
    "seq_len": 200,
    "overlap_frame": 13,
    "guidance_scale": 4.5,
    "audio_scale": None,
    "num_steps": 50,
    "fps": 25,
    "sample_rate": 16000,
    "negative_prompt": "still, ugly",
    "silence_duration_s": 0.3,
    "use_fsdp": False,
    "tea_cache_l1_thresh": 0,
}
"""The keys of the original's inference.yaml, for the tiny networks."""


def translate(hparams: str = "", *, without: tuple[str, ...] = (), **changes: Any) -> RunConfig:
    content = {key: value for key, value in {**INFERENCE, **changes}.items() if key not in without}
    return original.translate(content, parse_hparams(hparams), Path("inference.yaml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test, empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def experiment(folder: Path) -> Path:
    """The experiment's folder, with an empty config.json."""
    path = folder / MODELS / "OmniAvatar-tiny"
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


# Configuration ------------------------------------------------------------------------------------------------------


def test_every_key_finds_its_place(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = translate(audio_scale=3.0)
    assert (config.units, config.dtype, config.seed, config.fps, config.models_dir) == ("default", "bf16", 42, 25, ".")
    assert config.settings == {
        "schedule": {"steps": 50},
        "guidance": {"scale": 4.5, "audio_scale": 3.0},
        "prompt": {"negative": "still, ugly"},
        "fixed-frames": {"max_tokens": 30000, "overlap": 13},
        "audio": {"silence": 0.3},
        "reference-image": {"sizes": [[64, 96], [64, 64], [96, 64]]},
    }
    paths = [entry.path for entry in config.models]
    assert paths[0] == tuple(INFERENCE["dit_path"].split(","))
    assert paths[1:] == [
        *(INFERENCE[key] for key in ("text_encoder_path", "vae_path", "wav2vec_path")),
        f"{MODELS}/OmniAvatar-tiny/pytorch_model.pt",
    ]
    assert not caplog.records


def test_teacache_is_on_above_zero() -> None:
    config = translate(tea_cache_l1_thresh=0.14)
    assert (config.units, config.settings["teacache"]) == ("default+teacache", {"threshold": 0.14})
    for off in (0, None, -1):
        config = translate(tea_cache_l1_thresh=off)
        assert (config.units, config.settings.get("teacache")) == ("default", None)


def test_max_hw_chooses_the_table() -> None:
    assert translate(max_hw=1280).settings["reference-image"]["sizes"] == [[128, 128]]
    bare = translate(max_hw=1280, without=("image_sizes_1280",)).settings["reference-image"]["sizes"]
    assert (len(bare), bare[-1]) == (5, [1280, 720])
    assert "reference-image" not in translate(max_hw=None).settings
    with pytest.raises(InputError, match="max_hw is 900; choices: 720, 1280"):
        translate(max_hw=900)


def test_odd_values() -> None:
    assert translate(dtype="float").dtype == "fp32"
    assert translate(random_prefix_frames=False).settings["fixed-frames"]["overlap"] == 1
    with pytest.raises(InputError, match="sample_rate is 22050; the audio encoder takes 16000 only"):
        translate(sample_rate=22050)


def test_several_gpus_and_sharded_weights() -> None:
    config = translate(sp_size=4, use_fsdp=True)
    assert (config.gpus, config.units) == (4, "default+fsdp")
    assert (translate().gpus, translate().units) == (1, "default")
    said = original.overrides({}, parse_hparams("sp_size=2,use_fsdp=true"))
    assert (said.top, said.apply({"euler": {}})) == ({"gpus": 2}, {"euler": {}, "fsdp": {}})
    assert original.overrides({}, parse_hparams("use_fsdp=false")).apply({"euler": {}, "fsdp": {}}) == {"euler": {}}


def test_what_has_no_effect_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        translate(use_audio=False, nmu_steps=3)
    assert [record.getMessage() for record in caplog.records] == [
        "inference.yaml: unknown keys without effect: nmu_steps",
        "inference.yaml: without effect here: use_audio=False",
    ]


def test_a_limit_of_parameters_on_the_device_means_offload() -> None:
    config = translate(num_persistent_param_in_dit=7_000_000_000)
    assert (config.units, config.settings["offload"]) == ("default+offload", {"resident_params": 7_000_000_000})
    assert translate(num_persistent_param_in_dit=0).settings["offload"] == {"resident_params": 0}
    said = original.overrides({}, parse_hparams("num_persistent_param_in_dit=0"))
    assert said.apply({"euler": {}}) == {"euler": {}, "offload": {}}
    none = original.overrides({}, parse_hparams("num_persistent_param_in_dit=None"))
    assert none.apply({"euler": {}, "offload": {}}) == {"euler": {}}


def test_config_json_fills_in_what_is_absent_but_not_what_is_null(experiment: Path) -> None:
    stored = {"audio_scale": 9.0, "num_steps": 7, "guidance_scale": 2.0, "random_prefix_frames": False, "lr": 1e-4}
    (experiment / "config.json").write_text(json.dumps(stored))
    settings = translate(without=("num_steps",)).settings
    assert settings["schedule"] == {"steps": 7}
    assert settings["guidance"] == {"scale": 4.5, "audio_scale": None}
    assert settings["fixed-frames"]["overlap"] == 1
    assert "schedule" not in translate(without=("num_steps",), reload_cfg=False).settings
    (experiment / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"cannot read .*config\.json"):
        translate()


def test_exp_path_may_lie_below_checkpoints(folder: Path) -> None:
    def place() -> Any:
        return translate(exp_path="mine").models[-1].path

    assert place() == "mine/pytorch_model.pt"
    (folder / "checkpoints" / "mine").mkdir(parents=True)
    assert place() == "checkpoints/mine/pytorch_model.pt"
    (folder / "mine").mkdir()
    assert place() == "mine/pytorch_model.pt"


def test_a_whole_transformer_replaces_the_base(experiment: Path) -> None:
    (experiment / "config.json").write_text('{"train_architecture": "full"}')
    assert translate().models[0].path == INFERENCE["text_encoder_path"]


# `--hp` -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("25", 25),
        ("4.5", 4.5),
        ("1e-4", 1e-4),
        ("1e3", 1000.0),
        ("-3", -3),
        ("None", None),
        ("True", True),
        ("false", False),
        ("bf16", "bf16"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_of_hparams(text: str, value: Any) -> None:
    (found,) = parse_hparams(f"seed={text}").values()
    assert found == value
    assert type(found) is type(value)


def test_several_hparams() -> None:
    assert parse_hparams(" num_steps = 25,, overlap_frame=13, ") == {"num_steps": 25, "overlap_frame": 13}
    assert parse_hparams("") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_steps", "--hp: 'num_steps' is not key=value; separate several with commas"),
        ("=3", "--hp: '=3' is not key=value; separate several with commas"),
        ("num_step=3", "--hp: unknown key 'num_step'; did you mean 'num_steps'?"),
    ],
)
def test_bad_hparams(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_hparams(text)
    assert str(caught.value) == message


def test_hparams_choose_among_the_tables_of_the_file() -> None:
    assert translate("max_hw=1280").settings["reference-image"]["sizes"] == [[128, 128]]
    assert original.overrides(INFERENCE, parse_hparams("max_hw=1280")).settings == {
        "reference-image": {"sizes": [[128, 128]]}
    }


# Lists --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "inputs"),
    [
        ("a man@@i.png@@a.wav", {"prompt": "a man", "image": "i.png", "audio": "a.wav"}),
        ("a man", {"prompt": "a man"}),
        ("a man @@ i.png ", {"prompt": "a man", "image": "i.png"}),
        ("a man@@@@a.wav", {"prompt": "a man", "audio": "a.wav"}),
        ("@@i.png@@", {"image": "i.png"}),
        ("me @@ home@@i.png@@a.wav", {"prompt": "me @@ home", "image": "i.png", "audio": "a.wav"}),
        ("me@@home@@i.png@@", {"prompt": "me@@home", "image": "i.png"}),
    ],
)
def test_a_line(line: str, inputs: dict[str, str]) -> None:
    assert parse_line(line) == inputs


def test_lines_are_numbered_and_blank_ones_count(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffone\r\n\r\n  \ntwö\u2028still two@@i.png".encode())
    samples = [(sample.line, sample.inputs) for sample in read_samples(path)]
    assert samples == [(1, {"prompt": "one"}), (4, {"prompt": "twö\u2028still two", "image": "i.png"})]
