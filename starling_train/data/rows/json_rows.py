"""Rows of JSON files: an object a line, or one array of objects; compressed ones end in .gz."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from starling_train.config.fields import UserError


def read_lines(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield (file:line, object) of a file with an object a line, blank lines skipped. Raises UserError naming it."""
    for where, line in _lines(file):
        if line.strip():
            yield where, parse_object(line, where)


def read(file: Path) -> Iterator[tuple[str, dict]]:
    """Yield (where, object) of a .json file: an array's elements are `file, row 1` and on, other files have lines."""
    first = next((line.lstrip(b"\xef\xbb\xbf \t\r\n") for _, line in _lines(file) if line.strip()), b"")
    if not first.startswith(b"["):
        yield from read_lines(file)
        return
    values = _parse(b"".join(line for _, line in _lines(file)), str(file), "the file must be an array of objects")
    for number, value in enumerate(values, start=1):
        where = f"{file}, row {number}"
        if not isinstance(value, dict):
            raise UserError(f"{where}: a JSON {type(value).__name__}; every element must be one JSON object")
        yield where, value


def parse_object(line: bytes, where: str) -> dict:
    """Parse one JSON object. Raises UserError that begins with `where`."""
    row = _parse(line, where, "every line must be one JSON object")
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON {type(row).__name__}; every line must be one JSON object")
    return row


def _parse(text: bytes, where: str, rule: str) -> Any:
    try:
        value = json.loads(text.decode("utf-8-sig"))
        if b"\\u" in text:  # JSON can write half a surrogate pair, which no tokenizer takes
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a surrogate pair, which is not Unicode text; repair or remove it") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}); {rule}") from error
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of thousands of digits
        raise UserError(f"{where}: JSON that cannot be read; {rule}") from error
    return value


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    number = 0
    with _opened(file) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                yield f"{file}:{number}", line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{file}: damaged after line {number}; download it again") from error


def _opened(file: Path) -> BinaryIO | gzip.GzipFile:
    try:
        return gzip.GzipFile(file) if file.suffix == ".gz" else open(file, "rb")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from error
