"""python -m starling_train.plan +recipe=NAME plan.processes=N: memory and time of a run, before any download."""

import sys

from starling_train.cli import command, command_of_recipe
from starling_train.config.plan import PlanConfig, PlanDpoConfig, PlanRmConfig, check, check_of_dpo, check_of_rm
from starling_train.run.interruption import stopped_in_one_line


@command(check, PlanConfig, "plan")
def of_ppo(config: PlanConfig) -> None:
    """Print the plan. Nothing is written and nothing downloaded."""
    from starling_train.planning import planner

    print(planner.describe(config))


@command(check_of_dpo, PlanDpoConfig, "plan_dpo")
def of_dpo(config: PlanDpoConfig) -> None:
    """Print the plan of a run of dpo."""
    from starling_train.planning import supervised

    print(supervised.describe(config, config.plan))


@command(check_of_rm, PlanRmConfig, "plan_rm")
def of_rm(config: PlanRmConfig) -> None:
    """Print the plan of a run of rm."""
    from starling_train.planning import supervised

    print(supervised.describe(config, config.plan))


def main() -> None:
    """Plan the run of the command that the recipe is for, ppo where none is given."""
    with stopped_in_one_line():
        recipe_of = command_of_recipe(sys.argv[1:])
    {"dpo": of_dpo, "rm": of_rm}.get(recipe_of or "", of_ppo)()


if __name__ == "__main__":
    main()
