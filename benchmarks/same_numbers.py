"""Prove that a change of the code changed no number: the toy's jobs at another revision and here, compared to the bit.

    python benchmarks/same_numbers.py REV [--only NAME,...] [--keep DIR] [--processes N]
    python benchmarks/same_numbers.py HEAD              # before a commit
    python benchmarks/same_numbers.py main --only rm,dpo
    python benchmarks/same_numbers.py main --only toy   # the toy's models and data, made by both

Each job is a command of seconds. It runs from a copy of REV and from a copy of the working tree beside this script
(with uncommitted changes), on one thread, in a folder outside any checkout. Metrics, samples, every tensor of models
and checkpoints, scan and selection, laser's log, compare's tables, summaries and reports must be the same to the bit,
except for what the rules below leave out, each with its reason: times, memory, versions, commits, paths. Keys of
config.yaml that only one side has are reported but do not count as a difference. One line a job. Exit code 0: all the
same; 1: a difference, or a job failed.

Both sides train on the toy that REV makes (a minute, once, into the cache where the recipes look for it), so that only
the job itself can cause a difference. Job `toy` makes it anew on both sides; it takes two minutes more and only runs if
named.

Results at REV are kept in the user's cache, or in DIR (a few MB a job), by commit, command, machine, versions and toy:
a second comparison runs the working tree only. DIR also keeps the working tree's results. Both may be deleted any time.
"""

import argparse
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
FORMAT = 1  # of what is kept; raise it when older results must not be used any more
TIMEOUT_S = 1200  # of one command, on a machine that has other work too
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "numpy", "pyarrow", "matplotlib")

# --- jobs -------------------------------------------------------------------------------------------------------------

EVALUATE = ["data.eval_prompts=16", "evaluation.every=2"]
SAVE = ["checkpoint.every=2", "checkpoint.keep=9"]
SKILL = ["evaluation.function_calling.cases=8"]
SHORT = ["algorithm.steps=4", "algorithm.prompts_per_step=16", *EVALUATE, *SAVE, *SKILL]


@dataclass(frozen=True)
class Job:
    """A command; killed once when the checkpoint of step `killed_after` exists, then started again."""

    command: str
    arguments: list[str]
    killed_after: int | None = None
    must_have: tuple[str, ...] = ("metrics", "tensors", "report")  # without these nothing was compared


JOBS = {
    "ppo-head": Job("ppo", ["+recipe=toy", *SHORT]),
    "ppo-twin": Job(
        "ppo",
        ["+recipe=toy", *SHORT, "algorithm.critic=twin", "algorithm.kl.target=6", "rollout.temperature=0.8"],
    ),
    "ppo-lora": Job("ppo", ["+recipe=toy_lora", *SHORT, "freeze.head=true"]),
    "apa": Job("ppo", ["+recipe=toy", *SHORT, "algorithm=apa"]),
    "dpo": Job(
        "dpo",
        [
            "+recipe=toy_dpo", "dpo.epochs=0.03", "dpo.prompts_per_step=8", "evaluation.responses=8",
            *EVALUATE, *SAVE, *SKILL,
        ],
    ),
    "rm": Job("rm", ["+recipe=toy_rm", "rm.epochs=0.03", "rm.prompts_per_step=8", *EVALUATE, *SAVE]),
    "laser": Job("laser", ["+recipe=toy_laser", "laser.samples=48"]),
    "compare": Job(
        "compare",
        ["+recipe=toy", *SHORT, "algorithm.steps=2", "compare.only=[snr,random]", "compare.seeds=2"],
    ),
    "resume": Job("ppo", ["+recipe=toy", *SHORT, "algorithm.steps=6"], killed_after=2),
    "toy": Job("toy", [], must_have=("tensors",)),
}  # fmt: skip
ON_REQUEST = ("toy",)

# --- what is left out -------------------------------------------------------------------------------------------------

# Files that say when and where something was made, or what was printed meanwhile
LEFT_OUT_FILES = (
    re.compile(r"checkpoints/[^/]+/manifest\.json$"),  # paths, inodes and times of the base, and hashes of state.json
    re.compile(r"^run/logs/[^/]+\.log$"),  # what compare's runs printed, with the time that is left
)
# File -> beginnings of the keys that a clock, a meter or the checkout decides
LEFT_OUT_KEYS = {
    "metrics.jsonl": ("time/", "throughput/", "memory/"),
    "tries.jsonl": ("seconds",),
    "starts.jsonl": ("at",),
    "state.json": ("seconds",),
    "summary.json": ("wall_time_s", "throughput.", "peak_memory_gb", "versions.", "git_commit"),
}
# Keys of a checkpoint's state.json that stand elsewhere since `algorithm` holds what a command remembers by name; a
# command without such numbers wrote them as 0 and {}
RENAMED = {"kl_coefficient": "algorithm.kl.coefficient", "reward_moments": "algorithm.scores"}
# Parts of report.html, and what stands in their place
LEFT_OUT_OF_REPORTS = [
    # the header's measurements and commit: name and value, so that an archive without .git is no difference
    (re.compile(r"<div><dt>(?:Time|Speed|Responses|Peak memory|Code)</dt><dd>.*?</dd></div>"), ""),
    # the plot of seconds and tokens a second; its heading and caption are compared
    (re.compile(r"(<h3>Time and speed</h3>).*?(<figcaption>)", re.DOTALL), r"\1\2"),
    # when the run was started
    (re.compile(r"<time .*?</time>"), ""),
    # the table of all metrics: the numbers of those that are left out above
    (re.compile(r"(<tr><td><code>(?:time|throughput|memory)/\w+</code></td>).*?</tr>", re.DOTALL), r"\1</tr>"),
    # laser's table: the seconds of a try, in the last column after the verdict
    (re.compile(r'(>(?:kept|restored)</span></td><td class=num>)<data value="[^"]*">[^<]*</data>'), r"\1"),
    # the table of versions
    (re.compile(r"(<details><summary>Versions</summary>).*?</details>", re.DOTALL), r"\1</details>"),
    # config.yaml as text: its keys may change their order; their values are compared in the file itself
    (re.compile(r"(<details><summary>Configuration</summary>).*?</details>", re.DOTALL), r"\1</details>"),
]

# --- running ----------------------------------------------------------------------------------------------------------


class JobError(Exception):
    """A command did not end as it should."""


@dataclass
class Side:
    """One of the two versions of the code: its directory, and the environment of its commands."""

    name: str
    tree: Path
    toy: Path | None = None

    def environment(self) -> dict[str, str]:
        launcher = ("WORLD_SIZE", "RANK", "LOCAL_RANK")  # a job is one process
        inherited = {key: value for key, value in os.environ.items() if key not in launcher}
        own = {"PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return inherited | own | ({"STARLING_CACHE": str(self.toy.parent)} if self.toy else {})

    def start(self, arguments: list[str], folder: Path) -> subprocess.Popen:
        """Start a Python process in `folder`, outside any checkout; its output goes to `log` there."""
        with (folder / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, *arguments], cwd=folder, env=self.environment(), stdout=log, stderr=log
            )

    def answer(self, arguments: list[str], folder: Path) -> str:
        """Return the output of a short command."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise JobError(f"{self.name}: {' '.join(arguments)}: {done.stderr.strip().rpartition(chr(10))[2]}")
        return done.stdout

    def check_import(self, folder: Path) -> None:
        """Check that this tree's package is imported, not an installed one."""
        code = "import importlib.util; print(importlib.util.find_spec('starling_train').origin)"
        package = Path(self.answer(["-c", code], folder).strip()).resolve()
        if self.tree.resolve() not in package.parents:
            raise JobError(f"{self.name}: {package} would run in place of {self.tree}")

    def toy_folder(self, folder: Path) -> Path:
        """Return where this version looks for the toy: the name has a hash of the sources that make it."""
        arguments = ["-m", "starling_train.ppo", "+recipe=toy", "--cfg", "job", "--resolve"]
        return Path(yaml.safe_load(self.answer(arguments, folder))["model"]["path"]).parent


def wait(process: subprocess.Popen, folder: Path) -> None:
    """Wait for a command. Raises JobError unless it ends well."""
    try:
        code = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise JobError(f"still running after {TIMEOUT_S} s") from None
    if code:
        log = (folder / "log").read_text(errors="replace").strip()
        raise JobError(f"exit code {code}: {log.rpartition(chr(10))[2]}")


def run(side: Side, job: Job, folder: Path) -> None:
    """Run a job in an empty folder, and record where its toy was. Raises JobError."""
    arguments = ["-m", f"starling_train.{job.command}", *job.arguments]
    arguments.append("out=run" if job.command == "toy" else "run_dir=run")
    if job.killed_after is not None:
        kill_after_checkpoint(side, arguments, job.killed_after, folder)
    wait(side.start(arguments, folder), folder)
    (folder / "toy").write_text(str(side.toy))


def kill_after_checkpoint(side: Side, arguments: list[str], step: int, folder: Path) -> None:
    """Kill a run while `step`'s checkpoint is its newest, so that it resumes from the same step on any machine."""
    checkpoints = folder / "run" / "checkpoints"
    for _ in range(5):
        shutil.rmtree(folder / "run", ignore_errors=True)
        process = side.start(arguments, folder)
        end = time.monotonic() + TIMEOUT_S
        while not (checkpoints / f"step_{step:06d}").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            wait(process, folder)  # raises what the run says, if it failed by itself
        saved = [path.name for path in checkpoints.glob("step_*")] if checkpoints.exists() else []
        if saved and max(saved) == f"step_{step:06d}":
            return
    raise JobError(f"could not be killed between its checkpoint of step {step} and the next")


# --- the two versions, and their toy ----------------------------------------------------------------------------------


def git(*arguments: str) -> bytes:
    """Return git's output; end the script with git's own message where it refuses."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"error: git {arguments[0]}: {done.stderr.decode().strip()}")
    return done.stdout


def copy_revision(commit: str, tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as archive:
        archive.extractall(tree, filter="data")


def copy_working_tree(tree: Path) -> None:
    """Copy all files that are not ignored, so that later edits do not reach a running job."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():  # deleted files are listed too
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)


def share_toy(then: Side, now: Side, work: Path) -> Path:
    """Make REV's toy if it does not exist yet, and link it where each side looks for its own."""
    toy = then.toy_folder(work)
    if not toy.exists():
        print(f"making the toy's models and data in {toy} (a minute, once)", file=sys.stderr, flush=True)
        wait(then.start(["-m", "starling_train.toy"], work), work)
    for number, side in enumerate((then, now)):
        cache = work / f"toy_{number}"
        cache.mkdir()
        side.toy = cache / "not known yet"
        side.toy = side.toy_folder(work)
        side.toy.symlink_to(toy.resolve())
    return toy


def digest(folder: Path) -> str:
    """Hash all files below a folder."""
    hashed = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        hashed.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return hashed.hexdigest()


# --- results that are kept --------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    """Return everything besides the code that decides the last bits."""
    model = re.search(r"^model name\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    cpu = model[1] if model else platform.processor()
    capability = torch.backends.cpu.get_cpu_capability()  # the same CPU may be told to do less
    return {"cpu": f"{cpu}, {capability}", "python": platform.python_version()} | versions


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


@dataclass
class Store:
    """Results at one revision. A folder gets its name only when it is complete."""

    place: Path
    identity: dict[str, Any]  # commit, machine, toy

    def folder(self, name: str) -> Path:
        job = JOBS[name]
        whole = self.identity | {"job": [job.command, job.arguments, job.killed_after], "format": FORMAT}
        key = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
        return self.place / f"{self.identity['commit'][:12]}-{name}-{key}"

    def find(self, name: str) -> Path | None:
        """Return a complete result whose files still have their recorded sizes; remove any other."""
        folder = self.folder(name)
        listing = folder / "complete.json"
        if listing.is_file() and json.loads(listing.read_text()) == sizes(folder):
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        return None

    def make(self, name: str, side: Side) -> Path:
        """Run the job and keep its result. Raises JobError, and then keeps nothing."""
        folder = self.folder(name)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        try:
            run(side, JOBS[name], partial)
            (partial / "complete.json").write_text(json.dumps(sizes(partial)))
            if not folder.exists():  # somebody else may have been faster
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder


def sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "complete.json")
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


# --- comparing --------------------------------------------------------------------------------------------------------

ABSENT = "absent"
COUNTED = ("metrics", "tensors", "samples", "other values")  # in the line about a job


@dataclass
class Difference:
    """Two values of one file that should be the same."""

    file: str
    key: str
    then: Any
    now: Any

    def size(self) -> float | None:
        """Return the (largest) absolute difference of numbers; None for anything else."""
        if _both(torch.Tensor, self.then, self.now):
            is_alike = self.then.shape == self.now.shape and self.then.numel()
            return float((self.then.double() - self.now.double()).abs().max()) if is_alike else None
        return abs(self.then - self.now) if _both((int, float), self.then, self.now) else None

    def told(self) -> str:
        then, now = self.then, self.now
        if _both(torch.Tensor, then, now) and self.size() is not None:
            where = int((then.double() - now.double()).abs().argmax())
            then, now = (f"{value.flatten()[where].item()!r} (element {where})" for value in (then, now))
        elif _both(str, then, now):
            then, now = excerpts(then, now)
        return f"{self.file}, {self.key}: then {short(then)}, now {short(now)}"


def _both(kind: Any, *values: Any) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def excerpts(then: str, now: str, before: int = 30, length: int = 90) -> list[str]:
    """Return where two texts first differ."""
    parted = (place for place, (a, b) in enumerate(zip(then, now, strict=False)) if a != b)
    start = max(0, next(parted, min(len(then), len(now))) - before)
    return [repr(text[start : start + length]) for text in (then, now)]


def short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return value if isinstance(value, str) else repr(value)


@dataclass
class Comparison:
    """The files compared for a job, and their differences."""

    counts: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: str, then: dict[str, Any], now: dict[str, Any]) -> None:
        kind = kind_of(file)
        self.counts[kind] = self.counts.get(kind, 0) + len(then | now)
        if file.rpartition("/")[2] == "config.yaml":
            for name, keys in (("gone", then.keys() - now.keys()), ("new", now.keys() - then.keys())):
                self.notes += [f"{file}: {name}: {', '.join(sorted(keys))}"] if keys else []
            then, now = ({key: one[key] for key in one if key in other} for one, other in ((then, now), (now, then)))
        for key in then | now:
            pair = then.get(key, ABSENT), now.get(key, ABSENT)
            if not is_same(*pair):
                self.differences.append(Difference(file, key, *pair))


def is_same(then: Any, now: Any) -> bool:
    """Whether two values are the same to the bit: NaN is NaN, and 0.0 is not -0.0."""
    if isinstance(then, torch.Tensor) and isinstance(now, torch.Tensor):
        if then.dtype != now.dtype or then.shape != now.shape:
            return False
        return all(map(torch.equal, *([one.contiguous().flatten().view(torch.uint8)] for one in (then, now))))
    return type(then) is type(now) and repr(then) == repr(now)


def kind_of(file: str) -> str:
    """Return the kind as which a file counts in the line about a job."""
    name = file.rpartition("/")[2]
    if name in ("metrics.jsonl", "tries.jsonl"):
        return "metrics"
    if name.endswith((".safetensors", ".bin")):
        return "tensors"
    return {"report.html": "report", "samples.jsonl": "samples"}.get(name, "other values")


def compare(then: Path, now: Path) -> Comparison:
    """Compare all files of two results of one job."""
    found = Comparison()
    files = {str(path.relative_to(folder)) for folder in (then, now) for path in (folder / "run").rglob("*")
             if path.is_file()}  # fmt: skip
    for file in sorted(files, key=lambda file: (kind_of(file) != "metrics", file)):  # what is read first comes first
        if any(rule.search(file) for rule in LEFT_OUT_FILES):
            continue
        found.add(file, *(read(folder, file) for folder in (then, now)))
    return found


def read(folder: Path, file: str) -> dict[str, Any]:
    """Read a file as keys and values, without those left out; {} without a file."""
    path = folder / file
    if not path.is_file():
        return {}
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".bin":  # rm's reward model, as the published ones
        return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix in (".parquet", ".png"):
        return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    text = path.read_text().replace((folder / "toy").read_text(), "TOY")
    if path.name == "report.html":
        for rule, instead in LEFT_OUT_OF_REPORTS:
            text = rule.sub(instead, text)
    elif path.name.startswith("BFCL_"):  # the toy's cases, JSON lines that are called .json
        return {"text": text}
    elif path.suffix in (".json", ".jsonl") or path.name == "config.yaml":
        if path.name == "state.json":
            return state(dict(flat(json.loads(text))))
        left_out = LEFT_OUT_KEYS.get(path.name, ())
        return {where: value for where, key, value in values(path, text) if not (left_out and key.startswith(left_out))}
    return {"text": text}


def state(parsed: dict[str, Any]) -> dict[str, Any]:
    """Return the values of state.json under today's keys."""
    values = {key: value for key, value in parsed.items() if not key.startswith(LEFT_OUT_KEYS["state.json"])}
    for old, new in RENAMED.items():
        for key in [key for key in values if key == old or key.startswith(f"{old}.")]:
            value = values.pop(key)
            if value not in (0.0, {}):
                values[new + key.removeprefix(old)] = value
    return {key: value for key, value in values.items() if key != "algorithm"}


def values(path: Path, text: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the values of a file: (where it is, with line and step; its key; the value)."""
    if path.suffix != ".jsonl":
        parsed = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
        yield from ((key, key, value) for key, value in flat(parsed))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        row = json.loads(line)
        step = f"step {row['step']}, " if isinstance(row, dict) and "step" in row else ""
        yield from ((f"line {number}, {step}{key}", key, value) for key, value in flat(row))


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values as (`a.b.0`, value); an empty container counts as a value."""
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def tell(name: str, found: Comparison) -> bool:
    """Print the line of a job, and a line for each file that differs; return whether all are the same."""
    for note in found.notes:
        print(f"{name}: note: {note}")
    if lacking := [kind for kind in JOBS[name].must_have if not found.counts.get(kind)]:
        print(f"{name}: nothing to compare: no {', no '.join(lacking)}")
        return False
    if not found.differences:
        counts = [f"{found.counts[kind]} {kind}" for kind in COUNTED if kind in found.counts]
        reports = ["report"] if "report" in found.counts else []
        print(f"{name}: {', '.join(counts + reports)}: the same")
        return True
    by_file: dict[str, list[Difference]] = {}
    for difference in found.differences:
        by_file.setdefault(difference.file, []).append(difference)
    for number, differences in enumerate(by_file.values()):
        numbers = [size for size in (difference.size() for difference in differences) if size is not None]
        largest = f", largest difference {max(numbers):.3g}" if numbers else ""
        count = f" (1 of {len(differences)})" if len(differences) > 1 else ""
        print(f"{f'{name}: DIFFERENT: ' if number == 0 else '    '}{differences[0].told()}{count}{largest}")
    return False


# --- the command ------------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", metavar="REV", help="what the working tree is compared with: a commit, branch, tag")
    parser.add_argument("--only", metavar="NAME,...", help=f"some of: {', '.join(JOBS)}")
    parser.add_argument(
        "--keep", metavar="DIR", type=Path, help="where results are kept, those of the working tree too"
    )
    parser.add_argument("--processes", type=int, default=min(4, os.cpu_count() or 1), help="jobs side by side")
    given = parser.parse_args()
    given.only = given.only.split(",") if given.only else [name for name in JOBS if name not in ON_REQUEST]
    if unknown := [name for name in given.only if name not in JOBS]:
        parser.error(f"--only: there is no job '{unknown[0]}'; use some of: {', '.join(JOBS)}")
    return given


def prepare(commit: str, given: argparse.Namespace, work: Path) -> tuple[Side, Side, Store]:
    """Prepare both versions with their toy, and the kept results of the first."""
    then, now = (Side(name, work / name.replace(" ", "_")) for name in (commit[:12], "the working tree"))
    copy_revision(commit, then.tree)
    copy_working_tree(now.tree)
    for side in (then, now):
        side.check_import(work)
    made = share_toy(then, now, work)
    if then.toy.name != now.toy.name and "toy" not in given.only:
        print("note: the toy's sources differ; both sides use REV's toy, and --only toy compares what they make")
    place = given.keep or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "same_numbers"
    identity = {"commit": commit, "machine": machine(), "toy": digest(made)}
    return then, now, Store(place.resolve(), identity)


def run_here(now: Side, name: str, place: Path) -> Path:
    """Run the job in the working tree, in a separate folder below `place`."""
    folder = place / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run(now, JOBS[name], folder)
    return folder


def finish(name: str, then: Path | Future, now: Future) -> bool:
    """Wait for both results of a job, compare and report them."""
    found = []
    for where, result in (("REV", then), ("the working tree", now)):
        try:
            found.append(result.result() if isinstance(result, Future) else result)
        except JobError as error:
            print(f"{name}: FAILED at {where}: {error}", flush=True)
    is_good = len(found) == 2 and tell(name, compare(*found))
    sys.stdout.flush()
    return is_good


def main() -> int:
    """Run jobs without a kept result, compare, report; return the exit code."""
    given = arguments()
    commit = git("rev-parse", "--verify", f"{given.revision}^{{commit}}").decode().strip()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="same_numbers_") as temporary:
        work = Path(temporary).resolve()
        try:
            then, now, store = prepare(commit, given, work)
        except JobError as error:
            print(f"error: {error}")
            return 1
        here = store.place / "working_tree" if given.keep else work / "here"
        with ThreadPoolExecutor(given.processes) as pool:
            pairs = {}
            for name in given.only:
                kept = store.find(name)
                pairs[name] = (kept or pool.submit(store.make, name, then)), pool.submit(run_here, now, name, here)
            good = [finish(name, *pair) for name, pair in pairs.items()]
    alike = f"{sum(good)} of {len(good)} jobs are the same as at {commit[:12]}"
    print(f"{alike} ({time.monotonic() - began:.0f} s)")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
