"""Beside diffusers: `python -m benchmarks.peers --size 14b --output results.json`.

One transformer call of 720x400x105 (30,375 tokens), 512 text tokens, bf16, batch 1, random weights of the true shapes:
this engine with audio, by several plans, and diffusers' transformer without audio, with its blocks compiled and cuDNN's
attention. Then the decoding of the window's 27 latent frames by both VAEs with equal weights, and how far the pictures
differ. All ways take turns, round by round; a time is the median of the rounds. Last every kernel for self-attention
by itself, with its error against float64. On a machine without a GPU it runs small networks, to show that it works;
those times mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import publish
from benchmarks.scaling import FRAMES, HEIGHT, WIDTH, StepTimer
from benchmarks.synthetic import ROWS, TEXT_TOKENS, RandomCondition, RandomModels, RandomSound, RandomText, fill
from benchmarks.training import seconds_of
from omniavatar import builtin
from omniavatar.bench.machine import command, machine
from omniavatar.checkpoints.loading import build_on_meta
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Catalog, Plan, build_plan
from omniavatar.engine.scopes import Request
from omniavatar.models.attention import sdpa
from omniavatar.models.attention_kernels import KERNELS
from omniavatar.testing.models import WAN
from omniavatar.units import AudioAdapter, Euler, Guidance, Schedule, Transformer

OURS = ("eager", "compile+attention(kernel=flash-attn-4)", "compile+fp8+attention(kernel=flash-attn-4)")
THEIRS = "diffusers, compiled, cuDNN attention"
PARTS = ("transformer", "vae", "attention")
VAE_WAYS = {"omniavatar, 1 latent frame a pass": 1, "omniavatar, 4": 4, "omniavatar, all": 99}
Work = Callable[[], float]
"""Does it once; the seconds that it took."""


class OurCall:
    """The transformer calls of a plan: the seconds of a step that makes one call."""

    def __init__(self, models: RandomModels, extra: str, device: torch.device) -> None:
        small = device.type == "cpu"
        frames, self.height, self.width = (9, 64, 64) if small else (FRAMES, HEIGHT, WIDTH)
        catalog = Catalog({unit.name: unit for unit in builtin.omni_units()}, builtin.omni_presets())
        added = build_plan(extra, catalog).units if extra != "eager" else ()
        conditions = (RandomText(), RandomCondition(), RandomSound(frames), AudioAdapter())
        self.timer = StepTimer(device)
        self.engine = Engine(
            Plan([*conditions, Guidance(scale=1.0), Schedule(steps=3), Euler(), Transformer(), *added]),
            models,
            device=device,
            dtype=torch.float32 if small else torch.bfloat16,
            observers=[self.timer],
        )

    def __call__(self) -> float:
        self.timer.seconds.clear()
        self.engine.generate(Request(height=self.height, width=self.width))
        return statistics.median(self.timer.seconds[1:])


class TheirCall:
    """One call of diffusers' transformer of the same shape, with the 16 channels of text to video."""

    def __init__(self, models: RandomModels, device: torch.device) -> None:
        config = models.config("dit")
        small = device.type == "cpu"
        frames, height, width = (9, 64, 64) if small else (FRAMES, HEIGHT, WIDTH)
        dtype = torch.float32 if small else torch.bfloat16
        with torch.device("meta"):
            network: Any = peer().WanTransformer3DModel(
                patch_size=tuple(config["patch_size"]),
                num_attention_heads=config["num_heads"],
                attention_head_dim=config["dim"] // config["num_heads"],
                in_channels=16,
                out_channels=16,
                text_dim=config["text_dim"],
                freq_dim=config["freq_dim"],
                ffn_dim=config["ffn_dim"],
                num_layers=config["num_layers"],
                cross_attn_norm=True,
            )
        # Its rotary table is a buffer that is no weight: made anew where the weights are.
        network.rope = type(network.rope)(network.rope.attention_head_dim, network.rope.patch_size, 1024)
        if not small:
            network.set_attention_backend("_native_cudnn")
            network.compile_repeated_blocks(fullgraph=True)
        self.network = fill_beside_buffers(network, device, dtype)
        self.inputs = {
            "hidden_states": torch.randn(1, 16, WAN.latent_frames(frames), height // 8, width // 8).to(device, dtype),
            "timestep": torch.tensor([500.0], device=device),
            "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, config["text_dim"]).to(device, dtype),
        }
        self.device = device

    @torch.inference_mode()
    def __call__(self) -> float:
        return timed(lambda: self.network(**self.inputs, return_dict=False)[0], self.device)


def peer() -> Any:
    """diffusers, without its advice: in bf16 throughout it is at its fastest."""
    diffusers: Any = importlib.import_module("diffusers")
    diffusers.logging.set_verbosity_error()
    return diffusers


def fill_beside_buffers(network: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights; the buffers stay as they are."""
    kept = {name: buffer for name, buffer in network.named_buffers() if not buffer.is_meta}
    network = fill(network, device, dtype)
    for name, buffer in kept.items():
        owner, _, last = name.rpartition(".")
        network.get_submodule(owner)._buffers[last] = buffer.to(device)
    return network


def vae_works(device: torch.device) -> tuple[dict[str, Work], dict[str, float]]:
    """Decoding by both VAEs, and the mean and largest difference of their pictures in grey levels of 255."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    models = RandomModels("tiny", with_vae=True)
    assert models.vae is not None
    config = models.vae.config if device.type != "cpu" else {**models.vae.config, "dim": 8, "num_res_blocks": 1}
    ours: Any = fill(build_on_meta(models.vae.network or "", config), device, dtype)
    theirs: Any = (
        peer()
        .AutoencoderKLWan(
            base_dim=config["dim"],
            z_dim=config["z_dim"],
            dim_mult=list(config["dim_mult"]),
            num_res_blocks=config["num_res_blocks"],
            temperal_downsample=list(config["temporal_downsample"]),
            latents_mean=list(ours.latent_mean),
            latents_std=list(ours.latent_std),
        )
        .to(device, dtype)
    )
    theirs.load_state_dict({diffusers_key(k, config["num_res_blocks"]): v for k, v in ours.state_dict().items()})
    shape = (3, 4, 4) if device.type == "cpu" else (WAN.latent_frames(FRAMES), HEIGHT // 8, WIDTH // 8)
    latents = torch.randn(1, 16, *shape).to(device, dtype)
    mean, std = (
        torch.tensor(value, device=device).view(1, -1, 1, 1, 1) for value in (ours.latent_mean, ours.latent_std)
    )

    def decode_theirs() -> Tensor:
        pictures: Tensor = theirs.decode((latents * std + mean).to(dtype), return_dict=False)[0]
        return pictures

    works: dict[str, Work] = {"diffusers": lambda: timed(decode_theirs, device)}
    for name, passes in VAE_WAYS.items():
        works[name] = partial(timed, partial(ours.decode, latents, latents_per_pass=passes), device)
    with torch.inference_mode():
        difference = (ours.decode(latents, latents_per_pass=4).float() - decode_theirs().float()).abs() * 127.5
    return works, {"mean": round(float(difference.mean()), 4), "largest": round(float(difference.max()), 3)}


def diffusers_key(key: str, num_res_blocks: int) -> str:
    """The name in diffusers' `AutoencoderKLWan` of a weight of the official file."""
    side, _, rest = key.partition(".")
    if side in ("conv1", "conv2"):
        return {"conv1": "quant_conv", "conv2": "post_quant_conv"}[side] + "." + rest
    part, _, rest = rest.partition(".")
    if part == "conv1":
        return f"{side}.conv_in.{rest}"
    index, _, rest = rest.partition(".")
    if part == "head":
        return f"{side}.{'norm_out' if index == '0' else 'conv_out'}.{rest}"
    for ours, theirs in (("0", "norm1"), ("2", "conv1"), ("3", "norm2"), ("6", "conv2")):
        rest = rest.replace(f"residual.{ours}.", f"{theirs}.")
    rest = rest.replace("shortcut.", "conv_shortcut.")
    if part == "middle":
        block = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}[index]
        return f"{side}.mid_block.{block}.{rest}"
    if part == "downsamples":
        return f"{side}.down_blocks.{index}.{rest}"
    level, layer = divmod(int(index), num_res_blocks + 2)
    block = "upsamplers.0" if layer == num_res_blocks + 1 else f"resnets.{layer}"
    return f"{side}.up_blocks.{level}.{block}.{rest}"


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a piece of work, with the device waited for."""
    with torch.inference_mode():
        return seconds_of(work, device)


def rounds(works: Mapping[str, Work], count: int, against: str) -> list[dict[str, Any]]:
    """All ways in turn, `count` times after one for warming up: the median seconds and the share of `against`."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(count + 1):
        for name, work in works.items():
            taken = work()
            if number:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        {
            "way": name,
            "seconds": round(medians[name], 5),
            "spread": round(max(values) - min(values), 5),
            "share": round(medians[name] / medians[against], 4),
        }
        for name, values in seconds.items()
    ]


def calls(
    models: RandomModels, ours: Sequence[str], count: int, device: torch.device
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of the transformer, and the ways that do not run here with the reason."""
    works: dict[str, Work] = {THEIRS: TheirCall(models, device)}
    refused: dict[str, str] = {}
    for extra in ours:
        try:
            call = OurCall(models, extra, device)
            call()
        except Exception as error:  # a way that fails stays in the table
            refused[extra] = str(error).partition("\n")[0]
        else:
            works[f"omniavatar, {extra}"] = call
    return rounds(works, count, THEIRS), refused


@torch.inference_mode()
def attention_kernels(config: Mapping[str, Any], count: int, device: torch.device) -> list[dict[str, Any]]:
    """Every kernel for self-attention: seconds, TFLOP/s, and its relative error on some queries of two heads."""
    small = device.type == "cpu"
    heads, width = config["num_heads"], config["dim"] // config["num_heads"]
    tokens = 64 if small else WAN.latent_frames(FRAMES) * (HEIGHT // 16) * (WIDTH // 16)
    dtype = torch.float32 if small else torch.bfloat16
    q, k, v = (torch.randn(1, tokens, heads, width, device=device).to(dtype) for _ in range(3))
    some = (slice(None), slice(64), slice(2))
    exact = sdpa(q[some].double(), k[:, :, :2].double(), v[:, :, :2].double())
    rows: list[dict[str, Any]] = []
    for name, kernel in KERNELS.items():
        try:
            compute = kernel()
            error = (compute(q, k, v)[some].double() - exact).norm() / exact.norm()
            seconds = statistics.median([timed(partial(compute, q, k, v), device) for _ in range(count)])
        except Exception as failure:  # a kernel that does not run here stays in the table
            rows.append({"kernel": name, "refused": str(failure).partition("\n")[0]})
            continue
        speed = 4 * tokens**2 * heads * width / seconds / 1e12
        figures = {"seconds": round(seconds, 5), "tflops": round(speed), "error": round(float(error), 7)}
        rows.append({"kernel": name, **figures})
    return rows


def main() -> None:
    """Measure the transformer of one size, and the VAE."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--size", choices=ROWS, default="14b" if cuda else "tiny")
    parser.add_argument("--ours", nargs="*", default=list(OURS), help="what is added to the plan; 'eager': nothing")
    parser.add_argument("--blocks", type=int, help="of the transformers; default: all that the size has")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="diffusers")
    device = torch.device("cuda" if cuda else "cpu")
    result: dict[str, Any] = {
        "machine": {**machine(device), "diffusers": peer().__version__},
        "command": command("benchmarks.peers"),
        "size": arguments.size,
        "rounds": arguments.rounds,
    }
    models = RandomModels(arguments.size, blocks=arguments.blocks)
    result["blocks"] = models.blocks
    if "transformer" in arguments.only:
        result["transformer"], result["refused"] = calls(models, arguments.ours, arguments.rounds, device)
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    if "vae" in arguments.only:
        works, result["difference_of_pictures"] = vae_works(device)
        result["vae"] = rounds(works, arguments.rounds, "diffusers")
    if "attention" in arguments.only:
        result["attention"] = attention_kernels(models.config("dit"), arguments.rounds, device)
    publish(result, arguments.output)


if __name__ == "__main__":
    main()
