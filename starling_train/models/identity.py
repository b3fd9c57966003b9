"""Which model is this? A fingerprint to tell a run's base model from another one."""

import hashlib
from pathlib import Path

EDGE = 1 << 20  # bytes read at both ends of a weight file: reading 14 GB in full would take a minute


def fingerprint(directory: Path) -> str:
    """SHA-256 over config.json, if there is one, and, of every weight file, its name, size, first and last megabyte."""
    config = directory / "config.json"
    digest = hashlib.sha256(config.read_bytes() if config.is_file() else b"")
    for path in sorted([*directory.glob("*.safetensors"), *directory.glob("*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(0, size - EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()
