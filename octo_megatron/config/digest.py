"""The short name of a config: what says whether two are the same."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest(plain: Any) -> str:
    """sha256 of the canonical JSON of plain data, first 16 hexadecimal digits."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
