"""`python -m tests.compatibility`: try every pair of units and write docs/compatibility.md; exit 1 if one is broken."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.compatibility.page import PAGE, render
from tests.compatibility.table import make_table


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        table = make_table(Path(folder))
    for line in table.broken:
        print(line)
    if table.broken:
        return 1
    PAGE.write_text(render(table))
    print(f"{PAGE}: {len(table.pairs)} pairs, {len(table.presets)} presets")
    return 0


if __name__ == "__main__":
    sys.exit(main())
