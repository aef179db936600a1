"""What is called otherwise today: said once in a process, and the old name goes on working."""

from __future__ import annotations

import logging
from functools import cache

log = logging.getLogger(__name__)


@cache
def say_once(origin: str, old: str, new: str, *, to_user: bool) -> None:
    """Say that something has another name today.

    origin: where the old one stands. to_user: it is the user's to change; if not, only those who ask for details are
    told.
    """
    level = logging.WARNING if to_user else logging.INFO
    log.log(level, "%s: %s is %s now; the old name still works", origin, old, new)
