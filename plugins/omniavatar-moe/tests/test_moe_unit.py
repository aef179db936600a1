"""The units `moe` and `moe-guidance`: which transformer works in which step, where they lie, what goes with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_moe.guidance import MoeGuidance
from omniavatar_moe.unit import Moe
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from omniavatar.checkpoints import Registry
from omniavatar.engine.engine import Engine
from omniavatar.engine.placing import Kept
from omniavatar.engine.plan import Plan, build_plan
from omniavatar.engine.scopes import Forward, Request, Step
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import WanDiT
from omniavatar.plugins import discover
from omniavatar.testing import FakeDiT, GivenLora, tiny
from omniavatar.testing.tiny import TinyModels, tiny_file
from omniavatar.units import Euler, FixedFrames, Fsdp, Guidance, Schedule, TeaCache, Transformer, VaeDecode
from tests.golden import kind_moe
from tests.golden.cases import read_case
from tests.models.networks import noise, randomized
from tests.scenes import Scene, fake_engine, fake_models, request

CATALOG = discover().catalog()
PRESET = "wan-t2v-a14b-write-video"
ALIKE = f"{PRESET}-moe-guidance+guidance(scale=1)+schedule(steps=4, shift=5)"
"""Two steps of each transformer, a call a step."""
STEPS = 8
SWITCH = 4
"""Of 8 steps with shift 5, the first whose time is below 875."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Look:
    """Keeps the velocity and the network of every step."""

    def __init__(self) -> None:
        self.velocities: list[Tensor] = []
        self.networks: list[Any] = []
        self.latents: list[Tensor] = []

    @hookimpl
    def before_step(self, step: Step) -> None:
        self.latents.append(step.window.latents.clone())

    @hookimpl
    def after_step(self, step: Step) -> None:
        self.velocities.append(step.velocity)
        self.networks.append(step.network)


def denoised(*units: PipelineUnit, guidance: PipelineUnit | None = None, frames: int = 5) -> tuple[Engine, Look]:
    """A video by two fake transformers: velocity = latents + blocks * context, with 4 blocks and with 2."""
    look, models = Look(), fake_models(dit=FakeDiT(num_layers=4), dit2=FakeDiT(num_layers=2))
    others = [
        FixedFrames(window_frames=5, overlap=1),
        guidance or Guidance(scale=1),
        Schedule(steps=STEPS),
        Euler(),
        Transformer(),
    ]
    plan = [Scene(frames=frames, texts=(0.5, -0.5)), *units, *others, VaeDecode()]
    engine = fake_engine(plan, models=models, observers=[look])
    engine.generate(request())
    return engine, look


def additions(look: Look) -> list[float]:
    """What the transformer added to the latents in every step: blocks * context, after guidance."""
    return [
        round((velocity - latents).mean().item(), 4)
        for velocity, latents in zip(look.velocities, look.latents, strict=True)
    ]


def test_golden() -> None:
    case = read_case(Path(kind_moe.__file__).parent / "moe.json")
    kind_moe.run_moe(case)
    assert case.checks
    assert not case.failures


def test_the_second_takes_over_below_the_boundary_in_every_window_anew() -> None:
    engine, look = denoised(Moe(), frames=9)
    high, low = (engine.model(role) for role in ("dit", "dit2"))
    assert look.networks == 2 * [*[high] * SWITCH, *[low] * (STEPS - SWITCH)]
    assert (high.calls, low.calls) == (2 * SWITCH, 2 * (STEPS - SWITCH))
    assert additions(look)[:STEPS] == [2.0] * SWITCH + [1.0] * (STEPS - SWITCH)


@pytest.mark.parametrize(("boundary", "high"), [(0.0, STEPS), (0.2, STEPS), (0.9, 3), (1.0, 1)])
def test_the_boundary_can_be_set(boundary: float, high: int) -> None:
    engine, look = denoised(Moe(boundary=boundary))
    assert look.networks.count(engine.model("dit")) == high


def test_with_boundary_0_nothing_changes() -> None:
    _, plain = denoised()
    _, none = denoised(Moe(boundary=0))
    assert plain.velocities[-1].equal(none.velocities[-1])
    _, some = denoised(Moe())
    assert not plain.velocities[-1].equal(some.velocities[-1])


def test_the_times_may_not_go_back_to_the_first() -> None:
    class UpAndDown(Euler):
        """Times that rise again, as those of a sampler that adds noise."""

        name = "up-and-down"

        @hookimpl
        def plan_steps(self, window: Any) -> Sequence[Step]:
            return [Step(window, index, time, 0.0, 0.0) for index, time in enumerate((950, 800, 900, 700))]

    look, models = Look(), fake_models(dit2=FakeDiT())
    engine = fake_engine(
        [Scene(frames=5), Moe(), Guidance(scale=1), UpAndDown(), Transformer()], models=models, observers=[look]
    )
    engine.generate(request())
    assert [network is engine.model("dit2") for network in look.networks] == [False, True, True, True]


def test_guidance_may_differ() -> None:
    """n + scale (p - n) with p = 0.5 and n = -0.5 times the blocks."""
    _, look = denoised(Moe(), guidance=MoeGuidance(scale=4, low_scale=3))
    assert additions(look) == [3.5 * 4] * SWITCH + [2.5 * 2] * (STEPS - SWITCH)
    _, same = denoised(Moe(), guidance=MoeGuidance(scale=3, low_scale=3))
    _, plain = denoised(Moe(), guidance=Guidance(scale=3))
    assert all(one.equal(other) for one, other in zip(same.velocities, plain.velocities, strict=True))


def test_a_cache_has_a_schedule_for_each() -> None:
    engine, _ = denoised(Moe(), TeaCache(threshold=10))
    blocks = [engine.model(role).blocks[0].calls for role in ("dit", "dit2")]
    assert blocks == [2, 2], "the first and last step of each"


COPIES = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.clone)


class Traffic(TorchDispatchMode):
    """Notes how many bytes each copy of something as large as a transformer has."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.copied: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        kind = function.overloadpacket
        if kind in COPIES and result.nbytes >= self.least and (result is not args[0] or kind is torch.ops.aten.copy_):
            self.copied.append(result.nbytes)
        return result


def waiting(engine: Engine) -> dict[str, Tensor]:
    """The host memory that the networks of an engine wait in, by role."""
    visitors: dict[str, Any] = dict(engine.residency.visitors)
    return {role: visitor.packed for role, visitor in visitors.items()}


def test_a_switch_copies_one_transformer_once_and_nothing_back() -> None:
    engine = Engine(build_plan(ALIKE, CATALOG, SETTINGS), models())
    engine.load()
    size = {role: memory.nbytes for role, memory in waiting(engine).items()}
    traffic = Traffic(min(size.values()) // 2)
    with traffic:
        engine.generate(Request(height=32, width=32, seconds=0.52))
    assert traffic.copied == [size["dit"], size["dit2"]] * 2, "in each of two windows one after the other"


class Places(Look):
    """Which transformers have their weights in every step, beside what it keeps anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.present: list[list[str]] = []

    @hookimpl
    def embed(self, forward: Forward) -> None:
        engine = forward.engine
        held = {role: sum(weight.numel() for weight in engine.model(role).parameters()) for role in ("dit", "dit2")}
        self.present.append([role for role, count in held.items() if count])


def test_one_leaves_the_device_before_the_other_comes() -> None:
    places = Places()
    latents(ALIKE, models(), places)
    assert places.present == [["dit"], ["dit"], ["dit2"], ["dit2"]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_they_change_places() -> None:
    kept = {}
    for way in ("", "+moe(offload=False)", "+offload", "+offload(resident=1)", "+disk-offload"):
        places = Places()
        engine = Engine(build_plan(f"{ALIKE}{way}", CATALOG, SETTINGS), models(), device="cuda", observers=[places])
        for _ in range(2):
            engine.generate(Request(height=32, width=32, seconds=0.52))
        assert all(memory.is_pinned() for memory in waiting(engine).values())
        kept[way] = places
        engine.close()
    assert kept[""].present == 4 * [*[["dit"]] * 2, *[["dit2"]] * 2]
    assert set(map(len, kept["+moe(offload=False)"].present)) == {2}
    for places in kept.values():
        assert places.latents[-1].equal(kept[""].latents[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        *("offload", "offload(resident=1)", "disk-offload", "moe(offload=false)", "moe(offload=false)+offload"),
        pytest.param("compile(backend=eager)", marks=pytest.mark.slow),
    ],
)
def test_how_they_wait_changes_no_bit(other: str) -> None:
    places = Places()
    assert latents(f"{ALIKE}+{other}", models(), places).equal(latents(ALIKE, models()))
    both = other == "moe(offload=false)"
    assert places.present == (4 * [["dit", "dit2"]] if both else [["dit"], ["dit"], ["dit2"], ["dit2"]])


class WithLora(TinyModels):
    """With a LoRA of both transformers, with names as in diffusers, that changes norms too, and with the steps."""

    def adapters(self) -> list[GivenLora]:
        width = self.networks["dit"].dim
        state = {
            f"{start}blocks.{index}.{name}": noise(*shape, seed=index) / 4
            for index, start in enumerate(("transformer.", "transformer_2."))
            for name, shape in (("scale_shift_table.diff", (1, 6, width)), ("attn1.norm_q.diff", (width,)))
        }
        return [GivenLora(state, strength=((0.0, 0.25, 1.0), (0.25, 0.75, -1.0)))]


@pytest.mark.parametrize("other", ["", "+offload", "+disk-offload"])
def test_norms_of_both_change_with_the_steps(other: str) -> None:
    def with_lora() -> WithLora:
        networks: dict[str, Any] = models().networks
        return WithLora(**networks)

    plan = f"{ALIKE}+lora"
    changed = latents(f"{plan}{other}", with_lora())
    assert changed.equal(latents(f"{plan}+moe(offload=false)", with_lora()))
    assert (changed - latents(ALIKE, models())).abs().max() > 1e-3


def test_beside_offload_only_blocks_of_the_one_at_work_are_there() -> None:
    class Streams:
        """Whether each of the transformers holds device memory for blocks, behind every block."""

        def __init__(self) -> None:
            self.seen: list[list[bool]] = []

        @hookimpl
        def after_block(self, forward: Forward, index: int) -> None:
            networks = (forward.engine.model(role) for role in ("dit", "dit2"))
            self.seen.append([bool(network.blocks[0].stream.shared) for network in networks])

    streams = Streams()
    latents(f"{ALIKE}+offload", models(), streams)
    assert streams.seen == [[True, False]] * 4 + [[False, True]] * 4


def test_what_changes_weights_comes_before_they_wait() -> None:
    rounded = f"{ALIKE}+fp8(mode=storage)"
    assert latents(rounded, models()).equal(latents(f"{rounded}+moe(offload=false)", models()))
    assert not latents(rounded, models()).equal(latents(ALIKE, models()))


def test_both_are_loaded_in_host_memory() -> None:
    devices = {}

    class Models(tiny.TinyModels):
        def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
            devices[role] = device.type
            return self.networks[role]

    engine = Engine(Plan((Moe(),)), Models(dit2=WanDiT(**tiny.DIT)), device="meta")
    for role in ("dit", "dit2"):
        engine.model(role)
    assert devices == {"dit": "cpu", "dit2": "cpu"}


def test_what_estimates_are_told() -> None:
    assert Moe().keeps("dit2", 40, Plan()) == Kept(on_device=40, in_host=40, arriving=40)
    assert Moe().keeps("vae", 0, Plan()) is None
    assert Moe(offload=False).keeps("dit", 40, Plan()) is None


SETTINGS: dict[str, dict[str, Any]] = {
    "fixed-frames": {"window_frames": 9, "overlap": 5},
    "schedule": {"steps": 4, "shift": 5.0},
    "prompt": {"length": 32, "tokenizer": tiny_file("tokenizer")},
}


def models(seed: int = 1) -> tiny.TinyModels:
    """The tiny networks as text to video, with a second transformer."""
    sizes = {**tiny.DIT, "in_dim": tiny.BASE_IN_DIM, "num_layers": 2}
    return tiny.TinyModels(dit=randomized(WanDiT(**sizes)), dit2=randomized(WanDiT(**sizes), seed=seed))


def latents(expression: str, networks: tiny.TinyModels, *observers: Any) -> Tensor:
    """The final latents of a small video by this plan."""
    look = Look()
    plan = build_plan(expression, CATALOG, SETTINGS)
    engine = Engine(plan, networks, observers=[look, *observers])
    engine.generate(Request(height=32, width=32, seconds=0.36))
    return look.latents[-1]


def test_real_networks_take_turns() -> None:
    rest = "+fixed-frames+guidance+schedule(steps=4)+euler+transformer+vae-decode"
    alone, twins = latents(f"prompt{rest}", models()), latents(f"prompt+moe{rest}", models(seed=0))
    assert alone.equal(twins), "an expert with the same weights"
    assert not torch.allclose(alone, latents(f"prompt+moe{rest}", models()), atol=1e-3)


def test_without_a_second_transformer_it_says_what_to_give() -> None:
    with pytest.raises(CheckpointError, match="unit 'moe' needs a model for the role 'dit2' and no given file has one"):
        Engine(Plan((Moe(),)), fake_models())


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"in_dim": 36}, r"'patch_embedding.weight' is \(96, 16, 1, 2, 2\) in 'dit' and \(96, 36, 1, 2, 2\) in 'dit2'"),
        ({"num_layers": 1}, r"'blocks.1.modulation' is \(1, 6, 96\) in 'dit' and missing in 'dit2'"),
        ({"num_layers": 3}, r"'blocks.2.modulation' is missing in 'dit' and \(1, 6, 96\) in 'dit2'"),
    ],
)
def test_two_transformers_that_are_not_alike_are_refused_before_the_first_step(
    other: dict[str, int], difference: str
) -> None:
    sizes = {**tiny.DIT, "in_dim": tiny.BASE_IN_DIM, "num_layers": 2}
    pair = tiny.TinyModels(dit=WanDiT(**sizes), dit2=WanDiT(**{**sizes, **other}))
    with pytest.raises(CheckpointError, match=f"for high and low noise differ: {difference}; give two of one model"):
        Engine(build_plan(PRESET, CATALOG, SETTINGS), pair).set_up()


@pytest.mark.usefixtures("only_headers")
def test_two_scales_without_two_transformers_are_refused() -> None:
    engine = Engine(build_plan(f"{PRESET}-moe", CATALOG, SETTINGS), models())
    with pytest.raises(PlanError, match=r"'moe-guidance' has a scale for each of two .* only 'moe' changes between"):
        engine.check_request(Request(height=32, width=32, seconds=0.3))


def test_sharded_weights_cannot_wait() -> None:
    engine = Engine(Plan((Moe(), Fsdp())), fake_models(dit2=FakeDiT()))
    with pytest.raises(PlanError, match=r"with 'fsdp' every GPU holds a part of both .* moe\(offload=false\)"):
        engine.check_request(request(seconds=0.3))
    Engine(Plan((Moe(offload=False), Fsdp())), fake_models(dit2=FakeDiT())).check_request(request(seconds=0.3))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("moe(boundary=875)", "unit 'moe': boundary = 875"),
        ("guidance+moe-guidance", "units 'guidance' and 'moe-guidance' are both guidance rules; leave one out"),
    ],
)
def test_plans_that_do_not_fit_are_refused(expression: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        build_plan(expression, CATALOG)
    assert str(caught.value).startswith(message)


def test_both_experts_of_wan_2_2_are_known_by_the_hash_of_wan_2_1() -> None:
    (row,) = (row for row in Registry.builtin().rows if row.hash == "aafcfd9672c3a2456dc46e1cb6e52c70")
    for expert in ("high", "low"):
        files = f"Wan-AI/Wan2.2-T2V-A14B:{expert}_noise_model/diffusion_pytorch_model*.safetensors"
        assert files in row.also
