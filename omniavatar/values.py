"""Values that people write: YAML and TOML read strictly, and true and false told from numbers."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import yaml

DEEPEST = 40
"""Lists and mappings inside each other that a text may have."""
LARGEST = 2**64
"""Whole numbers are smaller than this."""
LONGEST = 2**20
"""Letters of a YAML text that are read; the reader takes a second for so many."""


class _Loader(yaml.SafeLoader):
    """Refuses what a careful reader would ask about: a key given twice, numbers and nesting without bounds."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} lists or mappings stand inside each other")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise ValueError(f"'{key.value}' is given twice, the second time in line {key.start_mark.line + 1}")
            seen.add((key.tag, key.value))
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node) if len(node.value) <= 100 else LARGEST
        if abs(number) >= LARGEST:
            raise ValueError(f"the number in line {node.start_mark.line + 1} is too large")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """What a YAML text means. Raises ValueError with one line for everything that cannot be read."""
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} letters")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ValueError(f"{error.problem or error.context}{place}") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def parse_toml(text: str) -> dict[str, Any]:
    """What a TOML text means. Raises ValueError with one line for everything that cannot be read."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    if any(isinstance(item, int) and abs(item) >= LARGEST for item in items(content)):
        raise ValueError("a number is too large")
    level: list[Any] = [content]
    for _ in range(DEEPEST):
        level = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in level if isinstance(item, dict | list)]
    if level:
        raise ValueError(f"more than {DEEPEST} lists or tables stand inside each other")
    return content


def takes_bool(annotation: Any) -> bool:
    """Whether a type, or one inside it, is bool, anything at all, or a schema, which has fields of its own."""
    if annotation in (bool, Any) or isinstance(annotation, bool) or hasattr(annotation, "model_fields"):
        return True
    return any(map(takes_bool, get_args(annotation)))


def refuse_bools(value: Any, annotation: Any) -> Any:
    """The value, if it has no true or false where the type has none. Raises ValueError: pydantic takes true for 1."""
    if not takes_bool(annotation) and any(isinstance(item, bool) for item in items(value)):
        raise ValueError("true and false are no numbers or texts")
    return value


def items(value: Any) -> Iterator[Any]:
    """The value itself or, of lists and mappings inside each other, all that they hold, each list once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, list | tuple | Mapping):
            yield one
        elif id(one) not in seen:
            seen.add(id(one))
            waiting += one.values() if isinstance(one, Mapping) else one
