from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omniavatar.checkpoints import Header, TensorInfo
from omniavatar.checkpoints.formulas import Formulas
from omniavatar.errors import CheckpointError


@pytest.fixture
def formulas(tmp_path: Path) -> Formulas:
    shapes = {"proj.weight": (8, 12), "layers.0.weight": (3, 8), "layers.1.weight": (3, 8), "layers.1.bias": (3,)}
    tensors = {name: TensorInfo(name, shape, "float32", tmp_path / "x") for name, shape in shapes.items()}
    (tmp_path / "config.json").write_text('{"alpha": 64, "model": {"width": 9}, "nothing": null}')
    return Formulas(Header((), tensors, shapes), tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5),
        ("text", "text"),
        ("= dim('proj.weight', 1) // 4", 3),
        ("= 2 * (count('layers.*.weight') + 1) - 1", 5),
        (["= dim('layers.*.weight', 0)", 1], [3, 1]),
        ({"a": {"b": "=count('*')"}}, {"a": {"b": 4}}),
        ("= setting('config.json', 'alpha', 1)", 64),
        ("= setting('config.json', 'model.width', 1)", 9),
        ("= setting('config.json', 'nothing', 7)", 7),
        ("= setting('config.json', 'alpha.beta', 7)", 7),
        ("= setting('absent.json', 'alpha', dim('proj.weight', 0))", 8),
        ("= quotient(dim('proj.weight', 1), 4)", 3),
        ("= quotient(dim('proj.weight', 1), 8)", 0),
        ("= evenly(count('layers.*.weight'), 6)", [0, 3]),
        ("= evenly(2, 5)", None),
        ("= evenly(4, 2)", None),
    ],
)
def test_values(formulas: Formulas, value: Any, expected: Any) -> None:
    assert formulas.evaluate(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        "= 1 // 0",
        "= quotient(8, 0)",
        "= evenly(0, 4)",
        "= setting('../config.json', 'alpha', 1)",
        "= setting('/etc/passwd', 'alpha', 1)",
        "= __import__('os').getcwd()",
        "= open('x')",
        "= 2 ** 9999999",
        "= dim(",
        "= dim()",
        "= [1 for _ in 'abc']",
    ],
)
def test_anything_else_is_an_error(formulas: Formulas, value: str) -> None:
    with pytest.raises(CheckpointError, match="has no value here"):
        formulas.evaluate(value)


def test_without_a_folder_there_are_no_settings(formulas: Formulas, monkeypatch: pytest.MonkeyPatch) -> None:
    assert formulas.folder is not None
    monkeypatch.chdir(formulas.folder)
    assert replace(formulas, folder=None).evaluate("= setting('config.json', 'alpha', 1)") == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("= dim('absent.weight', 0)", r"looks like Wan, but lacks 'absent\.weight', so it is only a part of one"),
        ("= dim('layers.1.bias', 1)", r"x looks like Wan, but its 'layers\.1\.bias' has the shape \[3\]"),
        ("= dim('empty.weight', 1)", r"'empty\.weight' has the shape \[0, 4\], which holds no numbers"),
    ],
)
def test_what_a_part_of_a_file_lacks_is_said(formulas: Formulas, value: str, message: str) -> None:
    empty = TensorInfo("empty.weight", (0, 4), "float32", Path(str(formulas.folder)) / "x")
    header = replace(formulas.header, tensors={**formulas.header.tensors, "empty.weight": empty})
    with pytest.raises(CheckpointError, match=message):
        replace(formulas, header=header, what="Wan").evaluate(value)
    assert formulas.evaluate("= dim('absent.weight', 0, None)") is None


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_damaged_settings(formulas: Formulas, content: str) -> None:
    (Path(str(formulas.folder)) / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        formulas.evaluate("= setting('config.json', 'alpha', 1)")
