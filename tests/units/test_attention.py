"""The kernels give one result; what does not run here is refused before anything is made."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import build_plan
from omniavatar.errors import PlanError
from omniavatar.models import attention_kernels
from omniavatar.models.attention import sdpa
from omniavatar.testing.tiny import TinyModels
from omniavatar.units import AttentionKernel
from tests.training.scenes import SETTINGS, catalog


def engine_with(kernel: str, expression: str = "default") -> Engine:
    """An engine that is set up."""
    engine = Engine(build_plan(f"{expression}+attention(kernel={kernel})", catalog(), SETTINGS), TinyModels())
    engine.set_up()
    return engine


@pytest.fixture
def sageattention(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package of this name that computes the usual attention; the layouts it was asked for."""
    asked: list[str] = []

    def sageattn(q: Tensor, k: Tensor, v: Tensor, tensor_layout: str) -> Tensor:
        asked.append(tensor_layout)
        return sdpa(q, k, v)

    module = ModuleType("sageattention")
    module.sageattn = sageattn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sageattention", module)
    attention_kernels.sage.cache_clear()
    return asked


@pytest.mark.parametrize("kernel", ["math", "flash"])
def test_a_kernel_of_torch_gives_the_same(kernel: str) -> None:
    q, k, v = (torch.randn(1, 70, 2, 24) for _ in range(3))
    strategy = engine_with(kernel).attention
    assert strategy.strategy is not sdpa
    torch.testing.assert_close(strategy(q, k, v), sdpa(q, k, v))


def test_auto_leaves_the_choice_to_torch() -> None:
    assert engine_with("auto").attention.strategy is sdpa


def test_a_kernel_for_other_devices_is_refused() -> None:
    with pytest.raises(PlanError, match=r"attention\(kernel='?cudnn'?\) does not run on cpu .*take another kernel"):
        engine_with("cudnn")


@pytest.mark.parametrize(("kernel", "package"), [("flash-attn-4", "--pre 'flash-attn-4"), ("sage", "sageattention")])
def test_a_package_that_is_not_there_is_named(kernel: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("flash_attn", "sageattention"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PlanError, match=f"pip install {package}"):
        engine_with(kernel)


def test_a_kernel_from_a_package_is_one_operator_for_the_compiler(sageattention: list[str]) -> None:
    q, k, v = (torch.randn(1, 70, 2, 24) for _ in range(3))
    strategy = engine_with("sage").attention.strategy
    compiled = torch.compile(lambda: strategy(2 * q, k, v) + 1, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(), sdpa(2 * q, k, v) + 1)
    assert set(sageattention) == {"NHD"}
    engine_with("sage")  # a second engine takes the same operator


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_kernel_from_a_package_starts_on_the_device_of_its_tensors() -> None:
    seen: list[int] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(torch.cuda.current_device())
        return sdpa(q, k, v)

    q = torch.zeros(1, 8, 2, 16, device="cuda:1")
    assert attention_kernels.opaque("on_its_device", kernel)(q, q, q).device == q.device
    assert (seen, torch.cuda.current_device()) == ([1], 0)


def test_every_name_has_a_kernel() -> None:
    names = AttentionKernel.Settings.model_json_schema()["properties"]["kernel"]["enum"]
    assert ["auto", *attention_kernels.KERNELS] == names
