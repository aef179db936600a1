"""`docs/reference.md` says what there is: attributes of scopes, values, branches, parts of blocks, keys of tables."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from omniavatar.checkpoints.formulas import Formulas
from omniavatar.checkpoints.tables import ComponentSpec, Row
from omniavatar.engine.draft import Draft
from omniavatar.engine.engine import Engine
from omniavatar.engine.geometry import Geometry
from omniavatar.engine.outline import Outline
from omniavatar.engine.plan import made_by
from omniavatar.engine.scopes import Branch, Forward, Frames, Job, Scope, Step, Window
from omniavatar.engine.windows import Span
from omniavatar.models.attention import AttentionSlot
from omniavatar.models.wan_dit import BlockInputs, WanDiT
from omniavatar.plugins import discover
from omniavatar.testing import small_video
from omniavatar.testing.tiny import DIT
from tests.test_sdk import foreign_imports

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"(?ms)^##+ ([\w ]+)\n(.*?)(?=^##|\Z)", PAGE))
OF_THE_ENGINE = {"loop", "inputs_by_unit", "memories", "sharding", "shard_tokens", "close", "clear"}
"""Attributes of scopes that the engine works with, and units do not."""
OF_DRAFTS = {"is_complete", "check_complete", "inputs_by_unit", "settle"}


def attributes(owner: type) -> set[str]:
    """The public attributes of a class, those that its constructor sets included, and those of an `Outline`."""
    if issubclass(owner, Outline) and owner is not Outline:
        return own_attributes(owner) | own_attributes(Outline)
    return own_attributes(owner)


def own_attributes(owner: type) -> set[str]:
    """Those that its own code has."""
    (tree,) = ast.parse(inspect.getsource(owner)).body
    assert isinstance(tree, ast.ClassDef)
    names = {
        node.target.id for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    names |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    return {name for name in names if not name.startswith("_")}


def listed(section: str) -> list[str]:
    """The names in the first column of the tables of a section, without their arguments."""
    cells = re.findall(r"(?m)^\| ([^|]*`[^|]*) \|", SECTIONS[section])
    return [re.split(r"[(.\[]", name)[0] for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("scope", [Job, Window, Step, Branch, Forward, Frames])
def test_attributes_of_scopes(scope: type) -> None:
    assert set(listed(scope.__name__)) == attributes(scope) - OF_THE_ENGINE


def test_attributes_of_drafts_engines_and_geometries() -> None:
    assert set(listed("Draft")) == attributes(Draft) - OF_DRAFTS
    assert set(listed("Engine")) <= attributes(Engine)
    assert "`attention.cross`" in SECTIONS["Engine"]
    assert hasattr(AttentionSlot(), "cross")
    named = {re.split(r"\(", name)[0] for name in re.findall(r"`([^`]+)`", SECTIONS["Geometry"])}
    assert named == attributes(Geometry)
    (span,) = re.findall(r"(?m)^\| `span` \| (.*) \|$", SECTIONS["Window"])
    assert set(re.findall(r"`(\w+)`", span)) == attributes(Span)


def test_what_every_scope_has() -> None:
    table = SECTIONS["Scopes"]
    for name in attributes(Scope) - {"outer", "values", "clear"}:
        assert f"`{name}(" in table


def test_values_of_all_units() -> None:
    made = {value for unit in discover().catalog().units.values() for value in made_by(unit())}
    assert set(listed("Values")) == made


def sources() -> str:
    """The text of all units, built-in and of the first-party plugins."""
    files = [*(ROOT / "omniavatar" / "units").glob("*.py"), *(ROOT / "plugins").glob("*/omniavatar_*/**/*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def test_branches_and_conditions() -> None:
    text, page = sources(), SECTIONS["Branches and conditions"]
    branches = set(re.findall(r"\.branch\(\"([\w-]+)\"", text))
    assert set(re.findall(r"(?m)^\| `([\w-]+)` \| (?:nothing|`)", page)) >= branches > set()
    dropped = set(re.findall(r"\.drops\(\"(\w+)\"\)", text))
    assert set(re.findall(r"(?m)^\| `(\w+)` \| `[\w-]+`(?:, `[\w-]+`)* \| [a-z]", page)) == dropped
    conditions = set(re.findall(r"\.conditions\[\"(\w+)\"\] =", text))
    assert conditions == {"text", "image"}
    assert all(f"`{name}` (b" in page for name in conditions)


def test_parts_of_a_block() -> None:
    network = WanDiT(**DIT)
    block: Any = network.blocks[0]
    parts = listed("Parts of a block")
    own = {name.split(".")[0] for name, _ in [*block.named_children(), *block.named_parameters(recurse=False)]}
    assert set(parts) == own
    page = SECTIONS["Parts of a block"]
    methods = re.findall(r"`(\w+)`", page.partition("Its methods")[2].partition("A subclass")[0])
    assert len(methods) == 3
    assert all(callable(getattr(block, name)) for name in methods)
    (cross,) = re.findall(r"(?m)^\| `cross_attn` \| (.*) \|$", page)
    assert all(hasattr(block.cross_attn, name) for name in re.findall(r"`(\w+)\(", cross))
    (own_attention,) = re.findall(r"(?m)^\| `self_attn` \| (.*) \|$", page)
    assert all(hasattr(block.self_attn, name) for name in re.findall(r"`(\w+)[`(]", own_attention))
    rest = page.partition("A network has")[2]
    of_network, _, of_inputs = rest.partition("`BlockInputs` has")
    assert all(hasattr(network, name) for name in re.findall(r"`(\w+)[`(]", of_network))
    assert {"blocks", "head", "embed_text"} <= set(re.findall(r"`(\w+)[`(]", of_network))
    assert {"t_mod", "rope"} <= set(re.findall(r"`(\w+)`", of_inputs)) - {"Forward"} <= attributes(BlockInputs)


def test_keys_of_checkpoint_tables() -> None:
    of_row, _, rest = SECTIONS["Checkpoint tables"].partition("| key of a component |")
    of_component = rest.partition("| formula |")[0]
    for part, model in ((of_row, Row), (of_component, ComponentSpec)):
        cells = re.findall(r"(?m)^\| (`[^|]*) \|", part)
        assert set(re.findall(r"`(\w+)`", " ".join(cells))) == set(model.model_fields)


def test_formulas() -> None:
    named = re.findall(r"(?m)^\| `(\w+)\(", SECTIONS["Checkpoint tables"])
    assert set(named) == attributes(Formulas) - {"evaluate", "header", "folder", "what"}


BLOCKS = [
    (page, text)
    for page in ("plugins", "reference")
    for text in re.findall(
        r"(?ms)^```python[^\n]*\n(.*?)^```$", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    )
]


@pytest.mark.parametrize(("page", "text"), BLOCKS)
def test_examples_import_what_plugins_may_import(page: str, text: str) -> None:
    assert foreign_imports(text, for_tests=True) == []


def test_the_example_of_a_schedule_works() -> None:
    (example,) = [text for page, text in BLOCKS if page == "reference"]
    scope: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "example", "exec", dont_inherit=True), scope)
    (window,) = small_video("default+four-steps", scope["FourSteps"])
    assert [step.sigma for step in window.steps] == [1.0, 0.94, 0.85, 0.65]
