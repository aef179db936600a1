"""Pages of the site that are made from the code: nothing is missing, and units say what `omni units show` says."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from docsite.pages import (
    cell,
    checkpoints_page,
    commands_page,
    hooks_page,
    sdk_page,
    text,
    top_page,
    unit_section,
    units_page,
)
from omniavatar import sdk
from omniavatar.cli import COMMANDS
from omniavatar.cli.unit_page import UnitPage
from omniavatar.hookspecs import PROJECT, Discovery, Pipeline
from omniavatar.plugins import Plugins, discover
from tests.cli.conftest import Omni, folder, omni

__all__ = ["folder", "omni"]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return discover()


def words(markdown: str) -> list[str]:
    """The words of a text, without the marks of Markdown and the lines of tables."""
    plain = re.sub(r"(?m)^(#+ |\|[-|]+\|$|- )|\*\*|\| ", " ", html.unescape(markdown))
    return [word.strip("|:") for word in plain.split() if word.strip("|:")]


@pytest.mark.parametrize("name", ["teacache", "fixed-frames", "reference-image", "lora", "vace", "offload"])
def test_the_page_of_a_unit_says_what_the_command_says(plugins: Plugins, omni: Omni, name: str) -> None:
    unit = plugins.catalog().units[name]
    page = UnitPage.of(unit, plugins.package_of(plugins.owners["unit"][name]))
    shown = omni("units", "show", name).out
    assert sorted(words("\n".join(unit_section(page)))) == sorted(words(shown))


def test_every_unit_has_its_settings_its_inputs_and_its_package(plugins: Plugins) -> None:
    page = units_page(plugins)
    catalog = plugins.catalog()
    sections = dict(re.findall(r"(?ms)^### (\S+)\n(.*?)(?=^##|\Z)", page))
    assert set(sections) == set(catalog.units)
    for name, unit in catalog.units.items():
        for field in (*unit.Settings.model_fields, *unit.Inputs.model_fields):
            assert f"\n| {field} | " in sections[name]
        assert f"- **package**: {plugins.package_of(plugins.owners['unit'][name])}" in sections[name]
    assert {"omniavatar", "omniavatar-vace", "omniavatar-s2v"} <= set(re.findall(r"(?m)^## (\S+)$", page))


def test_every_hook_has_its_signature_and_its_docstring() -> None:
    sections = dict(re.findall(r"(?ms)^### (\w+)\n(.*?)(?=^##|\Z)", hooks_page()))
    hooks = {
        name: function
        for group in (Discovery, Pipeline)
        for name, function in vars(group).items()
        if hasattr(function, f"{PROJECT}_spec")
    }
    assert list(sections) == list(hooks)
    assert "def guide(self, step: Step) -> Tensor | None\n" in sections["guide"]
    assert "*First result.*" in sections["guide"]
    assert "First result" not in sections["embed"]
    assert "Calls `step.predict(branches)` with the branches it wants" in sections["guide"]


def test_every_name_of_the_sdk_is_explained() -> None:
    sections = dict(re.findall(r"(?ms)^## ([^\n]+)\n(.*?)(?=^##|\Z)", sdk_page()))
    rows = {title: dict(re.findall(r"(?m)^\| `(\w+)` \| (.+) \|$", section)) for title, section in sections.items()}
    assert {title: set(names) for title, names in rows.items()} == {
        title: set(names) for title, names in sdk.GROUPS.items()
    }
    assert rows["Schedules and solvers"]["steps_along"].startswith("A step between every two of these noise levels")
    assert rows["Inputs"]["ImageFile"].startswith("the type of an input that is a picture")


def test_every_command_has_its_options() -> None:
    sections = dict(re.findall(r"(?ms)^##+ omni ?([\w ]*)\n(.*?)(?=^##|\Z)", commands_page()))
    assert set(COMMANDS) <= set(sections)
    assert {"units show", "models inspect", "plugins new"} <= set(sections)
    assert "--teacache" not in sections["run"]
    for option in ("--guidance.scale", "--image", "--again"):
        assert option in sections["run"]
    assert all("--help" in section for section in sections.values())


def test_every_checkpoint_is_in_the_tables_but_those_of_tests(plugins: Plugins) -> None:
    registry = plugins.registry()
    listed = [name for name in re.findall(r"(?m)^\| ([^|]+) \|", checkpoints_page(plugins)) if name != "name"]
    own_tests = [row for row in registry.rows if Path(str(registry.origin(row))).name == "test.toml"]
    assert listed == [cell(row.name) for row in registry.rows if row not in own_tests]
    assert own_tests


def test_nothing_in_a_docstring_becomes_html_or_emphasis() -> None:
    assert text("a < b, *c* and `x < *y`") == "a &lt; b, &#42;c&#42; and `x < *y`"
    assert cell("true|false,\n `a|b`") == "true&#124;false, `a|b`"


def test_links_of_the_readme_lead_to_pages_of_the_site() -> None:
    page = top_page("README.md")
    assert "](python.md)" in page
    assert "](tiny.png)" in page
    assert "](contributing.md)" in page
    assert "](docs/" not in page
    assert "](LICENSE)" not in page
