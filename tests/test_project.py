"""What a package says of itself, and the package in another place than this checkout."""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

import starling_train

ROOT = Path(starling_train.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_files_about_the_project_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    assert (citation["version"], citation["license"]) == (starling_train.__version__, PROJECT["license"])
    assert f"\n## {starling_train.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["scripts"] == {"starling": "starling_train.__main__:main"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel in an environment of its own, which takes all other packages from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"the wheel cannot be built here: {built.stderr.strip().splitlines()[-1]}")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (wheel,) = folder.glob("*.whl")
    python = folder / "env" / "bin" / "python"
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--ignore-installed"]
    subprocess.run([python, *install, str(wheel)], check=True)
    return folder / "env" / "bin"


@pytest.mark.slow
def test_the_wheel_works_in_another_folder(toy, installed, tmp_path):
    """That `conf/` and `recipes/` are packed, and the script is made, nothing else shows."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def starling(*arguments):
        done = subprocess.run(
            [installed / "starling", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = "import starling_train; print(starling_train.__file__)"
    where = subprocess.run(
        [installed / "python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert where.stdout.startswith(str(installed.parent))
    assert starling("--version") == f"starling {starling_train.__version__}\n"
    assert "\n  toy " in starling("ppo", "--help")
    assert "peak" in starling("ppo", "+recipe=toy", "dry_run=true")
    assert f"report: {tmp_path}/runs/debug/report.html" in starling("ppo", "+recipe=debug")
