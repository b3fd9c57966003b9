"""python -m starling_train.report RUN [RUN ...]: the page of a run, or of several together, at any time."""

import sys
from collections.abc import Sequence
from pathlib import Path

import starling_train
from starling_train.config.fields import UserError
from starling_train.run.interruption import stopped_in_one_line

USAGE = """Usage: starling report RUN [RUN ...] [output=FILE.html] [dry_run=true]

Writes the page of a run's directory from its files alone, without loading a model: of a run under way, stopped,
killed or finished, of ppo, dpo, rm, laser, compare, evaluate or snr. Of one directory the page is RUN/report.html.
Several runs are laid over one another, a colour each: curves, differing settings, last figures; that page is
runs-report.html in the directory that holds them all. docs/report.md says what the verdicts mean.

  output=FILE.html   where the page goes instead
  dry_run=true       say where it would go
  --help, --version  this text; the version"""
# any of them makes a directory one that a command wrote
WRITTEN = ("config.yaml", "metrics.jsonl", "summary.json", "evaluation.json", "tries.jsonl", "compare.json", "snr.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, and print its path. arguments: the command line's, None for this process's own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--version" in given:
        print(f"starling {starling_train.__version__}")
        return
    if not given or {"--help", "-h"} & set(given):
        print(USAGE)
        sys.exit(0 if given else 2)
    try:
        with stopped_in_one_line():
            runs, output, is_dry = read_arguments(given)
            target = output or default_output(runs)
            print(f"report: {(target if is_dry else write(runs, output)).resolve()}{' (not written)' * is_dry}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename or 'the disk'}: {error.strerror}; give another output=", file=sys.stderr)
        sys.exit(2)


def read_arguments(given: Sequence[str]) -> tuple[list[Path], Path | None, bool]:
    """Return (the directories, the file of `output=`, whether it is a dry run). Raises UserError."""
    options = {"output": "", "dry_run": "false"}
    runs: list[Path] = []
    for argument in given:
        key, is_option, value = argument.partition("=")
        if is_option and key == "run_dir":
            runs.append(Path(value))
        elif is_option and key in options:
            options[key] = value
        elif argument.startswith("-") or (is_option and not Path(argument).exists()):
            raise UserError(f"{argument}: no such option; give directories of runs, output=FILE.html or dry_run=true")
        else:
            runs.append(Path(argument))
    if not runs:
        raise UserError("run_dir: no directory is given; name one or more that a command wrote")
    if options["dry_run"].lower() not in ("true", "false"):
        raise UserError(f"dry_run: {options['dry_run']} is neither true nor false; give one of them")
    output = Path(options["output"]).expanduser() if options["output"] else None
    if output is not None and output.is_dir():
        raise UserError(f"output: {output} is a directory; name a file, such as {output / 'report.html'}")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"output: {output.parent} is not a directory; make it first, or give another file")
    return [checked(path.expanduser()) for path in runs], output, options["dry_run"].lower() == "true"


def checked(path: Path) -> Path:
    """Return a directory that holds a command's files. Raises UserError for anything else."""
    from starling_train.report import compare_page

    if not path.is_dir():
        raise UserError(f"run_dir: {path} is not a directory; give the directory that a command wrote")
    if not any((path / name).is_file() for name in WRITTEN) and not compare_page.is_comparison(path):
        raise UserError(f"run_dir: {path} holds none of {', '.join(WRITTEN)}; give the directory that a command wrote")
    return path


def default_output(runs: Sequence[Path]) -> Path:
    """Return where the page goes: into the run's directory, or beside several."""
    if len(runs) == 1:
        return runs[0] / "report.html"
    parents = [path.resolve().parents for path in runs]
    shared = next(parent for parent in parents[0] if all(parent in others for others in parents))
    return shared / "runs-report.html"


def write(runs: Sequence[Path], output: Path | None) -> Path:
    """Write the page of the directories, and return its path. output: in place of the default."""
    from starling_train.files.whole import write_text
    from starling_train.report import compare_page, laser_page, overlay, page
    from starling_train.report.read_run import read

    if len(runs) > 1:
        text = overlay.render([read(path) for path in runs], overlay.title_of(runs))
    elif compare_page.is_comparison(runs[0]):
        text = compare_page.render(runs[0])
    elif laser_page.is_search(runs[0]):
        text = laser_page.render(read(runs[0]))
    else:
        text = page.render(read(runs[0]))
    return write_text(output or default_output(runs), text)


if __name__ == "__main__":
    main()
