"""The original's way, the whole way: its file, its list, its overrides, its folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from omniavatar.media.video import probe_video
from omniavatar.testing.tiny import write_original
from tests.cli.conftest import Omni
from tests.test_original import INFERENCE, MODELS


@pytest.mark.slow
def test_the_original_command_writes_its_videos(omni: Omni, folder: Path, portrait: Path, speech: Path) -> None:
    """Files in the published formats and folders, a YAML file and a list as the original takes them."""
    write_original(folder / MODELS)
    (folder / "inference.yaml").write_text(yaml.safe_dump(INFERENCE))
    lines = [f"A person @@ work talks@@{portrait}@@{speech}", f"x@@{folder}/none.png@@{speech}", f"y@@@@{speech}"]
    (folder / "samples.txt").write_text("\n".join(lines) + "\n")
    outcome = omni(
        *("run", "--config", "inference.yaml", "--input_file", "samples.txt", "--seconds", "1", "--json", "-v"),
        *("-hp", "num_steps=2,overlap_frame=9,max_tokens=84,dtype=fp32,tea_cache_l1_thresh=0.14"),
    )
    assert outcome.code == 1
    assert f"omni: samples.txt, line 2: image '{folder}/none.png' does not exist" in outcome.err
    assert "120 of 120" in outcome.err
    assert "patch_embedding" not in outcome.err, "the delta brings the whole patch embedding, so nothing is grown"
    first, second = (json.loads(line) for line in outcome.out.splitlines())
    assert {"schedule(steps=2)", "teacache"} <= {unit for unit in first["units"] if unit[:3] in ("sch", "tea")}
    assert (first["windows"], first["frames"], first["dtype"]) == (2, 25, "float32")
    assert (first["height"], first["width"], second["height"], second["width"]) == (64, 64, 64, 96)
    for figures, index in ((first, 0), (second, 2)):
        assert figures["video"] == str(folder / "out" / "samples" / f"result_{index:03}.mp4")
        info = probe_video(figures["video"])
        assert (info.frames, info.has_audio) == (25, True)


def test_the_published_layout_is_known_to_be_downloads(omni: Omni, folder: Path) -> None:
    published = {
        "dit_path": f"{MODELS}/Wan2.1-T2V-1.3B/diffusion_pytorch_model.safetensors",
        "text_encoder_path": f"{MODELS}/Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth",
        "vae_path": f"{MODELS}/Wan2.1-T2V-1.3B/Wan2.1_VAE.pth",
        "wav2vec_path": f"{MODELS}/wav2vec2-base-960h",
        "exp_path": f"{MODELS}/OmniAvatar-1.3B",
    }
    (folder / "inference.yaml").write_text(yaml.safe_dump({**INFERENCE, **published}))
    outcome = omni("run", "--config", "inference.yaml")
    assert outcome.code == 2
    commands = [line.strip() for line in outcome.err.splitlines() if "hf download" in line]
    assert commands == [
        f"hf download Wan-AI/Wan2.1-T2V-1.3B --local-dir {MODELS}/Wan2.1-T2V-1.3B",
        f"hf download facebook/wav2vec2-base-960h --local-dir {MODELS}/wav2vec2-base-960h",
        f"hf download OmniAvatar/OmniAvatar-1.3B --local-dir {MODELS}/OmniAvatar-1.3B",
    ]
