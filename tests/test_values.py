"""Strict YAML, and what is no number."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from omniavatar.values import items, parse_toml, parse_yaml, refuse_bools


def test_yaml_is_read_as_ever() -> None:
    text = "a: &a {x: 1, y: 2.5}\nb: {<<: *a, x: 3}\nc: [*a, null, true, 0x10, 1_000, 'e']\nd: 18446744073709551615"
    a = {"x": 1, "y": 2.5}
    assert parse_yaml(text) == {"a": a, "b": {"x": 3, "y": 2.5}, "c": [a, None, True, 16, 1000, "e"], "d": 2**64 - 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is given twice, the second time in line 3"),
        ("x: {s: 1, s: 1}", "'s' is given twice"),
        ("seed: " + "9" * 10_000, "the number in line 1 is too large"),
        ("seed: 0x" + "f" * 90, "the number in line 1 is too large"),
        ("a: " + "b" * 2**20, "it has more than 1048576 letters"),
        ("[" * 5000, "more than 40 lists or mappings stand inside each other"),
        ("a: " + "{b: " * 5000, "more than 40 lists or mappings"),
        ("[" * 60 + "]" * 60, "more than 40 lists or mappings"),
        ("- " * 3000 + "x", "more than 40 lists or mappings"),
        ("a: [\nb: }", "but found '}' in line 2, column 4"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("? {a: 1}\n: 2", "found unhashable key"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_what_cannot_be_read_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 50_000, "maximum recursion depth"),
        ("a = " + "{b = " * 50_000, "maximum recursion depth"),
        ("a = " + "9" * 10_000, "Exceeds the limit"),
        ("a = [[1, " + "9" * 400 + "]]", "a number is too large"),
        ("a = " + "[" * 100 + "]" * 100, "more than 40 lists or tables"),
        ("a = 1\na = 2", "Cannot overwrite a value"),
    ],
)
def test_toml_that_cannot_be_read_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_toml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "annotation", "is_fine"),
    [
        (True, int, False),
        (True, float | None, False),
        ([1, [False]], tuple[tuple[int, ...], ...], False),
        ({"a": True}, dict[str, float], False),
        (True, str, False),
        (True, bool, True),
        (True, bool | int, True),
        (True, Literal[True, "auto"], True),
        (True, Literal["on", "off"], False),
        ([True], list[Any], True),
        (1, int, True),
    ],
)
def test_true_is_no_number(value: Any, annotation: Any, is_fine: bool) -> None:
    if is_fine:
        assert refuse_bools(value, annotation) is value
        return
    with pytest.raises(ValueError, match="true and false"):
        refuse_bools(value, annotation)


def test_lists_that_hold_themselves_end() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert list(items(circle)) == [1]
    bomb: list[Any] = [0]
    for _ in range(40):
        bomb = [bomb, bomb]
    assert list(items(bomb)) == [0]


def test_a_schema_inside_a_schema_says_itself_what_it_takes() -> None:
    class Inner(BaseModel):
        flag: bool = False

    assert refuse_bools({"flag": True}, Inner) == {"flag": True}
    assert refuse_bools([{"flag": True}], tuple[Inner, ...]) == [{"flag": True}]
    with pytest.raises(ValueError, match="true and false"):
        refuse_bools([1, True], tuple[int, ...])
