"""Compiled blocks make the same video, whatever acts between them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.engine.scopes import Request
from omniavatar.errors import PlanError
from omniavatar.models.checkpointed import Checkpointed
from omniavatar.models.compiled import Compiled, compile_blocks
from omniavatar.testing.tiny import TinyModels
from omniavatar.units import Compile
from tests.scenes import Frames
from tests.training.scenes import SETTINGS, catalog

SMALL = {**SETTINGS, "schedule": {"steps": 2}, "fixed-frames": {"window_frames": 9, "overlap": 5}}


def video(expression: str) -> Tensor:
    """The frames of a video of two windows."""
    watch = Frames()
    engine = Engine(build_plan(expression, catalog(), SMALL), TinyModels(), observers=[watch])
    engine.generate(Request({"prompt": "hi"}, seconds=0.52))
    assert len(watch.seen) == 2
    return torch.cat(watch.seen, dim=2)


@pytest.mark.slow
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
    assert all(isinstance(block, Compiled) for block in models.networks["dit"].blocks)
    assert not any(isinstance(block, Compiled) for block in models.networks["text_encoder"].blocks)


class Graphs:
    """A compiler that counts what it is asked to compile and leaves it as it is."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> torch.fx.GraphModule:
        self.count += 1
        return graph


class Small(nn.Module):
    """A block that is compiled in no time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(dim=1, keepdim=True)


def compiled_blocks(graphs: Graphs) -> nn.ModuleList:
    """The blocks of an engine of its own, compiled by a counting compiler."""
    blocks = nn.ModuleList(Small().eval() for _ in range(3))
    compile_blocks(blocks, graphs)
    return blocks


@torch.inference_mode()
def run(blocks: nn.ModuleList, tokens: int) -> None:
    x = torch.ones(1, tokens, 2)
    for block in blocks:
        x = block(x)


def test_many_engines_in_one_process_all_run_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch gives up after eight variants of one code, and would run blocks as they are from then on."""
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    torch._dynamo.reset()
    made = [Graphs() for _ in range(12)]
    engines = [compiled_blocks(graphs) for graphs in made]
    for tokens in (8, 12, 8, 20):
        for blocks in engines:
            run(blocks, tokens)
        assert [graphs.count for graphs in made] == [1] * 12, "one for all blocks and lengths"


def test_names_of_weights_stay_as_they_are() -> None:
    plain, compiled = (
        Engine(build_plan(f"default{more}", catalog(), SMALL), TinyModels()) for more in ("", "+compile(backend=eager)")
    )
    compiled.set_up()
    assert list(compiled.model("dit").state_dict()) == list(plain.model("dit").state_dict())


def test_a_second_engine_finds_the_compiled_blocks_of_the_first() -> None:
    blocks = compiled_blocks(Graphs())
    before = list(blocks)
    compile_blocks(blocks, "eager")
    assert list(blocks) == before


def test_what_is_around_a_block_stays_around_the_compiled_one() -> None:
    blocks = nn.ModuleList([Checkpointed(nn.Linear(2, 2))])
    compile_blocks(blocks, "eager")
    outer: Any = blocks[0]
    assert isinstance(outer, Checkpointed)
    assert isinstance(outer.block, Compiled)


def test_a_backend_that_does_not_exist_is_refused() -> None:
    with pytest.raises(PlanError, match="backend"):
        build_plan("default+compile(backend=magic)", catalog(), SMALL)
    assert Compile.exact
