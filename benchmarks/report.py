"""How a benchmark tells its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def publish(result: dict[str, Any], output: Path | None) -> None:
    """Print the figures as JSON and, if asked for, write them to a file."""
    text = json.dumps(result, indent=1)
    print(text)
    if output:
        output.write_text(text + "\n")
