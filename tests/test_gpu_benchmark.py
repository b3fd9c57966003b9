"""`benchmarks/gpu.sh`, in miniature on this machine: every part runs, and what one says is in the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GPU = ROOT / "benchmarks" / "gpu.sh"


def measured(directory: Path, *arguments: str) -> tuple[int, str, dict]:
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"HOME": str(Path.home())}
    command = ["bash", str(GPU), str(directory), "--miniature", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, json.loads((directory / "gpu.json").read_text())["parts"]


@pytest.mark.parametrize("only", [
    pytest.param(["step", "rollout", "snr"], marks=pytest.mark.slow),
    pytest.param([], marks=pytest.mark.families),
])  # fmt: skip
def test_parts_run(toy, tmp_path, only):
    """Slow: each is a process that imports torch; a card's ten minutes are not for finding a misspelt option."""
    code, said, parts = measured(tmp_path / "out", *(["--only", *only] if only else []))
    assert code == 0, said
    parts = {name: part for name, part in parts.items() if "left_out" not in part}  # vLLM may not be there
    assert list(parts) == only or len(parts) >= 9
    assert {part["code"] for part in parts.values()} == {0}
    step = parts["step"]["figures"]
    assert step["peak_gb"] > 0 < step["planned_gb"]["total"]
    assert step["rates"]["decode_share_of_bandwidth"] > 0 and step["rates"]["share_of_matrix_rate"]["update"] > 0
    assert parts["snr"]["figures"]["warm"]["matrices"] == 14
    assert parts["rollout"]["figures"]["rounds"].keys() == {"slots", "generate"}
    if "eight-bit moments" in parts:
        moments = parts["eight-bit moments"]["figures"]
        assert [row["step"] for row in moments["stopped"]] == [1, 2, 3] and moments["stopped"] == moments["straight"]


@pytest.mark.slow
def test_a_part_that_fails_leaves_the_others(tmp_path):
    """The directory that the scan would write to is a file. Slow: two processes that import torch."""
    (tmp_path / "random").touch()
    code, said, parts = measured(tmp_path, "--only", "snr", "machine")
    assert code == 1
    assert parts["snr"]["code"] == 1 and "snr: " in said and "FAILED (1)" in said
    assert "FileExistsError" in "".join(parts["snr"]["said"])
    assert parts["machine"]["code"] == 0 and parts["machine"]["figures"]["copy_gb_per_s"] > 0


def test_a_part_that_no_time_is_left_for_is_left_out(tmp_path):
    code, said, parts = measured(tmp_path, "--only", "snr", "--minutes", "0.1")
    assert (code, parts) == (0, {"snr": {"left_out": "no time was left"}})
    assert said == "snr: no time was left\n"
