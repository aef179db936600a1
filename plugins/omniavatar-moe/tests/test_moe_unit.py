"""The units `moe` and `moe-guidance`: which transformer works in which step, where they lie, what goes with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omniavatar_moe.guidance import MoeGuidance
from omniavatar_moe.unit import Moe, place
from torch import Tensor, nn

from omniavatar.checkpoints import Registry
from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan, build_plan
from omniavatar.engine.scopes import Forward, Request, Step, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.errors import CheckpointError, PlanError
from omniavatar.hookspecs import hookimpl
from omniavatar.models.wan_dit import WanDiT
from omniavatar.plugins import discover
from omniavatar.testing import FakeDiT, tiny
from omniavatar.testing.tiny import tiny_file
from omniavatar.units import Euler, FixedFrames, Fsdp, Guidance, TeaCache, Transformer, VaeDecode
from tests.golden import kind_moe
from tests.golden.cases import read_case
from tests.models.networks import randomized
from tests.scenes import Scene, fake_engine, fake_models, request

CATALOG = discover().catalog()
PRESET = "wan-t2v-a14b-write-video"
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
    others = [FixedFrames(window_frames=5, overlap=1), guidance or Guidance(scale=1), Euler(steps=STEPS), Transformer()]
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


def test_the_one_that_waits_is_not_on_the_device() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    place([first, second], second, torch.device("meta"))
    assert (first.weight.device.type, second.weight.device.type) == ("cpu", "meta")
    place([], first, torch.device("meta"))
    assert first.weight.device.type == "meta"


def test_only_the_first_is_loaded_on_the_device() -> None:
    devices = {}

    class Models(tiny.TinyModels):
        def load(self, role: str, *, device: torch.device, dtype: torch.dtype, **constructor: Any) -> nn.Module:
            devices[role] = device.type
            return self.networks[role]

    engine = Engine(Plan((Moe(),)), Models(dit2=WanDiT(**tiny.DIT)), device="meta")
    for role in ("dit", "dit2"):
        engine.model(role)
    assert devices == {"dit": "meta", "dit2": "cpu"}


class Movable(FakeDiT):
    """A transformer that keeps a list of where it and another one come to lie; nothing can be copied off 'meta'."""

    def __init__(self, role: str, moves: list[tuple[str, str]]) -> None:
        super().__init__()
        self.role, self.moves = role, moves
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def to(self, device: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        self.weight = nn.Parameter(torch.zeros(1, device=device), requires_grad=False)
        self.moves.append((self.role, self.weight.device.type))
        return self


class TextHere:
    """Puts the texts of a scene where the latents are."""

    @hookimpl(trylast=True)
    def embed(self, forward: Forward) -> None:
        forward.context = forward.context.to(forward.x.device)


class Grey(VaeDecode):
    """Grey frames on the host, since none can come from 'meta'."""

    @hookimpl
    def decode_latents(self, window: Window) -> Iterator[Tensor]:
        yield torch.full((1, 3, window.span.frames, *window.job.size), 0.5)


def test_one_leaves_the_device_before_the_other_comes() -> None:
    moves: list[tuple[str, str]] = []
    networks = fake_models(dit=Movable("dit", moves), dit2=Movable("dit2", moves))
    units = [Scene(frames=9), Moe(), FixedFrames(window_frames=5, overlap=1), Guidance(scale=1), Euler(steps=STEPS)]
    engine = fake_engine([*units, Transformer(), Grey()], models=networks, device="meta", observers=[TextHere()])
    engine.generate(request())
    loaded = [("dit", "meta"), ("dit2", "cpu")]
    second = [("dit", "cpu"), ("dit2", "meta")]
    first = [("dit2", "cpu"), ("dit", "meta")]
    assert moves == [*loaded, *second, *first, *second]


class Places(Look):
    """Where both transformers lie in every step, beside what it keeps anyway."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[tuple[str, ...]] = []

    @hookimpl
    def embed(self, forward: Forward) -> None:
        roles = (forward.engine.model(role) for role in ("dit", "dit2"))
        self.devices.append(tuple(next(network.parameters()).device.type for network in roles))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_they_change_places() -> None:
    kept = {}
    for offload in (True, False):
        places = Places()
        plan = build_plan(
            f"{PRESET}+moe(offload={offload})+euler(steps=4, shift=5)-moe-guidance+guidance(scale=1)", CATALOG, SETTINGS
        )
        engine = Engine(plan, models(), device="cuda", observers=[places])
        for _ in range(2):
            engine.generate(Request(height=32, width=32, seconds=0.52))
        kept[offload] = places
    assert kept[True].devices == 4 * [*[("cuda", "cpu")] * 2, *[("cpu", "cuda")] * 2]
    assert set(kept[False].devices[-4:]) == {("cuda", "cuda")}
    assert kept[True].latents[-1].equal(kept[False].latents[-1])


SETTINGS: dict[str, dict[str, Any]] = {
    "fixed-frames": {"window_frames": 9, "overlap": 5},
    "euler": {"steps": 4, "shift": 5.0},
    "prompt": {"length": 32, "tokenizer": tiny_file("tokenizer")},
}


def models(seed: int = 1) -> tiny.TinyModels:
    """The tiny networks as text to video, with a second transformer."""
    sizes = {**tiny.DIT, "in_dim": tiny.BASE_IN_DIM, "num_layers": 2}
    return tiny.TinyModels(dit=randomized(WanDiT(**sizes)), dit2=randomized(WanDiT(**sizes), seed=seed))


def latents(expression: str, networks: tiny.TinyModels) -> Tensor:
    """The final latents of a small video by this plan."""
    look = Look()
    plan = build_plan(expression, CATALOG, SETTINGS)
    engine = Engine(plan, networks, observers=[look])
    engine.generate(Request(height=32, width=32, seconds=0.36))
    return look.latents[-1]


def test_real_networks_take_turns() -> None:
    rest = "+fixed-frames+guidance+euler(steps=4)+transformer+vae-decode"
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


def test_sharded_weights_stay_where_they_are() -> None:
    engine = Engine(Plan((Moe(), Fsdp())), fake_models(dit2=FakeDiT()))
    with pytest.raises(PlanError, match=r"units 'moe' and 'fsdp' both move the transformers .* moe\(offload=false\)"):
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
