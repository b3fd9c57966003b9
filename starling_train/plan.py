"""python -m starling_train.plan +recipe=NAME plan.processes=N: what a run needs, before there is a GPU or a weight."""

from starling_train.cli import command
from starling_train.config.plan import PlanConfig, check


@command(check, PlanConfig, "plan")
def main(config: PlanConfig) -> None:
    """Print the plan. Nothing is written and nothing downloaded."""
    from starling_train.planning import planner

    print(planner.describe(config))


if __name__ == "__main__":
    main()
