"""Compiled blocks make the same video, whatever acts between them."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.engine.scopes import Request
from omniavatar.errors import PlanError
from omniavatar.testing.tiny import TinyModels
from omniavatar.units import Compile
from tests.scenes import Frames
from tests.training.scenes import SETTINGS, catalog

SMALL = {**SETTINGS, "euler": {"steps": 2}, "fixed-frames": {"window_frames": 9, "overlap": 5}}


def video(expression: str) -> Tensor:
    """The frames of a video of two windows."""
    watch = Frames()
    engine = Engine(build_plan(expression, catalog(), SMALL), TinyModels(), observers=[watch])
    engine.generate(Request({"prompt": "hi"}, seconds=0.48))
    assert len(watch.seen) == 2
    return torch.cat(watch.seen, dim=2)


def test_it_changes_nothing() -> None:
    plain = video("default-write-video")
    torch.testing.assert_close(video("default-write-video+compile(backend=aot_eager)"), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiler_itself_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.compile_fx as inductor

    made: list[Any] = []
    compile_fx = inductor.compile_fx

    def noted(*arguments: Any, **options: Any) -> Any:
        made.append(arguments)
        return compile_fx(*arguments, **options)

    monkeypatch.setattr(inductor, "compile_fx", noted)
    compiled = video("default-write-video+compile")
    assert made
    torch.testing.assert_close(compiled, video("default-write-video"), atol=1e-4, rtol=1e-4)


def test_only_the_named_networks_are_compiled() -> None:
    models: Any = TinyModels()
    engine = Engine(build_plan("default+compile(backend=eager)", catalog(), SMALL), models)
    engine.set_up()
    assert all(block._compiled_call_impl is not None for block in models.networks["dit"].blocks)
    assert all(block._compiled_call_impl is None for block in models.networks["text_encoder"].blocks)


def test_a_backend_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PlanError, match="backend"):
        build_plan("default+compile(backend=magic)", catalog(), SMALL)
    assert Compile.exact
