"""`python -m tests.formats DIRECTORY`: run the cases of a directory of weight files, a line a case.

The exit code is 0 if all went well, 1 if any failed, 2 if there are no cases that can be read.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from omniavatar.errors import OmniError, explain
from tests.formats.cases import Case, read_cases
from tests.formats.runner import Failed, run


def why_not(raw: dict[str, Any], folder: Path) -> str | None:
    """Why a case fails; None if it does not."""
    try:
        run(Case.model_validate(raw), folder)
    except ValidationError as error:
        return f"not understood: {explain(error)}"
    except (Failed, OmniError) as error:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.formats", description=__doc__)
    parser.add_argument("directory", type=Path, help="folder with a cases.json")
    parser.add_argument("--kind", action="append", help="only cases of this kind")
    parser.add_argument("--case", action="append", help="only the case of this name")
    options = parser.parse_args()
    try:
        cases = read_cases(options.directory)
    except (OSError, ValueError) as error:
        print(f"{options.directory} holds no cases that can be read: {error}", file=sys.stderr)
        return 2
    failed: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    for raw in cases:
        kind, name = str(raw.get("kind")), str(raw.get("name"))
        if (options.kind and kind not in options.kind) or (options.case and name not in options.case):
            continue
        reason = why_not(raw, options.directory)
        ran[kind] += 1
        failed[kind] += reason is not None
        print(f"{kind:13} {name:40} {'ok' if reason is None else 'FAILED: ' + ' '.join(reason.split())}", flush=True)
    print(", ".join(f"{kind}: {ran[kind] - failed[kind]} of {ran[kind]} ok" for kind in ran))
    return 1 if failed.total() or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
