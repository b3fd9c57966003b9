"""python -m starling_train.score reward.path=DIR input=FILE.jsonl output=FILE.jsonl: a score for each conversation."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from starling_train.cli import command
from starling_train.config.fields import UserError, given
from starling_train.config.score import ScoreConfig, check

if TYPE_CHECKING:
    from starling_train.rewards.score_file import ScoreProgress
    from starling_train.rewards.scorer import Scorer


@command(check, ScoreConfig, "score")
def main(config: ScoreConfig) -> None:
    """Find where an earlier start left off, load the model, score the rest."""
    from starling_train.models.reward.reading import cut_conversations
    from starling_train.rewards import kinds, score_file

    source, output = Path(given(config.input)).expanduser(), Path(given(config.output)).expanduser()
    check_files(source, output)
    progress = score_file.resume(source, output, config.reward)
    done, size = progress.input_bytes, source.stat().st_size
    if config.dry_run:
        print(f"would score {size - done:,} of {size:,} bytes of {source} with {kinds.described(config.reward)}")
        return
    if done:
        print(f"{progress.lines} lines of {source} are done already")
    if done < size or not output.exists():
        model = load_model(config)
        score(config, model, source, output, progress)
        if line := cut_conversations(model.shortened, model.truncated, config.reward.length_key):
            print(line)
    print(f"{progress.scored} scores: {output.resolve()}")
    if progress.wrong:
        raise UserError(
            f"input: {progress.wrong} lines of {source} could not be scored, line {progress.first_wrong} first; "
            f"{output} says why"
        )


def check_files(source: Path, output: Path) -> None:
    """Raise UserError unless the input can be read and the output is another file."""
    if not source.is_file():
        raise UserError(f"input: no file {source}; give a JSONL file of conversations")
    if output.is_dir():
        raise UserError(f"output: {output} is a directory; give a file, e.g. {output / 'scores.jsonl'}")
    if output.resolve() == source.resolve():
        raise UserError(f"output: {output} is the input; give another file")


def load_model(config: ScoreConfig) -> "Scorer":
    """Check what can be wrong, then load the reward model. Raises UserError."""
    from starling_train.files import disk
    from starling_train.rewards import kinds, score_file
    from starling_train.run.runtime import Runtime

    disk.check_directory(Path(given(config.output)).expanduser().parent, "output")
    kind = kinds.of(config.reward)
    kind.check(config.reward, True)
    head = score_file.head(Path(given(config.input)).expanduser(), 2)
    kinds.admit(config.reward, *head, kinds.without_weights)
    return kind.load(config.reward, Runtime.of(config.cluster, config.seed))


def score(config: ScoreConfig, model: "Scorer", source: Path, output: Path, progress: "ScoreProgress") -> None:
    """Score with a progress bar over the file's bytes, or a plain line per chunk where there is no terminal.

    config: the command's configuration.
    model: the reward model.
    source: the file of conversations.
    output: the file of scores.
    progress: where an earlier start left off.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from starling_train.rewards import score_file

    console = Console()
    counts = TextColumn("{task.description}")
    columns = (TextColumn("scoring"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), counts)
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=source.stat().st_size, completed=progress.input_bytes)

        def on_wrong(line: int, error: UserError) -> None:
            print(f"{source}:{line}: {error}", file=sys.stderr, flush=True)

        def on_chunk(now: "ScoreProgress") -> None:
            numbers = f"{now.scored} scored, {now.wrong} wrong"
            bar.update(task, completed=now.input_bytes, description=numbers)
            if not console.is_terminal:
                print(f"{100 * now.input_bytes / source.stat().st_size:.1f} %  {numbers}", flush=True)

        score_file.score_file(source, output, model, progress, config.chunk, on_wrong, on_chunk)


if __name__ == "__main__":
    main()
