"""What is trained, that nothing else is, and that what is saved is what was learnt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from omniavatar.checkpoints import Bundle, Registry, UnknownCheckpoint
from omniavatar.config import RunConfig
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.errors import InputError, OutputError
from omniavatar.models.wan_dit import WanDiT
from omniavatar.testing.models import GivenModels
from omniavatar.testing.tiny import ADAPTER, DIT, TinyModels, weights, write_original
from omniavatar.training.diffusion import DiffusionTask
from omniavatar.training.result import models_with_result
from omniavatar.training.samples import Samples
from omniavatar.training.trained import DELTA, EXPORT, WHOLE, Trained
from omniavatar.units.lora import Lora
from tests.training.scenes import config, opened, plan

REGISTRY = Registry.builtin()
LORA: dict[str, Any] = {"rank": 4, "alpha": 2}


def trained(models: GivenModels | None = None, **settings: Any) -> Trained:
    unit = Trained(**settings)
    Engine(Plan((unit,)), models or TinyModels()).set_up()
    return unit


def changed(unit: Trained) -> dict[str, torch.Tensor]:
    """All trained weights with something learnt."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in unit.parameters.values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=draw))
    return {name: weight.detach() for name, weight in unit.parameters.items()}


def test_lora_layers_are_put_beside_the_named_layers() -> None:
    unit = trained(lora=LORA)
    layers = {name.partition(".lora_")[0] for name in unit.parameters}
    assert len(layers) == 6 * 10, "q, k, v, o of both attentions, and two of the feed-forward, in six blocks"
    assert all(weight.dtype == torch.float32 for weight in unit.parameters.values())
    assert sum(weight.requires_grad for weight in unit.networks["dit"].parameters()) == len(unit.parameters)


def test_patterns_choose_further_weights() -> None:
    unit = trained(weights=["audio_adapter.*", "dit.patch_embedding.*", "dit.blocks.*.norm3.weight"])
    names = set(unit.parameters)
    assert {"dit.patch_embedding.weight", "dit.patch_embedding.bias", "audio_adapter.audio_proj.proj.weight"} <= names
    assert sum("norm3" in name for name in names) == 6
    assert not any("self_attn" in name for name in names)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": ["dit.patch_embeding.*"]}, r"no weight fits the pattern .*; there is 'dit.patch_embedding"),
        ({"weights": ["vae2.*"]}, "names the network 'vae2', which no model file has"),
        ({"lora": {**LORA, "targets": ["q", "ffn.O"]}}, r"ends in the LoRA target 'ffn.O'; did you mean 'ffn.[02]'"),
    ],
)
def test_what_is_not_there_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        trained(**settings)


def test_new_layers_change_nothing_and_are_the_same_in_every_run() -> None:
    models = TinyModels()
    inputs = torch.randn(1, 33, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    before = models.networks["dit"](*inputs)
    unit, again = trained(models, lora=LORA), trained(lora=LORA)
    torch.testing.assert_close(unit.networks["dit"](*inputs), before)
    assert all(weight.equal(again.parameters[name]) for name, weight in unit.parameters.items())
    other = trained(lora=LORA, seed=1)
    assert not all(weight.equal(other.parameters[name]) for name, weight in unit.parameters.items())


WHOLE_ROW = "omniavatar-test"
SUBSETS: dict[str, tuple[dict[str, Any], str]] = {
    "LoRA": ({"lora": {"rank": 4}}, "LoRA"),
    "audio layers": ({"weights": ["audio_adapter.*"]}, "OmniAvatar-part"),
    "some of the audio layers": ({"weights": ["audio_adapter.audio_proj.*"]}, "OmniAvatar-part"),
    "patch embedding": ({"weights": ["dit.patch_embedding.*"]}, "OmniAvatar-part"),
    "layers without LoRA": ({"weights": ["dit.text_embedding.*"]}, "OmniAvatar-part"),
    "layers with LoRA": ({"weights": ["dit.blocks.*.self_attn.*"]}, WHOLE_ROW),
    "LoRA, audio layers": ({"lora": LORA, "weights": ["audio_adapter.*"]}, "OmniAvatar-part"),
    "LoRA, patch embedding": ({"lora": LORA, "weights": ["dit.patch_embedding.*"]}, "OmniAvatar-part"),
    "LoRA elsewhere": ({"lora": {**LORA, "targets": ["head.head", "o"]}}, "LoRA"),
    "LoRA of the audio layers": (
        {"lora": {**LORA, "role": "audio_adapter", "targets": ["proj", "0"]}},
        "OmniAvatar-part",
    ),
    "all of OmniAvatar": ({"lora": LORA, "weights": ["audio_adapter.*", "dit.patch_embedding.*"]}, "OmniAvatar"),
    "transformer": ({"weights": ["dit.*"]}, WHOLE_ROW),
    "LoRA, transformer": ({"lora": LORA, "weights": ["dit.*"]}, WHOLE_ROW),
    "everything": ({"weights": ["dit.*", "audio_adapter.*"]}, WHOLE_ROW),
}
ON_RELEASED: dict[str, Any] = {
    "models": [
        "Wan2.1-T2V-tiny/*.safetensors",
        "Wan2.1-T2V-tiny/*.pth",
        "wav2vec2-tiny",
        "OmniAvatar-tiny/pytorch_model.pt",
    ]
}
ON_WAN: dict[str, Any] = {
    "models": ["Wan2.1-T2V-tiny", "wav2vec2-tiny"],
    "start": {
        "dit": {"config": {"in_dim": 33}},
        "audio_adapter": {"network": "omniavatar.models.audio_adapter:AudioAdapter", "config": ADAPTER},
    },
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    write_original(folder)
    (folder / "Wan2.1-T2V-tiny" / "config.json").write_text(json.dumps({"num_heads": DIT["num_heads"]}))
    return folder


def saved(published: Path, folder: Path, **fields: Any) -> DiffusionTask:
    """A training on published files, whose weights are changed and saved."""
    fields = {"models_dir": str(published), "save_as": "fp32", **fields}
    settings, cpu = config(folder, **fields), torch.device("cpu")
    bundle = Bundle.open(settings.model_files(), REGISTRY)
    run = opened(settings, plan(), bundle, device=cpu, dtype=torch.float32)
    task = run.task(cast(Samples, None))
    task.save(settings.output, changed(task.trained))
    return task


def used(models: Sequence[Any], published: Path) -> Engine:
    """The engine of a video with these model entries; audio layers, if there are some, are loaded."""
    settings = RunConfig(models=tuple(models), models_dir=str(published))
    bundle = Bundle.open(settings.model_files(), REGISTRY, [entry.role for entry in settings.models])
    engine = Engine(Plan((Lora(),)), bundle, dtype=torch.float32)
    engine.set_up()
    return engine


def assert_same(engine: Engine, task: DiffusionTask) -> None:
    inputs = torch.randn(1, 33, 3, 4, 4), torch.tensor([500.0]), torch.randn(1, 5, 64)
    rows = torch.randn(1, 5, ADAPTER["audio_in_dim"])
    for role, given in (("dit", inputs), ("audio_adapter", (rows,))):
        with torch.no_grad():
            torch.testing.assert_close(
                engine.model(role)(*given), task.engine.model(role)(*given), atol=1e-5, rtol=1e-5
            )


@pytest.mark.slow
@pytest.mark.parametrize("base", [ON_RELEASED, ON_WAN], ids=["on the released", "on Wan"])
@pytest.mark.parametrize(("train", "kind"), SUBSETS.values(), ids=SUBSETS)
def test_the_saved_delta_makes_the_same_network(
    published: Path, tmp_path: Path, base: dict[str, Any], train: dict[str, Any], kind: str
) -> None:
    """It goes through the tables and the unit that a user's files go through, with the other files of the run."""
    task = saved(published, tmp_path, train=train, **base)
    models = models_with_result(task.config, REGISTRY)
    if base is ON_RELEASED:
        assert REGISTRY.detect(models[-1]["path"]).row.name == kind
    assert_same(used(models, published), task)


def test_lora_alone_keeps_its_strength(published: Path, tmp_path: Path) -> None:
    task = saved(published, tmp_path, train={"lora": {"rank": 4}}, **ON_RELEASED)
    (adapter,) = Bundle.open([task.config.output / DELTA], REGISTRY).adapters()
    assert {layer.scale for layer in adapter.read().layers} == {64 / 4}


def test_the_released_form(published: Path, tmp_path: Path) -> None:
    train = {"lora": LORA, "weights": ["audio_adapter.*", "dit.patch_embedding.*"]}
    folder = saved(published, tmp_path, train=train, **ON_RELEASED).config.output
    released = torch.load(published / "OmniAvatar-tiny" / DELTA, weights_only=True)
    ours = torch.load(folder / DELTA, weights_only=True)
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in released.items()}
    assert {path.name for path in folder.iterdir()} == {DELTA, "config.json", EXPORT.parent.name}
    assert json.loads((folder / "config.json").read_text()) == {
        "train_architecture": "lora",
        "lora_rank": 4,
        "lora_alpha": 2,
    }


def test_the_lora_for_other_programs(published: Path, tmp_path: Path) -> None:
    """Every pair under ComfyUI's names, with its alpha, and nothing else."""
    folder = saved(
        published, tmp_path, train={"lora": LORA, "weights": ["audio_adapter.*"]}, **ON_RELEASED
    ).config.output
    export = load_file(folder / EXPORT)
    delta = torch.load(folder / DELTA, weights_only=True)
    pairs = {name.removesuffix(".lora_A.default.weight") for name in delta if name.endswith(".lora_A.default.weight")}
    parts = ("alpha", "lora_A.weight", "lora_B.weight")
    assert pairs
    assert export.keys() == {f"diffusion_model.{layer}.{part}" for layer in pairs for part in parts}
    for layer in pairs:
        assert float(export[f"diffusion_model.{layer}.alpha"]) == LORA["alpha"]
        for side in "AB":
            ours = export[f"diffusion_model.{layer}.lora_{side}.weight"]
            assert torch.equal(ours, delta[f"{layer}.lora_{side}.default.weight"])


def test_the_export_is_read_as_the_same_changes(
    published: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every merged weight has the bits that the result's own form gives it."""
    with caplog.at_level("INFO"):
        task = saved(published, tmp_path, train={"lora": LORA, "weights": ["audio_adapter.*"]}, **ON_RELEASED)
    (line,) = [record.getMessage() for record in caplog.records if str(EXPORT) in record.getMessage()]
    assert line.startswith(f"{EXPORT} has the LoRA layers alone; what else was trained is in {DELTA}: audio_")
    network = {name: value.shape for name, value in WanDiT(**DIT).state_dict().items()}
    found = []
    for file in (DELTA, EXPORT):
        (adapter,) = Bundle.open([task.config.output / file], REGISTRY).adapters()
        fit = adapter.read().fit(network)
        found.append({name: one.apply(torch.ones(network[name])) for name, (one,) in fit.changes.items()})
        assert fit.reasons.total() == 0
    assert found[0]
    assert found[0].keys() == found[1].keys()
    assert all(value.equal(found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("train", [{"lora": LORA}, {"weights": ["audio_adapter.*"]}], ids=str)
def test_merged_weights_are_complete(published: Path, tmp_path: Path, train: dict[str, Any]) -> None:
    """With audio layers that were not trained, and a transformer that was not."""
    task = saved(published, tmp_path, train=train, merged=True, **ON_RELEASED)
    (task.config.output / DELTA).unlink()
    models = models_with_result(task.config, REGISTRY)
    assert [Path(str(entry["path"])).name for entry in models] == ["*.pth", "wav2vec2-tiny", WHOLE]
    assert_same(used(models, published), task)


def test_a_transformer_without_audio_layers_is_saved_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unit = trained(GivenModels(dit=WanDiT(**{**DIT, "num_layers": 2})), weights=["dit.*"])
    learnt = changed(unit)
    unit.save(tmp_path, learnt, merged=False, dtype=torch.float16)
    assert {path.name for path in tmp_path.iterdir()} == {WHOLE, "config.json"}
    bundle = Bundle.open([tmp_path / WHOLE], REGISTRY)
    assert bundle.config("dit")["num_heads"] == DIT["num_heads"]
    network: nn.Module = bundle.load("dit", dtype=torch.float32)
    assert all(torch.allclose(value, learnt[f"dit.{name}"], atol=1e-3) for name, value in weights(network).items())


def test_the_second_transformer(published: Path, tmp_path: Path) -> None:
    models = ["Wan2.1-T2V-tiny/*.safetensors", {"path": "Wan2.1-T2V-tiny/*.safetensors", "role": "dit2"}]
    settings = config(tmp_path, models=models, models_dir=str(published), train={"lora": {**LORA, "role": "dit2"}})
    unit = Trained(**settings.train.model_dump())
    Engine(Plan((unit,)), Bundle.open(settings.model_files(), REGISTRY, [None, "dit2"])).set_up()
    unit.save(settings.output, changed(unit), merged=False, dtype=torch.float32)
    found = models_with_result(settings, REGISTRY)
    assert found[-1] == {"path": str(settings.output / DELTA), "role": "dit2"}


def test_networks_whose_weights_have_the_same_names_are_refused() -> None:
    models = TinyModels(dit2=WanDiT(**DIT))
    with pytest.raises(
        InputError, match="train names the networks 'dit' and 'dit2', whose weights have the same names"
    ):
        trained(models, lora=LORA, weights=["dit2.patch_embedding.*"])


def test_what_no_table_knows_is_said(tmp_path: Path, published: Path) -> None:
    settings = config(tmp_path, models=ON_RELEASED["models"], models_dir=str(published))
    settings.output.mkdir()
    torch.save({"surprise": torch.zeros(1)}, settings.output / DELTA)
    with pytest.raises(UnknownCheckpoint, match="is no known checkpoint"):
        models_with_result(settings, REGISTRY)


def test_what_cannot_be_written_is_one_line_and_leaves_the_file_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = trained(weights=["dit.patch_embedding.*"])
    learnt = changed(unit)
    unit.save(tmp_path, learnt, merged=False, dtype=torch.float32)
    before = (tmp_path / DELTA).read_bytes()

    def full(content: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nframe #0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"cannot write '.*pytorch_model.pt': Pytorch.* failed; the training is kept"):
        unit.save(tmp_path, learnt, merged=False, dtype=torch.float32)
    assert (tmp_path / DELTA).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {DELTA, "config.json"}
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        unit.save(tmp_path / "file", learnt, merged=False, dtype=torch.float32)


def test_lora_without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="needs the package peft: pip install 'omniavatar"):
        trained(lora=LORA)
