"""Values of a table that depend on the checkpoint: text that starts with `=` is computed, as in a spreadsheet.

`dim(pattern, axis)`            size of an axis of the first tensor whose name in the file fits the pattern; a third
                                argument is the value if there is none, None for an entry that is left out then
`count(pattern)`                number of tensors whose names fit the pattern
`setting(file, key, default)`   an entry (`a.b` nests) of the JSON file beside the checkpoint, or else `default`
`quotient(number, divisor)`     what a division gives that leaves no rest, else 0: for what no shape confirms
`evenly(count, total)`          `count` numbers below `total`, from 0 on at equal distances: [0, 2, 4] for 3 and 6;
                                null if they do not divide, since other numbers are as likely then

They combine with `+ - * //`, lists and parentheses: `= dim('audio_proj.proj.weight', 1) // 4`. A network refuses 0 or
null for a number that is not known.
"""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omniavatar.checkpoints.headers import Header
from omniavatar.checkpoints.names import compiled
from omniavatar.errors import CheckpointError, parsing

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_FUNCTIONS = ("dim", "count", "setting", "quotient", "evenly")
_MAX_SETTINGS_BYTES = 10_000_000


@dataclass(frozen=True)
class Formulas:
    """The functions of the language, over one checkpoint. what: the row by which it is known, for messages."""

    header: Header
    folder: Path | None
    """Where the settings lie; None: there are none."""
    what: str = "a model"

    def evaluate(self, value: Any) -> Any:
        """Compute every formula inside a value of a table; everything else stays as it is."""
        if isinstance(value, dict):
            return {key: self.evaluate(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.evaluate(item) for item in value]
        if isinstance(value, str) and value.startswith("="):
            return self._formula(value)
        return value

    def _formula(self, text: str) -> Any:
        try:
            return self._node(ast.parse(text[1:].strip(), mode="eval").body)
        except (ArithmeticError, LookupError, MemoryError, RecursionError, SyntaxError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder or 'no file'}: '{text}' of the checkpoint table has no value here: {error}"
            ) from error

    def _node(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.List(elts=items):
                return [self._node(item) for item in items]
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                numbers = [self._node(side) for side in (left, right)]
                if not all(isinstance(number, int | float) for number in numbers):
                    raise ValueError(f"'{ast.unparse(node)}' is about other things than numbers")
                return _OPERATORS[type(op)](*numbers)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                return getattr(self, name)(*(self._node(argument) for argument in arguments))
        raise ValueError(f"'{ast.unparse(node)}' is no function of formulas, no constant and none of + - * //")

    def dim(self, pattern: str, axis: int, *default: Any) -> Any:
        for name, tensor in self.header.tensors.items():
            if compiled(pattern).fullmatch(name):
                if not tensor.numel or axis >= len(tensor.shape):
                    why = "no weight of it has" if tensor.numel else "which holds no numbers"
                    raise CheckpointError(
                        f"{tensor.file} looks like {self.what}, but its '{name}' has the shape {list(tensor.shape)}, "
                        f"{why}; download it again"
                    )
                return tensor.shape[axis]
        if default:
            return default[0]
        file = self.header.files[0] if self.header.files else self.folder
        others = f" (with {len(self.header.files) - 1} others)" if len(self.header.files) > 1 else ""
        raise CheckpointError(
            f"{file}{others} looks like {self.what}, but lacks '{pattern}', so it is only a part of one; "
            "download it again, or name all of its files together"
        )

    def count(self, pattern: str) -> int:
        return sum(1 for name in self.header.tensors if compiled(pattern).fullmatch(name))

    def setting(self, file: str, key: str, default: Any) -> Any:
        if Path(file).name != file:
            raise ValueError(f"'{file}' is no plain file name beside the checkpoint")
        value: Any = {} if self.folder is None else read_settings(self.folder / file)
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def quotient(self, number: int, divisor: int) -> int:
        quotient, rest = divmod(number, divisor)
        return 0 if rest else quotient

    def evenly(self, count: int, total: int) -> list[int] | None:
        distance = self.quotient(total, count)
        return list(range(0, total, distance)) if distance else None


def read_settings(file: Path) -> dict[str, Any]:
    """The JSON object in a file beside a checkpoint; an absent file is an empty one."""
    if not file.is_file():
        return {}
    with parsing(lambda reason: CheckpointError(f"{file} is not a readable JSON file: {reason}")):
        if file.stat().st_size > _MAX_SETTINGS_BYTES:
            raise ValueError("too large")
        content = json.loads(file.read_bytes())
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a JSON object")
    return content
