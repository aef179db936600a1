"""Links lead somewhere: those between files of the repository with their anchors, and those of what a package shows.

Links of the site are checked by `make docs`, which also knows the pages that are made from the code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

ROOT = Path(__file__).parents[1]
PACKAGES = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")])
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
OUTSIDE = re.compile(r"[a-z]+:")


def links(text: str) -> list[str]:
    """Where links and pictures of a page lead, those of other sites left out."""
    return [link for link in LINK.findall(CODE.sub("", text)) if not OUTSIDE.match(link)]


def anchors(text: str) -> Iterator[str]:
    """The anchors of headings, as GitHub and the site make them."""
    for heading in re.findall(r"(?m)^#+ (.+)$", FENCED.sub("", text)):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for link in links(page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# Some `code`, here\n[a](a.md#some-code-here) [b](b.md) [c](#nowhere) `[d](d.md)` [e](https://e.org)\n"
    )
    assert broken(page) == ["b.md", "#nowhere"]


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name if folder != ROOT else "omniavatar")
def test_the_page_of_a_package_has_no_link_into_the_repository(folder: Path) -> None:
    shown = ProjectMetadata(str(folder), PluginManager()).core.readme
    assert len(shown) > 200
    assert links(shown) == []


def test_the_page_of_the_engine_names_the_command_that_shows_a_page() -> None:
    shown = ProjectMetadata(str(ROOT), PluginManager()).core.readme
    named = set(re.findall(r"`omni docs ([\w-]+)`", shown))
    assert {"python", "plugins", "training"} <= named
    assert named <= {page.stem for page in ROOT.glob("docs/*.md")}
