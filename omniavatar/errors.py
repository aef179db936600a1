"""Every error that a user can cause, each one line: what, which value, which choices, the next step.

The command line prints the message and exits with `exit_code`; anything that is not an `OmniError` is a bug of ours.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class OmniError(Exception):
    """Base of all errors that have an explanation for the user."""

    exit_code = 2


class InputError(OmniError):
    """An input (image, sound, video, text, number) cannot be used."""


class OutputError(OmniError):
    """A result cannot be written."""


class PlanError(OmniError):
    """A plan expression, a unit or a setting does not make sense."""


class CheckpointError(OmniError):
    """A model file is missing, damaged, or not what it should be."""


class NotFinite(OmniError):
    """Networks have computed what are no numbers: precision was too low, or a file is damaged."""


class EngineBusy(OmniError):
    """The engine makes another video at the moment."""


class Cancelled(OmniError):
    """The caller has cancelled the run; nothing of it is left."""

    exit_code = 130


class PluginError(OmniError):
    """A plugin package is broken."""


class Ended(SystemExit):
    """A signal ends the program; the code is 128 + its number."""


@contextmanager
def parsing(explained: Callable[[str], OmniError]) -> Iterator[None]:
    """Make one line of whatever a parser raises about foreign data: the error that `explained` makes of a short reason.

    Also of RecursionError, MemoryError, and panics of extensions in Rust, which are no `Exception`; not of Ctrl-C.
    """
    try:
        yield
    except OmniError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise explained(in_one_line(error)) from error


def in_one_line(error: BaseException) -> str:
    """The type of an error and the beginning of what it says."""
    first_line = shortened(str(error).strip().partition("\n")[0])
    return ": ".join(filter(None, (type(error).__name__, first_line)))


def is_failure(error: BaseException) -> bool:
    """Whether an error is about what was being done; Ctrl-C and the end of the program are not."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint for a misspelt name: "; did you mean 'x'?" when one choice is near, else the list of choices."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choices: {', '.join(known)}" if known else ""


class _Short(reprlib.Repr):
    """Cuts lists and texts that are long; Python refuses to write very large numbers, so these are named."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200
        self.maxlist = self.maxtuple = self.maxdict = 8

    def repr_int(self, number: int, level: int) -> str:
        return repr(number) if number.bit_length() < 200 else f"a number of {number.bit_length()} bits"


def shown(value: Any) -> str:
    """A value as it stands in an error: in one line of bounded length."""
    return " ".join(_Short().repr(value).split())


def explain(error: ValidationError) -> str:
    """The first problem of a pydantic error in one line: where, what is wrong, the value."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if first["type"] == "missing":
        return f"'{where}' is required"
    if first["type"] in ("tuple_type", "list_type"):
        message = f"give a list: [{shown(first['input'])}]"
    elif first["type"] == "too_short":
        message = f"give a list of {first['ctx']['min_length']} or more"
    return f"{where} = {shown(first['input'])}: {message}" if where else message


def shortened(text: str, length: int = 100) -> str:
    """The beginning of a text that may be long."""
    return text if len(text) <= length else f"{text[:length]}..."


def few(names: Sequence[str], limit: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
