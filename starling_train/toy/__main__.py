"""python -m starling_train.toy [out=DIR]: make the toy's models and data, once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from starling_train import assets
from starling_train.files.whole import write_whole
from starling_train.run import interruption

PARTS = ("policy", "reward")
HELP = """python -m starling_train.toy [out=DIR]

Makes the assets of the `toy` recipe: a 2-layer policy, a reward model with another tokenizer, preference data in
Nectar's schema, and held-out function-calling cases. Deterministic; about a minute on two CPU cores.
out: where to (an existing folder is left alone); default: the cache that recipes/toy.yaml reads.
"""


def main(arguments: list[str]) -> None:
    """Read `out=DIR` (and, within, `part=NAME`) and make what is missing."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if {"--help", "-h"} & given.keys():
        print(HELP)
        return
    if unknown := given.keys() - {"out", "part"}:
        print(f"error: {sorted(unknown)[0]}: no such option; use out=DIR", file=sys.stderr)
        sys.exit(2)
    out = Path(given.get("out") or assets.directory("toy")).expanduser()
    if "part" in given:
        from starling_train.toy import making

        making.make_part(given["part"], out)
    elif out.exists():
        print(f"{out} already exists; nothing to do")
    else:
        make(out)


def make(out: Path) -> Path:
    """Make all parts side by side in a folder next to `out`, then rename it into place."""
    began = time.perf_counter()
    print(f"making the toy's models and data in {out} (about a minute, once)", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, _make_parts, shared=True)
    print(f"made in {time.perf_counter() - began:.0f} s: {json.dumps(json.loads((out / 'toy.json').read_text()))}")
    return out


def _make_parts(folder: Path) -> None:
    folder.mkdir()
    # a process a part: each computes on one thread, which makes its result independent of the number of cores
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "starling_train.toy", f"out={folder}"]
    running = [subprocess.Popen([*command, f"part={part}"], env=environment) for part in PARTS]
    try:
        codes = [process.wait() for process in running]
    except KeyboardInterrupt:
        for process in running:
            process.kill()
            process.wait()
        raise
    if any(codes):
        raise RuntimeError("a part of the toy could not be made; its message is above")
    facts = {part: json.loads((folder / f"{part}.json").read_text()) for part in PARTS}
    for part in PARTS:
        (folder / f"{part}.json").unlink()
    (folder / "toy.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    try:
        with interruption.interruptible():
            main(sys.argv[1:])
    except KeyboardInterrupt as stopped:
        sys.exit(getattr(stopped, "exit_code", 130))  # whoever waits for it has a line
