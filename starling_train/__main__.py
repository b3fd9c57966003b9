"""`starling COMMAND ...`, the same as `python -m starling_train COMMAND ...`: starts a command, or lists them all.

`starling ppo ...` is `python -m starling_train.ppo ...`.
"""

import difflib
import importlib
import os
import runpy
import sys

import starling_train
from starling_train.listing import Command, commands

WITHOUT_KEYS = ("toy", "report")  # read their arguments without Hydra, which completes those of all others


def main() -> None:
    """Start the command that sys.argv names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    known = commands()
    if name in ("--help", "-h", "help"):
        _print(listed(known))
    elif name == "--version" or (name in known and "--version" in arguments):
        _print(f"starling {starling_train.__version__}")
    elif name in ("-sc", "--shell-completion"):
        _complete(arguments, known)
    elif name in known:
        _start(name, arguments)
    else:
        print(f"error: {unknown(name, known)}", file=sys.stderr)
        sys.exit(2)


def listed(known: dict[str, Command]) -> str:
    """Return the commands, a line each."""
    lines = [f"  {one.name:<14}{one.does}" for one in known.values()]
    return "\n".join(
        [
            f"starling {starling_train.__version__}: {starling_train.__doc__}",
            "",
            "Usage: starling COMMAND [+recipe=NAME] [section.key=value ...]",
            "",
            *lines,
            "",
            "  starling COMMAND --help                  what a command takes, and its recipes",
            "  starling ppo +recipe=toy                 a first run, in minutes, on any machine; nothing is downloaded",
            "  starling ppo +recipe=small dry_run=true  what a run would train, and the memory that it needs",
        ]
    )


def unknown(name: str, known: dict[str, Command]) -> str:
    """Return what is wrong with the name of a command."""
    if name.startswith("-") or "=" in name:
        return f"{name}: a command comes first; use starling COMMAND {name}, with one of: {', '.join(known)}"
    near = difflib.get_close_matches(name.replace("-", "_"), known, 1, 0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{name}: there is no such command; {meant}use one of: {', '.join(known)}"


def _start(name: str, arguments: list[str]) -> None:
    """Run a command as `python -m` does; a name like serve-reward is not one."""
    sys.argv[1:] = arguments
    runpy.run_module(f"starling_train.{name}", run_name="__main__", alter_sys=True)


def _complete(arguments: list[str], known: dict[str, Command]) -> None:
    """Answer a shell that completes a line: the names of commands here, what a command takes by Hydra.

    arguments: install=SHELL or uninstall=SHELL, which print what the shell is to evaluate; query=SHELL, of a line that
        the shell puts into COMP_LINE.
    """
    program, _, line = os.environ.get("COMP_LINE", "starling ").lstrip().partition(" ")
    name, has_more, rest = line.lstrip().partition(" ")
    if any(one.startswith("query=") for one in arguments) and not has_more:
        separator = "\n" if "query=fish" in arguments else " "
        _print(separator.join(one for one in known if one.startswith(name)))
        return
    os.environ["COMP_LINE"] = f"{program} {rest}"
    sys.argv = ["starling", "--shell-completion", *arguments]
    answering = name if has_more and name in known and name not in WITHOUT_KEYS else "ppo"
    if not has_more or answering == name:
        importlib.import_module(f"starling_train.{answering}").main()


def _print(text: str) -> None:
    """Print, without a traceback where nobody reads any more: `starling | head -1`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
