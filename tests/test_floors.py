"""The layout holds: who may import whom, found by walking the imports."""

import ast
from pathlib import Path

import pytest

import starling_train

ROOT = Path(starling_train.__file__).parent
FLOORS = {
    "config_values": -2, "config_model": -1, "config": 0, "config_rm": 1, "config_dpo": 1, "config_evaluate": 1,
    "assets": 1, "core": 1,
    "data": 2, "models": 2, "engine": 3, "evals": 4, "report": 4, "cli": 5,
}  # fmt: skip
COMMAND = 6
# package: the only places that may import it (a file or a folder of starling_train)
ONLY_IN = {
    "hydra": ("cli.py",),
    "omegaconf": ("cli.py",),
    "accelerate": ("engine",),
    "deepspeed": ("engine",),
    "wandb": ("files/json_lines.py",),
    "peft": ("models/adapters.py",),
    "matplotlib": ("report",),
}
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, is at the top of the file) of every import in a file, functions' own included."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module, id(node) in top))
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def part(module: str) -> str:
    """`starling_train.rollout.generate` -> `engine`; the package itself -> ''."""
    return [*module.split("."), ""][1]


def own_part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_the_walk_sees_the_package():
    assert len(FILES) > 20
    assert ("starling_train.core.masked", True) in imports(ROOT / "core" / "ppo.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_from_floors_below_its_own(path):
    mine = own_part(path)
    floor = FLOORS.get(mine, COMMAND)
    for module, _ in imports(path):
        if module.split(".")[0] != "starling_train" or part(module) in ("", "__version__", mine):
            continue
        other = FLOORS.get(part(module), COMMAND)
        assert other < COMMAND, f"{path} imports the command {module}"
        assert other < floor, f"{path} (floor {floor}) imports {module} (floor {other})"


@pytest.mark.parametrize("package", ONLY_IN)
def test_packages_that_live_in_one_place_only(package):
    users = {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(module.split(".")[0] == package for module, _ in imports(path))
    }
    assert all(user.startswith(ONLY_IN[package]) for user in users), users


def test_core_is_pure():
    """No files, no configuration, no models below the data floor."""
    allowed = {"torch", "math", "statistics", "dataclasses", "typing", "collections", "functools", "starling_train"}
    for path in (ROOT / "core").rglob("*.py"):
        assert {module.split(".")[0] for module, _ in imports(path)} <= allowed, path


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("*.py")))
def test_help_and_typos_need_nothing_heavy(name):
    heavy = {"torch", "transformers", "datasets", "matplotlib", "pyarrow"}
    at_top = {module.split(".")[0] for module, top in imports(ROOT / name) if top}
    assert not at_top & heavy
    below = {part(m) for m, top in imports(ROOT / name) if top and m.startswith("starling_train.")}
    assert all(name in ("assets", "cli") or name.split("_")[0] == "config" for name in below)


def test_files_stay_small():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 300}
    assert not long
