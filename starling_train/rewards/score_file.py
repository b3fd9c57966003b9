"""A file of conversations -> a file of scores, a chunk at a time, so that a stopped job continues where it was.

Beside the output lies `<output>.progress.json`: how many bytes of the input are done, their SHA-256, how long the
output was then, and the settings that scores depend on. A chunk goes into the output first and into that file second,
so what a kill left after the last count is cut off and repeated. An input that was only extended is continued.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from starling_train.config.fields import UserError
from starling_train.config.sections import RewardConfig, ScorerConfig, in_term
from starling_train.data import conversations
from starling_train.files.json_lines import Appender, to_line
from starling_train.files.whole import write_text
from starling_train.rewards import directory, function, terms
from starling_train.rewards.scorer import Scorer

BLOCK = 1 << 20
CHUNK_BYTES = 32_000_000  # of input held at a time, however few lines that is
OF_SCORER = ("kind", "path", "tokenizer", *directory.SCORED_BY, *function.SCORED_BY)
SETTINGS = (*OF_SCORER, "terms")
LATER = dict.fromkeys((*function.SCORED_BY, "terms"))  # settings that an earlier version did not write
COUNTS = ("input_bytes", "output_bytes", "lines", "scored", "wrong", "first_wrong")

InputLine = tuple[int, bytes]  # number, from 1, and text


@dataclass
class ScoreProgress:
    """What is done. settings: of the reward model. first_wrong: number of the first wrong line, 0 if there is none."""

    settings: dict[str, Any]
    input_bytes: int = 0
    input_sha256: str = hashlib.sha256().hexdigest()
    output_bytes: int = 0
    lines: int = 0
    scored: int = 0
    wrong: int = 0
    first_wrong: int = 0

    def write(self, path: Path) -> None:
        """Replace the file, whole."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")


def progress_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.progress.json")


def resume(source: Path, output: Path, config: RewardConfig) -> ScoreProgress:
    """Find where an earlier start stopped, or the beginning.

    Raises UserError if the input was changed, the model is another one, or the output is not ours.
    """
    settings = _settings(config) | {"terms": _terms(config) or None}
    path = progress_path(output)
    if not output.exists():
        return ScoreProgress(settings)
    again = f"delete {output} to score everything again, or give another output"
    if not path.is_file():
        raise UserError(f"output: {output} already exists and `score` did not write it; {again}")
    progress = _read_progress(path, again)
    changed = [key for key in SETTINGS if (progress.settings[key] or None) != settings[key]]
    if changed:
        raise UserError(f"output: {output} holds scores with another reward.{changed[0]}; {again}")
    if output.stat().st_size < progress.output_bytes:
        raise UserError(f"output: {output} was shortened since it was written; {again}")
    if not _begins_with(source, progress):
        raise UserError(f"input: {source} was changed since its scores were written; {again}")
    return progress


def _settings(config: ScorerConfig) -> dict[str, Any]:
    """Return what scores depend on."""
    settings = {key: getattr(config, key) or None for key in OF_SCORER}
    if config.kind == "function":  # another text under the same name is another function
        settings["function"] = function.identity(config)
    return settings


def _terms(config: RewardConfig) -> dict[str, Any]:
    """Return what the score of each term depends on, and its weight."""
    settings = {}
    for name, term in config.terms.items():
        with in_term(term):
            settings[name] = _settings(term) | {"weight": term.weight, "empty_response": term.empty_response}
    return settings


def _read_progress(path: Path, again: str) -> ScoreProgress:
    try:
        progress = ScoreProgress(**json.loads(path.read_bytes()))
        progress.settings = LATER | progress.settings
        is_ours = progress.settings.keys() >= set(SETTINGS)
        is_ours = is_ours and all(type(getattr(progress, key)) is int for key in COUNTS)
    except (OSError, ValueError, TypeError, RecursionError):  # not JSON, or not what `write` writes
        is_ours = False
    if not is_ours:
        raise UserError(f"output: {path} is damaged, so where to continue is unknown; {again}")
    return progress


def score_file(
    source: Path,
    output: Path,
    model: Scorer,
    progress: ScoreProgress,
    chunk_lines: int,
    on_wrong: Callable[[int, UserError], None],
    on_chunk: Callable[[ScoreProgress], None],
) -> None:
    """Score what `progress` (of `resume`) lacks, and advance it; blank lines are skipped.

    on_wrong: called with the number of a line that could not be scored; on_chunk: after every chunk that is safe.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    progress.write(progress_path(output))  # before the output, which must be known as ours from its first byte
    output.touch()
    rows = Appender(output, progress.output_bytes)
    with source.open("rb") as lines:
        digest = _digest(lines, progress.input_bytes)
        for chunk in chunks(lines, progress.lines, chunk_lines):
            numbered = [(number, line) for number, line in chunk if line.strip()]
            results = score_lines(numbered, model)
            for (number, _), (result, _) in zip(numbered, results, strict=True):
                progress.scored += not isinstance(result, UserError)
                if isinstance(result, UserError):
                    progress.wrong += 1
                    progress.first_wrong = progress.first_wrong or number
                    on_wrong(number, result)
            rows.append(*(row(number, *result) for (number, _), result in zip(numbered, results, strict=True)))
            digest.update(b"".join(line for _, line in chunk))
            progress.lines, progress.output_bytes = chunk[-1][0], rows.size
            progress.input_bytes += sum(len(line) for _, line in chunk)
            progress.input_sha256 = digest.hexdigest()
            progress.write(progress_path(output))
            on_chunk(progress)


def chunks(lines: BinaryIO, done: int, count: int) -> Iterator[list[InputLine]]:
    """Yield up to `count` lines, or CHUNK_BYTES, at a time, numbered on from `done`."""
    chunk: list[InputLine] = []
    size = 0
    for number, line in enumerate(lines, start=done + 1):
        chunk.append((number, line))
        size += len(line)
        if len(chunk) == count or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def score_lines(lines: list[InputLine], model: Scorer) -> list[tuple[float | UserError, dict[str, float]]]:
    """Score every line, or say what is wrong with it; and the scores of a sum's terms, as far as they gave any."""
    read = [_conversation(line) for _, line in lines]
    good = {index: pair for index, pair in enumerate(read) if not isinstance(pair, UserError)}
    results: list[Any] = [(result, {}) for result in read]
    asked, columns = [messages for messages, _ in good.values()], [columns for _, columns in good.values()]
    scored, of_terms = terms.scored_each(model, asked, columns)
    for position, (index, result) in enumerate(zip(good, scored, strict=True)):
        finite = isinstance(result, UserError) or math.isfinite(result)
        result = result if finite else UserError("the reward model gave a score that is not finite")
        given = {name: values[position] for name, values in of_terms.items()}
        results[index] = result, {name: value for name, value in given.items() if not isinstance(value, UserError)}
    return results


def row(number: int, result: float | UserError, of_terms: Mapping[str, float] = MappingProxyType({})) -> bytes:
    """Render one line of output."""
    outcome: dict[str, Any] = {"error": str(result)} if isinstance(result, UserError) else {"score": result}
    each = {"terms": dict(of_terms)} if of_terms else {}
    return to_line({"line": number} | outcome | each, ascii_only=False)


def head(source: Path, count: int) -> tuple[list[list[dict]], list[dict[str, Any]]]:
    """Return (prompts, columns) of the first conversations of a file that can be scored, of its first lines."""
    with source.open("rb") as lines:
        read = [_conversation(line) for line in itertools.islice(filter(bytes.strip, lines), 100)]
    good = [pair for pair in read if not isinstance(pair, UserError)][:count]
    return [messages[:-1] for messages, _ in good], [columns for _, columns in good]


def _conversation(line: bytes) -> tuple[list[dict], dict[str, Any]] | UserError:
    """Return the messages of a line, and the line's columns."""
    try:
        row = conversations.parse(line)
        return conversations.of_row(row), row if isinstance(row, dict) else {}
    except UserError as error:
        return error


def _begins_with(source: Path, progress: ScoreProgress) -> bool:
    """Return whether the lines that are done are still the file's first."""
    with source.open("rb") as lines:
        if _digest(lines, progress.input_bytes).hexdigest() != progress.input_sha256:
            return False
        following = lines.read(1)
        lines.seek(max(progress.input_bytes - 1, 0))
        # a last line without an end that was continued is another line
        return lines.read(1) == b"\n" or following in (b"", b"\n")


def _digest(lines: BinaryIO, size: int) -> Any:
    """Hash the next `size` bytes: a running SHA-256."""
    digest = hashlib.sha256()
    while size > 0 and (block := lines.read(min(size, BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest
