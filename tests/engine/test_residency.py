"""Which networks are on the device when, by what units declare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from omniavatar.engine.engine import Engine
from omniavatar.engine.plan import Plan
from omniavatar.engine.residency import IdleInSteps, Residency, roles_in_steps
from omniavatar.engine.scopes import Forward, Job, Window
from omniavatar.engine.unit import PipelineUnit
from omniavatar.hookspecs import hookimpl
from omniavatar.testing import FakeDiT
from tests.scenes import SIZE, Scene, denoising_units, fake_models, request


class Network:
    """Comes and goes."""

    def __init__(self, log: list[str], role: str) -> None:
        self.log, self.role, self.is_here = log, role, False

    def come(self) -> None:
        if not self.is_here:
            self.log.append(f"+{self.role}")
        self.is_here = True

    def leave(self) -> None:
        if self.is_here:
            self.log.append(f"-{self.role}")
        self.is_here = False


class Noting(PipelineUnit):
    """Writes down when its hooks run."""

    log: ClassVar[list[str]] = []

    def note(self, hook: str) -> None:
        self.log.append(f"{self.name}.{hook}")


class Reader(Noting, IdleInSteps):
    """Works with the text encoder at the beginning of a job, and takes part in calls without it."""

    name = "reader"
    roles = ("text_encoder",)
    idle_in_steps = ("text_encoder",)

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.note("begin_job")

    @hookimpl
    def before_block(self, forward: Forward, index: int) -> None:
        if index == 0:
            self.note("before_block")


class Painter(Noting, IdleInSteps):
    """Wraps the end of a window and works with two networks, on both sides; one of them in steps too."""

    name = "painter"
    roles = ("brush",)
    optional_roles = ("palette", "absent")
    idle_in_steps = ("palette",)

    @hookimpl(wrapper=True)
    def end_window(self, window: Window) -> Iterator[None]:
        self.note("before")
        yield
        self.note("behind")

    @hookimpl
    def embed(self, forward: Forward) -> None:
        self.note("embed")


class Idler(Noting):
    """Works with no network."""

    name = "idler"

    @hookimpl
    def begin_job(self, job: Job) -> None:
        self.note("begin_job")


class Counter(PipelineUnit):
    """Works with a network outside the steps alone."""

    name = "counter"
    roles = ("text_encoder", "brush")

    @hookimpl
    def setup(self, engine: Engine) -> None: ...

    @hookimpl
    def begin_window(self, window: Window) -> None: ...


def played(*units: PipelineUnit) -> tuple[list[str], Engine]:
    """What comes, goes and runs in a video of one window and one step; the transformer and the VAE are no visitors."""
    log: list[str] = []
    Noting.log = log
    models = fake_models(**{role: FakeDiT() for role in ("text_encoder", "brush", "palette")})
    engine = Engine(Plan((Scene(5), *units, *denoising_units(steps=1))), models)
    for role in ("text_encoder", "brush", "palette"):
        engine.residency.visitors[role] = Network(log, role)
    engine.generate(request())
    return log, engine


def test_networks_come_for_their_units_and_go_for_others() -> None:
    log, engine = played(Reader(), Idler(), Painter())
    assert log == [
        *("+text_encoder", "reader.begin_job", "idler.begin_job"),
        *("-text_encoder", "+brush", "painter.embed", "reader.before_block"),
        *("+palette", "painter.before", "painter.behind"),
    ]
    assert engine.residency.present == {"brush", "palette"}


def test_both_sides_of_a_wrapper_find_their_networks() -> None:
    class Thief(Noting):
        """Needs another network between them."""

        name = "thief"
        roles = ("text_encoder",)

        @hookimpl
        def end_window(self, window: Window) -> None:
            self.note("end_window")

    log, _ = played(Painter(), Thief())
    assert log[-10:] == [
        *("+palette", "painter.before"),
        *("-brush", "-palette", "+text_encoder", "thief.end_window"),
        *("-text_encoder", "+brush", "+palette"),
        "painter.behind",
    ]


def test_a_decoder_finds_its_network_for_every_group() -> None:
    class Decoder(Noting):
        """Two groups, each made when it is asked for."""

        name = "decoder"
        roles = ("brush",)

        @hookimpl
        def decode_latents(self, window: Window) -> Iterator[Tensor]:
            for count in (1, 4):
                self.note("group")
                yield torch.zeros(1, 3, count, SIZE, SIZE)

    class Thief(Noting):
        """Needs another network between them."""

        name = "thief"
        roles = ("text_encoder",)

        @hookimpl
        def postprocess_frames(self, window: Window) -> None:
            self.note("postprocess_frames")

    log, _ = played(Decoder(), Thief())
    assert log == [
        *("+brush", "decoder.group", "-brush", "+text_encoder", "thief.postprocess_frames"),
        *("-text_encoder", "+brush", "decoder.group", "-brush", "+text_encoder", "thief.postprocess_frames"),
        *("-text_encoder", "+brush"),
    ]


def test_a_second_video_begins_with_what_it_needs() -> None:
    log, engine = played(Reader(), Painter())
    log.clear()
    engine.generate(request())
    assert log[:4] == ["-brush", "-palette", "+text_encoder", "reader.begin_job"]


def test_without_visitors_nothing_moves() -> None:
    engine = Engine(Plan((Scene(5), *denoising_units(steps=1))), fake_models())
    engine.generate(request())
    assert not engine.residency.present


def test_roles_in_steps() -> None:
    assert roles_in_steps(Reader(), Plan()) == set()
    assert roles_in_steps(Painter(), Plan()) == {"brush", "absent"}
    assert roles_in_steps(Counter(), Plan()) == set()


def test_who_is_admitted_comes_after_all_others_have_gone() -> None:
    log: list[str] = []
    residency = Residency(Plan())
    for role in ("a", "b", "c"):
        residency.visitors[role] = Network(log, role)
    for roles in ({"b"}, {"c", "a"}, {"a"}, set[str]()):
        residency.admit(roles)
    assert log == ["+b", "-b", "+a", "+c", "-c", "-a"]
