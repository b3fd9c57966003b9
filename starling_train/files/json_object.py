"""JSON objects in small files of others: configurations, indexes, scans."""

import json
from pathlib import Path

from starling_train.config.fields import UserError


def read_json(path: Path) -> dict:
    """Read a JSON object from `path`. Raises UserError where the file is not one."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError, OSError) as error:  # not JSON, not UTF-8, nested too deep, a huge number
        raise UserError(f"{path}: not JSON ({error}); write or download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; write or download it again")
    return content
