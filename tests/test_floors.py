"""The house holds: who may import whom, how large a room, a file and a function may be; found by reading the code."""

import ast
from collections import Counter, defaultdict
from pathlib import Path

import starling_train

ROOT = Path(starling_train.__file__).parent
COMMAND = 11
# a room, or a room within a room, and its floor: it imports only from floors below its own, and from itself
FLOORS = {
    "config": 0,
    "files": 1, "core": 1,
    "data": 2, "run": 2,
    "models": 3,
    "selection": 4,
    "planning": 5, "rollout": 5,
    "rewards": 6,
    "training": 7, "training/ppo": 7.5, "training/dpo": 7.5, "training/reward_model": 7.5,
    "evals": 8,
    "rank_search": 9, "comparison": 9, "report": 9,
    "listing": 0, "assets": 9.5, "cli": 10,
}  # fmt: skip
CLI_IMPORTS = {"config", "assets", "listing"}  # all that a typo or --help waits for
# of the standard library alone: a lock for `assets`; Ctrl-C, lack of memory and what libraries may say for `cli`
LIGHT = (
    "starling_train.files.lock",
    "starling_train.run.interruption",
    "starling_train.run.out_of_memory",
    "starling_train.run.quiet",
)
# package: the only places that may import it
ONLY_IN = {
    "hydra": ("cli/",),
    "omegaconf": ("cli/",),
    "deepspeed": ("training/zero.py",),
    "accelerate": ("run/tracker.py",),
    "mlflow": ("run/tracker.py",),
    "trackio": ("run/tracker.py",),
    "wandb": ("run/tracker.py",),
    "peft": ("models/adapters.py",),
    "matplotlib": ("report/",),
    "vllm": ("rollout/",),
}
PURE = {"torch", "math", "statistics", "dataclasses", "typing", "collections", "functools", "starling_train"}
HEAVY = {"torch", "transformers", "datasets", "matplotlib", "pyarrow"}
LARGEST_ROOM = 16
LONGEST_STORY = 85  # `train` of ppo, dpo and rm
LONGEST_FUNCTION = 60
FILES = sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, is at the top of the file) of every import in a file, functions' own included."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    rows = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            rows += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            rows.append((node.module, id(node) in top))
            rows += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return rows


def room_of(module: str) -> str:
    """`starling_train.training.ppo.update` -> `training/ppo`; a command, or the package itself -> its own name."""
    parts = module.split(".")[1:]
    for length in (2, 1):
        if "/".join(parts[:length]) in FLOORS:
            return "/".join(parts[:length])
    return parts[0] if parts else ""


def own_imports(path: Path) -> list[tuple[str, bool]]:
    """The modules of this package that a file imports."""
    return [(module, top) for module, top in imports(path) if module.startswith("starling_train.")]


def module_of(path: Path) -> str:
    return "starling_train." + name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def test_the_walk_sees_the_package():
    assert len(FILES) > 20
    assert ("starling_train.core.masked", True) in imports(ROOT / "core" / "ppo.py")
    assert room_of("starling_train.training.ppo.update") == "training/ppo"
    assert {path.parent.name for path in FILES if name_of(path).count("/")} >= {
        room for room in FLOORS if "/" not in room
    } - {
        "listing",
        "assets",
    }


def test_a_module_imports_only_from_floors_below_its_own():
    offenders = []
    for path in FILES:
        mine = room_of(module_of(path))
        floor = FLOORS.get(mine, COMMAND)
        for module, _ in own_imports(path):
            other = room_of(module)
            if other in ("", mine, "__version__"):
                continue
            light = other in CLI_IMPORTS or module.startswith(LIGHT)
            if FLOORS.get(other, COMMAND) >= floor or (mine in ("cli", "assets") and not light):
                offenders.append(f"{name_of(path)} (floor {floor:g}) imports {module} ({FLOORS.get(other, COMMAND):g})")
    assert not offenders, "\n".join(sorted(set(offenders)))


def test_no_circle():
    """Not even within a room: a module that is read first never needs one that needs it."""
    modules = {module_of(path) for path in FILES}
    graph = defaultdict(set)
    for path in FILES:
        for module, _ in own_imports(path):
            known = module if module in modules else module.rpartition(".")[0]
            if known in modules and known != module_of(path) and not module_of(path).startswith(f"{known}."):
                graph[module_of(path)].add(known)
    done, circles = set(), []

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            circles.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for other in sorted(graph[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(modules):
        visit(module, ())
    assert not circles, "\n".join(circles)


def test_packages_that_live_in_one_place_only():
    offenders = [
        f"{name_of(path)} imports {package}"
        for path in FILES
        for package in {module.split(".")[0] for module, _ in imports(path)} & ONLY_IN.keys()
        if not name_of(path).startswith(ONLY_IN[package])
    ]
    assert not offenders, "\n".join(offenders)


def test_core_is_pure_and_config_needs_nothing():
    """No files, no models in core; the standard library alone in config, so that a wrong key is reported at once."""
    for path in (ROOT / "core").rglob("*.py"):
        assert {module.split(".")[0] for module, _ in imports(path)} <= PURE, path
    for path in [*(ROOT / "config").rglob("*.py"), ROOT / "files" / "lock.py", ROOT / "run" / "out_of_memory.py"]:
        assert not {module.split(".")[0] for module, _ in imports(path)} & HEAVY, path


def test_help_and_typos_need_nothing_heavy():
    for path in [*ROOT.glob("*.py"), *(ROOT / "cli").glob("*.py")]:
        at_top = [module for module, top in imports(path) if top]
        assert not {module.split(".")[0] for module in at_top} & HEAVY, path
        own = [module for module in at_top if module.startswith("starling_train.") and not module.startswith(LIGHT)]
        rooms = {room_of(module) for module in own}
        assert rooms <= {"config", "cli", "assets", "listing", "__version__"}, f"{path}: {rooms}"


def test_the_optimizer_is_asked_and_not_looked_at():
    """Which optimizer it is, only `training/` may know."""
    for path in FILES:
        if not name_of(path).startswith("training/"):
            assert "ZeroOptimizer" not in path.read_text(), path


def test_rooms_files_and_functions_stay_small():
    rooms = Counter(path.parent for path in FILES if path.name != "__init__.py" and path.parent != ROOT)
    offenders = [f"{room.relative_to(ROOT)}/: {count} files" for room, count in rooms.items() if count > LARGEST_ROOM]
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                is_story = path.parent == ROOT and node.name == "train"
                if lines > (LONGEST_STORY if is_story else LONGEST_FUNCTION):
                    offenders.append(f"{name_of(path)}: {node.name} has {lines} lines")
    assert not offenders, "\n".join(offenders)
