"""`docs/training.md` lists every field; `python -m tests.test_training_page` writes its table anew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from omniavatar.config import ModelEntry, RunConfig, schemas_in
from omniavatar.training.diffusion import DiffusionConfig

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
HEAD = "| field | default | what it is |\n|---|---|---|\n"


def table() -> str:
    """Every field of a training configuration that `omni run` does not have."""
    return HEAD + "".join(f"| `{name}` | {default} | {what} |\n" for name, default, what in rows(DiffusionConfig))


def rows(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Name, default and description of a schema's fields, those of inner schemas behind their own."""
    for name, info in schema.model_fields.items():
        if schema is DiffusionConfig and name in {"task", *RunConfig.model_fields}:
            continue
        yield f"{prefix}{name}", default_of(info), (info.description or "").replace("|", "\\|")
        for inner in schemas_in(info.annotation):
            if inner is not ModelEntry:
                each = "ROLE." if str(info.annotation).startswith("dict") else ""
                yield from rows(inner, f"{prefix}{name}.{each}")


def default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "none"
    return "" if isinstance(value, BaseModel) or value == {} else f"`{json.dumps(plain(value))}`"


def plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def test_every_field_is_listed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(HEAD)[1:] == (HEAD, table().removeprefix(HEAD)), "python -m tests.test_training_page"


def test_every_field_is_described() -> None:
    assert all(what for _, _, what in rows(DiffusionConfig))


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.partition(HEAD)[0] + table(), encoding="utf-8")
