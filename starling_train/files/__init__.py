"""Files and folders: whole-or-absent writes, JSON lines, locks, hashes, tensors on disk."""
