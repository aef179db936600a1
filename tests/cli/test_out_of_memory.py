"""A run that is out of memory: one line, exit code 3, and what is finished is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.media.video import probe_video
from omniavatar.models.wan_vae import WanVAE
from tests.cli.conftest import SMALL, Omni, tree

MESSAGE = (
    "CUDA out of memory. Tried to allocate 640.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is "
    "free. More sentences."
)


def test_finished_windows_are_kept(omni: Omni, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls = WanVAE.decode_frames, []

    def once(*args: Any) -> Iterator[Tensor]:
        calls.append(args)
        if len(calls) == 2:
            raise torch.OutOfMemoryError(MESSAGE)
        yield from decode(*args)

    monkeypatch.setattr(WanVAE, "decode_frames", once)
    outcome = omni("run", "-o", "a.mp4", "--quiet", *SMALL)
    assert outcome.code == 3
    assert outcome.error.startswith(
        "out of memory while decoding window 2 of 2 (unit vae-decode): 640 MiB more asked for, 1.25 GiB of the GPU's "
        "79.10 GiB free; try vae-decode(latents_per_pass=1)"
    )
    assert outcome.error.endswith(f"a smaller --size; the 9 finished frames are in {folder}/a.partial.mp4")
    assert tree(folder) == {"a.partial.mp4"}
    assert probe_video(folder / "a.partial.mp4").frames == 9
