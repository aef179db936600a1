"""The Triton kernels against float64: on a GPU, or else in Triton's interpreter (`conftest.py`)."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from omniavatar.models import gpu, kernels
from omniavatar.models.attention import sdpa
from omniavatar.models.rope import apply_rope
from omniavatar.models.wan_dit import BlockInputs, SelfAttention
from omniavatar.models.wan_vae import WanVAE
from tests.models.test_wan_vae import settings

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
ON_GPU = torch.cuda.is_available()
FIT = ON_GPU and torch.cuda.get_device_capability()[0] == gpu.HOPPER
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPE = torch.bfloat16 if ON_GPU else torch.float16
"""The interpreter does not multiply in bfloat16."""


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, DTYPE)


def assert_rounded_once(result: Tensor, exact: Tensor) -> None:
    """As near as half precision comes."""
    assert result.dtype == DTYPE
    torch.testing.assert_close(result.double(), exact, rtol=torch.finfo(DTYPE).eps, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "made", "kernel"),
    [
        pytest.param(24, 3, (3, 3, 3), marks=pytest.mark.slow),
        (64, 136, (1, 3, 3)),
        (3, 20, (3, 1, 1)),
        (96, 16, (1, 1, 1)),
    ],
)
def test_convolutions_over_their_past(channels: int, made: int, kernel: tuple[int, int, int]) -> None:
    weight, bias = random(made, channels, *kernel), random(made)
    weight = weight / (channels * kernel[0] * kernel[1] * kernel[2]) ** 0.5
    past, x = random(2, channels, kernel[0] - 1, 5, 37), random(2, channels, 2, 5, 37)
    around = (0, kernel[1] // 2, kernel[2] // 2)
    exact = functional.conv3d(torch.cat((past, x), 2).double(), weight.double(), bias.double(), padding=around)
    assert_rounded_once(kernels.convolve(x, weight, bias, past), exact)


def test_a_convolution_of_pixels_that_count_twice() -> None:
    weight, bias, x = random(8, 16, 1, 3, 3) / 12, random(8), random(1, 16, 3, 5, 19)
    twice = x.double().repeat_interleave(2, 3).repeat_interleave(2, 4)
    exact = functional.conv3d(twice, weight.double(), bias.double(), padding=(0, 1, 1))
    assert_rounded_once(kernels.convolve(x, weight, bias, scale=2), exact)


def test_a_convolution_of_a_part_of_a_tensor_without_bias() -> None:
    weight, x = random(8, 16, 1, 1, 1) / 4, random(1, 2, 6, 16, 7).permute(0, 3, 1, 2, 4)[:, :, :, 1:5]
    exact = functional.conv3d(x.double(), weight.double())
    assert_rounded_once(kernels.convolve(x, weight, None), exact)


@pytest.mark.parametrize("channels", [3, 16, 96])
def test_norm_and_silu(channels: int) -> None:
    x, gamma = random(2, channels, 2, 3, 5), random(channels)
    x[:, :, 0, 0, 0] = 0
    normed = functional.normalize(x.double(), dim=1) * gamma.double().view(-1, 1, 1, 1) * channels**0.5
    assert_rounded_once(kernels.norm_silu(x, gamma), functional.silu(normed))


@pytest.mark.parametrize("tables", [(), (1,), (2,)])
@pytest.mark.parametrize(("heads", "width"), [(3, 16), (5, 12)])
def test_norm_and_rope(heads: int, width: int, tables: tuple[int, ...]) -> None:
    x, weight = random(2, 7, heads * width), random(heads * width)
    table = torch.randn(*tables, 7, width // 2, 2).to(DEVICE)
    normed = functional.rms_norm(x.double(), x.shape[-1:], eps=1e-6) * weight.double()
    exact = apply_rope(normed.view(2, 7, heads, width).float(), table).double()
    assert_rounded_once(kernels.norm_rope(x, weight, 1e-6, table, heads), exact)


def plain_convolve(x: Tensor, weight: Tensor, bias: Tensor, past: Tensor | None = None, scale: int = 1) -> Tensor:
    """What the kernel is asked for, in torch's layers."""
    x = torch.cat([part for part in (past, x) if part is not None], 2)
    x = x.repeat_interleave(scale, 3).repeat_interleave(scale, 4)
    return functional.conv3d(x, weight, bias, padding=(0, weight.shape[3] // 2, weight.shape[4] // 2))


def plain_norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """The same."""
    return functional.silu(functional.normalize(x, dim=1) * gamma.view(-1, 1, 1, 1) * len(gamma) ** 0.5)


@pytest.mark.parametrize("kernel", ["plain", pytest.param("triton", marks=pytest.mark.gpu)])
@torch.inference_mode()
def test_a_vae_makes_the_same_pictures_with_them(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    if kernel == "plain":
        monkeypatch.setattr(kernels, "convolve", plain_convolve)
        monkeypatch.setattr(kernels, "norm_silu", plain_norm_silu)
    elif not FIT:
        pytest.skip("needs a GPU that the kernels fit")
    torch.manual_seed(0)
    vae = WanVAE(**settings()).to(DEVICE, DTYPE)
    video, codes = random(1, 3, 5, 16, 16).clamp(-1, 1), random(1, vae.z_dim, 4, 2, 3)
    results = []
    for fits in (True, False):
        monkeypatch.setattr(kernels, "fit", lambda x, fits=fits: fits)
        results.append((vae.encode(video, latents_per_pass=2), vae.decode(codes, latents_per_pass=2)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0.02)


@pytest.mark.parametrize("tables", [(), (2,)])
@torch.inference_mode()
def test_a_transformer_attends_as_without_them(monkeypatch: pytest.MonkeyPatch, tables: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(24, 2, 1e-6, sdpa).to(DEVICE, DTYPE)
    layer.norm_k.weight.mul_(2)
    x, table = random(2, 5, 24), torch.randn(*tables, 5, 6, 2).to(DEVICE)
    inputs = BlockInputs(table, table, {})
    plain = layer(x, inputs)
    monkeypatch.setattr(kernels, "fit", lambda x: True)
    torch.testing.assert_close(layer(x, inputs), plain, rtol=0.02, atol=0.002)


def test_they_are_for_gpus_without_gradients_alone() -> None:
    assert not kernels.fit(torch.zeros(1, dtype=torch.float16))
    if FIT:
        x = random(1)
        assert not kernels.fit(x)
        with torch.no_grad():
            assert kernels.fit(x)
            assert not kernels.fit(x.float())


def test_they_start_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever device is the current one: engines on several GPUs may share a process."""
    from omniavatar.models import triton_kernels

    asked: list[Tensor] = []

    def noted(x: Tensor) -> nullcontext[None]:
        asked.append(x)
        return nullcontext()

    monkeypatch.setattr(triton_kernels, "on_its_device", noted)
    picture, rows = random(1, 16, 1, 3, 5), random(1, 3, 16)
    kernels.convolve(picture, random(4, 16, 1, 1, 1), None)
    kernels.norm_silu(picture, random(16))
    kernels.norm_rope(rows, random(16), 1e-6, torch.randn(3, 4, 2).to(DEVICE), 2)
    assert [id(x) for x in asked] == [id(picture), id(picture), id(rows)]


def test_the_current_device_is_changed_for_tensors_of_another_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from omniavatar.models.triton_kernels import on_its_device

    used: list[Any] = []

    def noted(device: torch.device) -> nullcontext[None]:
        used.append(device)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", noted)
    elsewhere: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))
    with on_its_device(elsewhere):
        assert used == [torch.device("cuda", 1)]
    with on_its_device(torch.zeros(1)):
        assert len(used) == 1


def test_kernels_are_used_on_devices_other_than_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "starts", lambda device: device == 1)
    assert gpu.serves(1)
    assert not gpu.serves(0)


def test_the_compiler_looks_through_the_choice_of_a_device() -> None:
    from omniavatar.models.triton_kernels import on_its_device

    @torch.compile(fullgraph=True, backend="eager")
    def added(x: Tensor) -> Tensor:
        with on_its_device(x):
            return x + 1

    assert added(torch.zeros(1)) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not FIT or torch.cuda.device_count() < 2, reason="needs two GPUs that the kernels fit")
@torch.no_grad()
def test_the_same_on_two_gpus() -> None:
    x, weight, table = random(1, 7, 24), random(24), torch.randn(7, 4, 2)
    results = []
    for device in ("cuda:0", "cuda:1"):
        assert kernels.fit(x.to(device))
        arguments = x.to(device), weight.to(device), 1e-6, table.to(device), 3
        results.append(kernels.norm_rope(*arguments))
        compiled = torch.compile(kernels.norm_rope)
        torch.testing.assert_close(compiled(*arguments), results[-1])
        assert results[-1].device == torch.device(device)
    assert torch.cuda.current_device() == 0
    assert results[0].equal(results[1].to("cuda:0"))


def test_where_triton_does_not_work_torch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(x: Tensor, gamma: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr("omniavatar.models.triton_kernels.norm_silu", fail)
    assert not gpu.starts.__wrapped__(DEVICE)
    assert "Triton does not work here, so torch's slower kernels are used: Failed to find C compiler." in caplog.text


def test_the_compiler_takes_the_answer_for_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def capability(device: int) -> tuple[int, int]:
        asked.append(device)
        return 8, 0

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)

    @torch.compile(fullgraph=True, backend="eager")
    def chosen(x: Tensor) -> Tensor:
        from omniavatar.models.gpu import serves

        return x + 1 if serves(3) else x - 1

    assert chosen(torch.zeros(1)) == -1
    assert asked == [3]
