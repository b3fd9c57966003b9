"""A Slurm of two nodes for all tests of a session."""

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from two_nodes import TwoNodes, why_not


@pytest.fixture(scope="session")
def slurm():
    if reason := why_not():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 108 characters
    nodes = TwoNodes(folder)
    try:
        nodes.start()
    except (TimeoutError, OSError):
        nodes.stop()
        pytest.skip(f"Slurm does not start here; see {folder}/daemons.log")
    yield nodes
    nodes.stop()
