"""From a command line to a typed configuration: the only room that knows Hydra.

A user's mistake ends in one line on stderr and exit code 2, Ctrl-C in one line and exit code 130.
"""

from starling_train.cli.compose import configuration, quoted, read_settings, typed
from starling_train.cli.main import command
from starling_train.cli.owner import command_of_recipe
from starling_train.cli.packaged import find, store_recipes

__all__ = [
    "command", "command_of_recipe", "configuration", "find", "quoted", "read_settings", "store_recipes", "typed",
]  # fmt: skip
