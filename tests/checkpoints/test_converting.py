"""Conversions between the forms of other programs, on the public set of tiny files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from omniavatar.checkpoints import Registry
from omniavatar.checkpoints.converting import Conversion, Layout, scaled
from omniavatar.checkpoints.formats import BUILTIN, Format, Formats
from omniavatar.errors import CheckpointError, OutputError
from omniavatar.resources import registry_tables
from tests.checkpoints.tiny import write_delta

PUBLIC = Path(__file__).parents[1] / "formats" / "public"
T2V = PUBLIC / "base" / "names_t2v" / "diffusion_pytorch_model.safetensors"
VAE = PUBLIC / "names" / "wan_2.1_vae.safetensors"
UMT5 = PUBLIC / "names" / "umt5_xxl_fp16.safetensors"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry(registry_tables())


def convert(source: Path, form: str, target: Path, registry: Registry, **options: Any) -> State:
    Conversion.plan(source, form, registry, **options).write(target)
    return load_file(target)


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].view(torch.uint8).flatten(), tensor.view(torch.uint8).flatten()), name


def folder_state(folder: Path) -> State:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        (T2V, "names/diffusers_t2v/transformer"),
        (T2V.parents[1] / "names_i2v" / T2V.name, "names/diffusers_i2v/transformer"),
        (T2V.parents[1] / "names_vace" / T2V.name, "names/diffusers_vace/transformer"),
        (VAE, "names/diffusers_vae/vae"),
        (PUBLIC / "names" / "expected" / "umt5_official.safetensors", "names/umt5_hf/text_encoder"),
    ],
    ids=["t2v", "i2v", "vace", "vae", "umt5"],
)
def test_to_diffusers_and_back_bit_for_bit(source: Path, folder: str, tmp_path: Path) -> None:
    from omniavatar.plugins import discover

    registry = discover().registry()
    published = folder_state(PUBLIC / folder)
    there = tmp_path / "there.safetensors"
    found = convert(source, "diffusers", there, registry)
    published.pop("encoder.embed_tokens.weight", None)  # the table of `shared` once more
    assert found.keys() == published.keys()  # the names that diffusers itself has written
    back = convert(there, "omniavatar", tmp_path / "back.safetensors", registry)
    assert_same(back, load_file(source))
    direct = convert(PUBLIC / folder, "omniavatar", tmp_path / "direct.safetensors", registry)
    assert direct.keys() == back.keys()


@pytest.mark.parametrize("source", [T2V, VAE, UMT5], ids=["dit", "vae", "umt5"])
def test_to_comfyui_and_back(source: Path, tmp_path: Path, registry: Registry) -> None:
    comfy = convert(source, "comfy", tmp_path / "comfy.safetensors", registry)
    if source == T2V:
        assert comfy.keys() == load_file(PUBLIC / "names" / "dit_model_diffusion_model.safetensors").keys()
    if source == UMT5:
        assert_same(comfy, load_file(UMT5))  # with its tokenizer
    again = convert(tmp_path / "comfy.safetensors", "omniavatar", tmp_path / "a.safetensors", registry)
    assert_same(again, convert(source, "omniavatar", tmp_path / "b.safetensors", registry))


def test_a_file_is_written_as_its_own_library_writes_it(tmp_path: Path, registry: Registry) -> None:
    state = load_file(T2V)
    state["head.head.weight"] = state["head.head.weight"].bfloat16()
    save_file(state, tmp_path / "a.safetensors", {"format": "pt"})
    convert(tmp_path / "a.safetensors", "omniavatar", tmp_path / "b.safetensors", registry)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert Layout.of({}).length == len(Layout.of({}).header)


def test_8_bits_with_a_scale(tmp_path: Path, registry: Registry) -> None:
    target = tmp_path / "fp8.safetensors"
    found, plain = convert(T2V, "fp8-scaled", target, registry), load_file(T2V)
    published = load_file(PUBLIC / "quant" / "fp8_scaled.safetensors")
    eight = {name for name, tensor in found.items() if tensor.dtype == torch.float8_e4m3fn}
    layers = {name.split(".", 2)[2] for name in eight - {"scaled_fp8"}}
    assert layers == {
        name.split(".", 2)[2]
        for name, tensor in published.items()
        if tensor.dtype == torch.float8_e4m3fn and name != "scaled_fp8"
    }
    assert found["scaled_fp8"].shape == (0,)
    for name, tensor in plain.items():
        if name not in eight:
            assert torch.equal(found[name], tensor)
    (one,) = registry.detect_all(target)
    dense = one.components[0].state(dtype=torch.float32)
    for name in eight - {"scaled_fp8"}:
        step = plain[name].abs().float().clamp(min=plain[name].abs().max() * 2**-12) / 16 + 1e-12
        assert ((dense[name] - plain[name].float()).abs() <= step).all()
    # What has 8 bits already keeps them on the way to plain numbers and back.
    convert(target, "omniavatar", tmp_path / "plain.safetensors", registry, dense="fp32")
    again = convert(tmp_path / "plain.safetensors", "fp8-scaled", tmp_path / "again.safetensors", registry)
    for name in eight - {"scaled_fp8"}:
        assert torch.equal(again[name].float(), found[name].float())


def test_scales() -> None:
    number, scale = scaled(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
    assert float(scale) == pytest.approx(2 / 448)
    assert torch.allclose(number.float() * scale, torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
    number, scale = scaled(torch.zeros(2, 2))
    assert (float(scale), float(number.float().abs().max())) == (1.0, 0.0)


def test_packed_weights_become_plain_ones(tmp_path: Path, registry: Registry) -> None:
    expected = load_file(PUBLIC / "quant" / "expected" / "fp8_scaled.safetensors")
    source = PUBLIC / "quant" / "fp8_scaled.safetensors"
    for dense, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found = convert(source, "omniavatar", tmp_path / f"{dense}.safetensors", registry, dense=dense)
        name = "blocks.0.ffn.0.weight"
        assert found[name].dtype == dtype
        assert torch.equal(found[name], expected[name].to(dtype))
        assert not any("scale" in name for name in found)


class Recorder(Format):
    """Stands for the format of the GGUF package, and keeps what it is to write."""

    name = "GGUF"
    suffixes = (".gguf",)
    magic = b"GGUF"
    written: State
    quantisation = ""

    def write(self, file: Path, tensors: Any, metadata: Any = None, quantisation: str | None = None) -> None:
        assert not isinstance(tensors, dict)  # so that one at a time is in memory
        self.written, self.quantisation = {name: tensors[name] for name in tensors}, str(quantisation)
        file.write_bytes(b"GGUF")


def test_gguf_goes_through_its_format(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="package omniavatar-gguf; install it"):
        Conversion.plan(T2V, "gguf", registry)
    recorder = Recorder()
    with_gguf = Registry(registry_tables(), formats=Formats([*BUILTIN, recorder]))
    Conversion.plan(T2V, "gguf", with_gguf, quantisation="Q4_0").write(tmp_path / "x.gguf")
    assert_same(recorder.written, load_file(T2V))
    assert (recorder.quantisation, (tmp_path / "x.gguf").read_bytes()) == ("Q4_0", b"GGUF")


def test_what_cannot_be_converted(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match=r"is OmniAvatar \(dit and lora and audio_adapter\), which cannot be"):
        Conversion.plan(write_delta(tmp_path), "comfy", registry)
    with pytest.raises(CheckpointError, match="no form 'comfi'; did you mean 'comfy'"):
        Conversion.plan(T2V, "comfi", registry)


def test_nothing_is_replaced_or_left_half_written(tmp_path: Path, registry: Registry) -> None:
    source = Path(shutil.copy(T2V, tmp_path / "a.safetensors"))
    plan = Conversion.plan(source, "comfy", registry)
    taken = tmp_path / "b.safetensors"
    taken.write_bytes(b"mine")
    for target, words in (
        (taken, "is there already; name another file, or replace it with --force"),
        (source, "is what is to be converted"),
        (tmp_path / "b.bin", r"files of this form end in \.safetensors"),
    ):
        with pytest.raises(OutputError, match=words):
            plan.write(target)

    def full(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot write .*: No space left"):
        plan.write(taken, force=True, show=full)
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir() if path != source} == {"b.safetensors": 4}
    plan.write(taken, force=True)
    assert load_file(taken)


def test_a_disk_without_room(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Conversion.plan(T2V, "comfy", registry)
    usage = type("Usage", (), {"free": 10})()
    monkeypatch.setattr("omniavatar.checkpoints.converting.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="GB free"):
        plan.write(tmp_path / "x.safetensors")


# --- CLIP, tokenizers, and folders for diffusers and transformers

CLIP = PUBLIC / "names" / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
CLIP_COMFY = PUBLIC / "names" / "clip_vision_h.safetensors"
CLIP_FOLDER = PUBLIC / "names" / "clip_hf" / "image_encoder"


@pytest.fixture(scope="module")
def all_models() -> Registry:
    from omniavatar.plugins import discover

    return discover().registry()


def test_an_image_encoder_there_and_back(tmp_path: Path, all_models: Registry) -> None:
    (found,) = all_models.detect_all(CLIP)
    official = {name: tensor for name, tensor in found.components[0].state().items() if name.startswith("visual.")}
    comfy = convert(CLIP, "comfy", tmp_path / "comfy.safetensors", all_models)
    assert comfy.keys() == load_file(CLIP_COMFY).keys()
    back = convert(tmp_path / "comfy.safetensors", "omniavatar", tmp_path / "back.safetensors", all_models)
    assert_same(back, official)
    # From and to the names of transformers, each matrix apart and joined, the bits stay as well.
    theirs = folder_state(CLIP_FOLDER)
    convert(CLIP_FOLDER, "omniavatar", tmp_path / "ours.safetensors", all_models)
    assert_same(convert(tmp_path / "ours.safetensors", "diffusers", tmp_path / "x.safetensors", all_models), theirs)
    assert_same(convert(CLIP_FOLDER, "comfy", tmp_path / "y.safetensors", all_models), theirs)


def test_from_open_clip(tmp_path: Path, all_models: Registry) -> None:
    source = PUBLIC / "names" / "open_clip_pytorch_model.safetensors"
    found = convert(source, "diffusers", tmp_path / "x.safetensors", all_models)
    assert found.keys() == folder_state(CLIP_FOLDER).keys()


def test_a_tokenizer_beside_a_text_encoder_goes_into_its_file(tmp_path: Path, all_models: Registry) -> None:
    encoder = {name: tensor for name, tensor in load_file(UMT5).items() if name != "spiece_model"}
    model = load_file(UMT5)["spiece_model"]
    source = tmp_path / "encoder.safetensors"
    save_file(encoder, source)
    assert "spiece_model" not in convert(source, "comfy", tmp_path / "without.safetensors", all_models)
    (tmp_path / "google" / "umt5-xxl").mkdir(parents=True)
    file = tmp_path / "google" / "umt5-xxl" / "spiece.model"
    file.write_bytes(model.numpy().tobytes())
    assert_same(convert(source, "comfy", tmp_path / "with.safetensors", all_models), load_file(UMT5))
    with file.open("wb") as stream:
        stream.truncate(2 * 10**8)  # nothing of it is read
    with pytest.raises(CheckpointError, match="no sentencepiece model"):
        Conversion.plan(source, "comfy", all_models)


def folder(source: Path, target: Path, registry: Registry) -> tuple[dict[str, Any], Path]:
    """A folder for diffusers and transformers, and its config.json."""
    Conversion.plan(source, "diffusers", registry).write(target)
    return json.loads((target / "config.json").read_text()), target


@pytest.mark.parametrize("name", ["t2v", "i2v", "vace"])
def test_a_transformer_that_diffusers_opens(name: str, tmp_path: Path, all_models: Registry) -> None:
    diffusers = pytest.importorskip("diffusers")
    source = T2V.parents[1] / f"names_{name}" / T2V.name
    config, target = folder(source, tmp_path / "transformer", all_models)
    published = json.loads((PUBLIC / "names" / f"diffusers_{name}" / "transformer" / "config.json").read_text())
    assert config.items() <= {**published, "_diffusers_version": None}.items()
    kind = getattr(diffusers, published["_class_name"])
    network, information = kind.from_pretrained(target, torch_dtype=torch.float32, output_loading_info=True)
    assert not any(information.values())
    expected = kind.from_pretrained(PUBLIC / "names" / f"diffusers_{name}" / "transformer", torch_dtype=torch.float32)
    assert_same(network.state_dict(), expected.state_dict())
    (opened,) = all_models.detect_all(target)  # and we open it
    assert opened.components[0].config["num_heads"] == config["num_attention_heads"]
    back = convert(target, "omniavatar", tmp_path / "back.safetensors", all_models)
    assert_same(back, load_file(source))


def test_a_vae_that_diffusers_opens(tmp_path: Path, all_models: Registry) -> None:
    diffusers = pytest.importorskip("diffusers")
    config, target = folder(VAE, tmp_path / "vae", all_models)
    published = json.loads((PUBLIC / "names" / "diffusers_vae" / "vae" / "config.json").read_text())
    assert config.items() <= published.items()
    found = diffusers.AutoencoderKLWan.from_pretrained(target, torch_dtype=torch.float32)
    expected = diffusers.AutoencoderKLWan.from_pretrained(PUBLIC / "names" / "diffusers_vae" / "vae")
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(found.state_dict()[name], tensor.float(), atol=1e-2), name
    assert_same(convert(target, "omniavatar", tmp_path / "back.safetensors", all_models), load_file(VAE))


def test_encoders_that_transformers_opens(tmp_path: Path, all_models: Registry) -> None:
    transformers = pytest.importorskip("transformers")
    config, target = folder(UMT5, tmp_path / "text_encoder", all_models)
    published = json.loads((PUBLIC / "names" / "umt5_hf" / "text_encoder" / "config.json").read_text())
    assert config.items() <= {**published, "tie_word_embeddings": True}.items()
    assert (target / "spiece.model").read_bytes() == load_file(UMT5)["spiece_model"].numpy().tobytes()
    encoder = transformers.UMT5EncoderModel.from_pretrained(target, dtype=torch.float16)
    assert torch.equal(encoder.shared.weight, load_file(UMT5)["shared.weight"])
    config, target = folder(CLIP_FOLDER, tmp_path / "image_encoder", all_models)
    published = json.loads((CLIP_FOLDER / "config.json").read_text())
    assert config.items() <= published.items()
    found = transformers.CLIPVisionModelWithProjection.from_pretrained(target)
    expected = transformers.CLIPVisionModelWithProjection.from_pretrained(CLIP_FOLDER)
    assert_same(found.state_dict(), expected.state_dict())


def test_folders_are_not_replaced_and_need_a_class(tmp_path: Path, all_models: Registry) -> None:
    plan = Conversion.plan(T2V, "diffusers", all_models)
    plan.write(tmp_path / "t")
    with pytest.raises(OutputError, match=r"t/diffusion_pytorch_model\.safetensors is there already"):
        plan.write(tmp_path / "t")
    plan.write(tmp_path / "t", force=True)
    with pytest.raises(OutputError, match=r"files of this form end in \.safetensors"):
        Conversion.plan(T2V, "comfy", all_models).write(tmp_path / "u")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]
