"""`python -m tests.golden DIRECTORY`: a line a case (kind, name, worst relative error, verdict); exit 1 on failure."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tests.golden.cases import case_files, run_file


def main(arguments: list[str]) -> int:
    directory = Path(arguments[0]) if arguments else Path(__file__).parent
    if not directory.is_dir():
        print(f"golden: {directory} is not a directory; give the folder of the case files")
        return 2
    verdicts: list[str] = []
    for path in case_files(directory):
        case, verdict = run_file(path)
        verdicts.append(verdict)
        figure = "-" if verdict == "skip" else f"{case.worst:.1e}"
        note = "; ".join(case.failures) if case.failures else ""
        print(f"{case.kind:<18} {case.name:<20} {figure:>8}  {verdict}  {note}".rstrip(), flush=True)
    counts = {verdict: verdicts.count(verdict) for verdict in ("pass", "fail", "skip")}
    print(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped (no network for the kind yet)")
    return 1 if counts["fail"] or not verdicts else 0


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # what loaders have to say would break the table
    sys.exit(main(sys.argv[1:]))
