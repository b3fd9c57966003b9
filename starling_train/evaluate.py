"""python -m starling_train.evaluate model.path=DIR suites=[...]: how good are a policy and a reward model?"""

import signal
import time
from typing import TYPE_CHECKING

from starling_train.cli import command
from starling_train.config.evaluate import EvaluateConfig, check
from starling_train.config.fields import given

if TYPE_CHECKING:
    from starling_train.evals.suite import ResultLine


@command(check, EvaluateConfig, "evaluate")
def main(config: EvaluateConfig) -> None:
    """Find what the suites need, skip what was measured before, measure the rest, print the table, write the page."""
    from starling_train import __version__
    from starling_train.evals import registry, results
    from starling_train.evals.subjects import Subjects
    from starling_train.report import page
    from starling_train.run import interruption
    from starling_train.run.runtime import Runtime

    interruption.heed(signal.SIGTERM, signal.SIGUSR1)  # everything measured so far is in a file already

    # 1. What can be wrong, before anything is loaded.
    runtime = Runtime.of(config.cluster, config.seed)
    file = results.path_of(config.directory())
    done = results.read(file)
    subjects = Subjects(config, runtime, results.files(file))
    requested = [registry.suite(name).find(subjects) for name in dict.fromkeys(config.suites)]
    found = [(suite, results.find(done, suite.identity)) for suite in requested]
    missing = [suite for suite, result in found if result is None or not suite.is_complete(result)]
    for suite in missing:
        suite.check(config.dry_run)
    for line in subjects.lines():
        print(line)
    for suite in requested:
        would = "would measure" if suite in missing else "done already:"
        if config.dry_run or suite not in missing:
            print(f"{suite.name}: {would} {suite.plan()}")
    if config.dry_run:
        print(f"results go to {file.absolute()}")
        return

    # 2. One suite after the other, each written when it is done.
    results.make_directory(file)
    for suite in missing:
        print(f"{suite.name}: {suite.plan()}", flush=True)
        began = time.perf_counter()
        result = suite.measure(file.parent, lambda text: print(text, flush=True))
        origin = {
            "seconds": round(time.perf_counter() - began, 3),
            "device": runtime.describe(),
            "version": __version__,
        }
        lines = [[line.part, line.value, line.count] for line in suite.lines(result)]
        words = {"lines": lines, "notes": suite.notes(result)}
        entry = {"identity": suite.identity, "result": result, "shown": words, "made": origin}
        results.add(file, entry, subjects.hashed)

    # 3. The results of all requested suites, old and new.
    done = results.read(file)
    measured = [(suite, given(results.find(done, suite.identity))) for suite in requested]
    print(table([(suite.name, suite.lines(result)) for suite, result in measured]))
    for suite, result in measured:
        for note in suite.notes(result):
            print(f"{suite.name}: {note}")
    print(f"report: {page.write(file.parent).resolve()}")
    print(f"results: {file.resolve()}")


def table(suites: "list[tuple[str, list[ResultLine]]]") -> str:
    """Return a table with a line for each suite and for each of its parts."""
    rows = [
        (f"  {line.part}" if index else " ".join(filter(None, (name, line.part))), line.value, f"{line.count:,}")
        for name, lines in suites
        for index, line in enumerate(lines)
    ]
    width, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    head = f"{'suite':<{max(width, 32)}}{'value':>{values + 2}}{'of':>12}"
    return "\n".join(
        [head, *(f"{part:<{max(width, 32)}}{value:>{values + 2}}{count:>12}" for part, value, count in rows)]
    )


if __name__ == "__main__":
    main()
