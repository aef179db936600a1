"""The contract itself: documented, in the docs too, typed, of the right kind."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from omniavatar.engine.plan import EXCLUSIVE_HOOKS, SHARED_HOOKS
from omniavatar.hookspecs import PROJECT, Discovery, Pipeline

SPECS = [
    (group.__name__, name, spec)
    for group in (Discovery, Pipeline)
    for name, spec in vars(group).items()
    if hasattr(spec, f"{PROJECT}_spec")
]
PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
FIRST_RESULT = {
    *("plan_size", "noise"),
    *("plan_windows", "plan_steps", "guide", "substitute", "predict", "call", "run_blocks", "run_block", "advance"),
    "decode_latents",
}


@pytest.mark.parametrize(("group", "name", "spec"), SPECS, ids=[name for _, name, _ in SPECS])
def test_every_hook_is_documented_and_typed(group: str, name: str, spec: Any) -> None:
    assert inspect.getdoc(spec), f"{name} has no docstring"
    signature = inspect.signature(spec)
    assert signature.return_annotation is not inspect.Signature.empty
    _, *parameters = signature.parameters.values()
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters), "pluggy passes no defaults"


@pytest.mark.parametrize(("group", "name", "spec"), SPECS, ids=[name for _, name, _ in SPECS])
def test_every_hook_has_an_example_and_says_who_may_answer(group: str, name: str, spec: Any) -> None:
    words = " ".join((inspect.getdoc(spec) or "").split())
    assert "Example" in words, f"{name} has no example"
    assert ("Only one unit" in words) == (name in EXCLUSIVE_HOOKS)
    assert ("name the hook in `passes_on`" in words) == (name in SHARED_HOOKS)


def test_the_docs_say_which_hooks_are_exclusive() -> None:
    text = " ".join(PAGE.read_text().split()).partition("Of these with a first result")[2]
    exclusive, _, rest = text.partition("The others,")
    shared = rest.partition("may be answered by several")[0]
    assert [re.findall(r"`(\w+)`", names) for names in (exclusive, shared)] == [[*EXCLUSIVE_HOOKS], [*SHARED_HOOKS]]
    assert {*EXCLUSIVE_HOOKS, *SHARED_HOOKS, "plan_size"} == FIRST_RESULT


def test_nothing_public_is_unmarked() -> None:
    marked = {(group, name) for group, name, _ in SPECS}
    for group in (Discovery, Pipeline):
        assert {(group.__name__, name) for name in vars(group) if not name.startswith("_")} <= marked


def test_discovery_hooks_carry_the_prefix_and_pipeline_hooks_do_not() -> None:
    for group, name, _ in SPECS:
        assert name.startswith("omni_") == (group == "Discovery")


def test_only_hooks_with_one_answer_are_first_result() -> None:
    options = {name: getattr(spec, f"{PROJECT}_spec") for _, name, spec in SPECS}
    assert {name for name, option in options.items() if option["firstresult"]} == FIRST_RESULT


def test_the_order_of_a_video_is_told_completely() -> None:
    overview = inspect.getdoc(Pipeline) or ""
    assert [name for group, name, _ in SPECS if group == "Pipeline" and name not in overview] == []


def test_the_docs_list_every_hook_with_its_exact_signature_in_order() -> None:
    listed = re.findall(r"^- `(\w+\(.*\) -> .*)` \((plain|first result)\): .", PAGE.read_text(), re.MULTILINE)
    kinds = {True: "first result", False: "plain"}
    assert listed == [
        (f"{name}{signature(spec)}", kinds[getattr(spec, f"{PROJECT}_spec")["firstresult"]]) for _, name, spec in SPECS
    ]


def signature(spec: Any) -> str:
    """As an implementation in a module writes it, without quotes around types."""
    found = inspect.signature(spec)
    parameters = list(found.parameters.values())[1:]
    return str(found.replace(parameters=parameters)).replace("'", "")
