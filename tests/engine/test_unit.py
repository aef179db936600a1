"""How a unit is written: its repr is the term of a plan expression that makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from omniavatar.engine.plan import Catalog, build_plan
from omniavatar.engine.unit import PipelineUnit, UnitSettings


class Plain(PipelineUnit):
    """Settings of every kind."""

    name = "plain"

    class Settings(UnitSettings):
        text: str = ""
        place: Path = Path("here")
        number: float | None = 1.0
        switch: bool = False
        sizes: tuple[tuple[int, int], ...] = ()
        words: tuple[str, ...] = ()
        table: dict[str, float] = Field({})


CATALOG = Catalog({"plain": Plain}, {})


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "plain"),
        ({"text": "word"}, "plain(text=word)"),
        ({"text": "two words"}, 'plain(text="two words")'),
        ({"text": "no"}, 'plain(text="no")'),
        ({"text": "a, b) + 'c'"}, "plain(text=\"a, b) + 'c'\")"),
        ({"text": 'say "hi"\\'}, r'plain(text="say \U00000022hi\U00000022\U0000005c")'),
        ({"text": "zwei\nZeilen: Übung 你好 😀"}, r'plain(text="zwei\U0000000aZeilen: Übung 你好 😀")'),
        ({"place": Path("a/b c-1.0")}, 'plain(place="a/b c-1.0")'),
        ({"number": None, "switch": True}, "plain(number=null, switch=true)"),
        ({"number": 1e-9}, "plain(number=1e-09)"),
        ({"sizes": ((400, 720), (720, 400))}, "plain(sizes=[[400, 720], [720, 400]])"),
        ({"words": ("a", "b, c", "")}, 'plain(words=[a, "b, c", ""])'),
        ({"table": {"a": 0.5, "b c": 2}}, 'plain(table={a: 0.5, "b c": 2.0})'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_repr_is_the_term_that_makes_the_unit(settings: dict[str, Any], text: str) -> None:
    unit = Plain(**settings)
    assert repr(unit) == text
    (again,) = build_plan(text, CATALOG).units
    assert again.settings == unit.settings
