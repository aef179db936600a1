"""Bad clips among good ones: each is named, counted and written down, and the run goes on or ends as configured."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar

from omniavatar.engine.out_of_memory import is_out_of_memory
from omniavatar.errors import CheckpointError, InputError, OutputError, PlanError
from omniavatar.media.paths import shown
from omniavatar.training.data.clip import Unusable
from omniavatar.training.data.lists import Entry

log = logging.getLogger(__name__)

SKIPPED = "skipped.jsonl"
Result = TypeVar("Result")


@dataclass(frozen=True)
class Fault:
    """Why a clip is not used: `kind` in words that others share, `reason` in a line of its own."""

    place: str
    video: str
    audio: str | None
    kind: str
    reason: str
    state: str
    """That of the entry (`Entry.state`) when the fault was found: a repaired clip is tried again."""


class Faults:
    """The clips of a list that cannot be used, by the clip.

        faults = Faults(entries, path=folder / SKIPPED)
        pictures = faults.attempt(entry, lambda: open_clip(entry, limits).pictures(0, 81))

    policy: "skip" passes them over, "stop" ends the run with the first one. most: the part of all clips that may be
    bad; with more of them, and in any case when all are, the run ends. path: the file that names them, a JSON object on
    each line. resume: take over those that it names already, as long as their files are the same, instead of beginning
    anew. report: takes each new fault in place of all that, for a process that does not decide on its own.
    Threads may share it. Raises InputError when the run shall end, OutputError if the file cannot be written.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        policy: Literal["skip", "stop"] = "skip",
        most: float = 0.5,
        path: Path | None = None,
        resume: bool = False,
        report: Callable[[Fault], None] | None = None,
    ) -> None:
        self.entries, self.policy, self.most, self.path, self.report = entries, policy, most, path, report
        self.found: dict[Entry, Fault] = {}
        self._by_files = {(entry.place, *_files(entry)): entry for entry in entries}
        self._lock = Lock()
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a" if resume else "w", encoding="utf-8"):
                    pass
                self._take_over(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise OutputError(f"cannot write {shown(path)}: {error}; choose another folder") from None
        if report is None:
            self.check()

    def __contains__(self, entry: Entry) -> bool:
        return entry in self.found

    def attempt(self, entry: Entry, read: Callable[[], Result]) -> Result | None:
        """What `read` returns, or None if the clip is known to be bad or any error shows that it is.

        Errors that are no clip's go on: memory that runs out on a GPU, a plan or a model that is wrong.
        """
        if entry in self.found:
            return None
        try:
            return read()
        except (PlanError, CheckpointError):
            raise
        except Exception as error:
            if is_out_of_memory(error) and not isinstance(error, MemoryError | OSError | InputError):
                raise  # of a GPU, as a rule; a decoder asks for too much when a file is damaged
            self.add(entry, error)
        return None

    def add(self, entry: Entry, error: Exception) -> None:
        """Write down what is wrong with a clip; raises InputError if the run shall end."""
        self.record(fault_of(entry, error))

    def record(self, fault: Fault) -> None:
        """Write down a fault of one of the clips; raises InputError if the run shall end."""
        entry = self._by_files[fault.place, fault.video, fault.audio]
        with self._lock:
            is_new = entry not in self.found
            if is_new:
                self.found[entry] = fault
                if self.report is None:
                    self._write(fault)
        if self.report is not None:
            if is_new:
                self.report(fault)
            return
        if self.policy == "stop":
            raise InputError(f"{fault.place}: {fault.reason}; repair or remove it, or pass over bad clips (skip)")
        self.check()

    def check(self) -> None:
        """Raise InputError if too many clips are bad."""
        count, total = len(self.found), len(self.entries)
        if self.found and (count >= total or count > self.most * total):
            where = f"; all are named in {shown(self.path)}" if self.path else ""
            raise InputError(f"{self.summary()}{where}")

    def summary(self) -> str:
        """How many clips are bad, and the three most frequent reasons."""
        kinds = Counter(fault.kind for fault in self.found.values()).most_common(3)
        reasons = ", ".join(f"{count} {kind}" for kind, count in kinds)
        return f"{len(self.found)} of {len(self.entries)} clips cannot be used" + (f": {reasons}" if reasons else "")

    def _write(self, fault: Fault) -> None:
        log.warning("%s: passed over: %s", fault.place, fault.reason)
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(fault)) + "\n")
            except OSError as error:
                log.warning("cannot write %s: %s", shown(self.path), error)

    def _take_over(self, text: str) -> None:
        """Know the faults of an earlier run, as far as their clips are still the same; a torn line is none."""
        for line in text.splitlines():
            try:
                fault = Fault(**json.loads(line))
            except (ValueError, TypeError):
                continue
            entry = self._by_files.get((fault.place, fault.video, fault.audio))
            if entry is not None and entry.state == fault.state:
                self.found[entry] = fault


def fault_of(entry: Entry, error: Exception) -> Fault:
    """What an error says about a clip, in one line."""
    kind = error.kind if isinstance(error, Unusable) else "unreadable"
    message = " ".join(str(error).split())
    reason = message if isinstance(error, InputError) else f"{type(error).__name__}: {message}"
    video, audio = _files(entry)
    return Fault(entry.place, video, audio, kind, reason, entry.state)


def _files(entry: Entry) -> tuple[str, str | None]:
    return str(entry.video), None if entry.audio is None else str(entry.audio)
