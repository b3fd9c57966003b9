"""The `main` of every command: from sys.argv to a checked configuration, from an error to a line and an exit code."""

import errno
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

import starling_train
from starling_train import assets
from starling_train.cli import help_page
from starling_train.cli.compose import compose, typed
from starling_train.cli.mistakes import one_line
from starling_train.cli.owner import IS_RECIPE, wrong_recipe
from starling_train.cli.packaged import maker, recipes_of
from starling_train.config.fields import NoDirectory, NotSet, UserError
from starling_train.config.ppo import PpoConfig
from starling_train.run.interruption import stopped_in_one_line
from starling_train.run.out_of_memory import is_out_of_memory, without_memory
from starling_train.run.quiet import hush

# a disk that fails during a run: full, over quota, unmounted, read-only, broken
DISK_FAULTS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EIO,
    errno.ESTALE,
)  # fmt: skip
NOBODY_READS = 141  # 128 + SIGPIPE, as a shell says of other programs
OWN_FILE_FLAGS = ("-cn", "-cp", "--config-name", "--config-path")  # the user's own file in place of the command's


def command(check: Callable[[Any], None], schema: type = PpoConfig, config_name: str = "config") -> Callable:
    """Make a function of a checked configuration a command: `main()` reads sys.argv and returns when it is done.

    check: cross-field checks, raises UserError.
    schema: the dataclass that the composed configuration must fit.
    config_name: the file of `conf/` that the command starts from.
    """

    def run(arguments: list[str], body: Callable[[Any], None]) -> None:
        hush()
        if {"--help", "-h", "--version"} & set(arguments):
            is_version = "--version" in arguments
            print(f"starling {starling_train.__version__}" if is_version else help_page.short(config_name, schema))
            sys.exit(0)
        for composed in compose([one for one in arguments if one != help_page.ALL], config_name, schema):
            config = typed(composed, schema)
            if help_page.ALL in arguments:
                print(help_page.whole(config_name, config))
                continue
            _forget_defaults(config, arguments)
            check(config)
            if getattr(config, "prepare", None):
                assets.ensure(config.prepare)
            body(config)

    def decorate(body: Callable[[Any], None]) -> Callable[[], None]:
        def main() -> None:
            arguments = sys.argv[1:]
            debug = any(argument in ("debug=true", "debug=True") for argument in arguments)
            try:
                with stopped_in_one_line(), silent_when_nobody_reads():
                    run(arguments, body)
            except (UserError, HydraException, OmegaConfBaseException) as error:
                if debug:
                    raise
                wrong = wrong_recipe(arguments, config_name, error)
                print(f"error: {one_line(wrong or error, schema)}{_recipe(error, config_name)}", file=sys.stderr)
                sys.exit(2)
            except (OSError, MemoryError, RuntimeError) as error:
                fault = disk_fault(error) if isinstance(error, OSError) else None
                fault = without_memory(error) if is_out_of_memory(error) else fault
                if debug or fault is None:
                    raise
                print(f"error: {fault}", file=sys.stderr)
                sys.exit(2)

        return main

    return decorate


def disk_fault(error: OSError) -> str | None:
    """Return one line if the disk failed, None for any other error. Everything saved before is intact."""
    if error.errno not in DISK_FAULTS:
        return None
    return (
        f"{error.filename or 'the disk'}: {os.strerror(error.errno)}; everything saved so far is intact; fix the disk, "
        "then run the same command again"
    )


@contextmanager
def silent_when_nobody_reads() -> Iterator[None]:
    """End without a traceback, with exit code 141, when whoever read the output has ended: `... | head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not is_closed(sys.stdout):  # it was another pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter writes at its end
        sys.exit(NOBODY_READS)


def is_closed(stream: Any) -> bool:
    """Return whether the reader of a stream that is a pipe has gone."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # no file at all, as in a notebook
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _forget_defaults(config: Any, arguments: list[str]) -> None:
    """Take the default model away from a command line that names none, nor a recipe: it would ask the hub for a 7B.

    Where the command needs it, its check says so; the default reward model, too, where no other model is named.
    """
    keys = {argument.lstrip("+").partition("=")[0] for argument in arguments if not argument.startswith("-")}
    if any(map(IS_RECIPE.match, arguments)) or any(argument.startswith(OWN_FILE_FLAGS) for argument in arguments):
        return
    names_model, names_reward = ({section, f"{section}.path"} & keys for section in ("model", "reward"))
    if hasattr(config, "model") and not names_model:
        config.model.path = ""
    if hasattr(config, "reward") and not names_model and not names_reward:
        config.reward.path = ""


def _recipe(error: Exception, config_name: str) -> str:
    """Return which recipe helps: any of the command's where a model lacks, or the one that makes what a run lacks."""
    if isinstance(error, NotSet) and error.key == "model.path" and (names := ", ".join(recipes_of(config_name))):
        return f", or start from a recipe: +recipe=NAME with one of {names}"
    if isinstance(error, NoDirectory) and (line := maker(error.path)):
        return f", or make it: {line}"
    return ""
