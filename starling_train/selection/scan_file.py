"""The file of a scan: given by its path, or looked for in a directory under the model's name, as Spectrum does."""

from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from starling_train.config.fields import UserError
from starling_train.models.source import ModelSource

PUBLISHED = "snr_results_{slug}.json"  # as Spectrum and axolotl look for it
DIRECTORIES = (".", "model_snr_results")  # the directory itself; in a copy of Spectrum's repository


def slug_of(source: ModelSource) -> str:
    """Return the model's name for the names of files, which Spectrum writes with `-` for `/` and `_`."""
    return _of_directory(source.directory) if Path(source.path).expanduser().is_dir() else _spelled(source.path)


def slug_of_path(path: str | Path) -> str:
    """Return the name as `slug_of` does, of a directory or a hub id that has not been opened."""
    directory = Path(path).expanduser()
    return _of_directory(directory) if directory.is_dir() else _spelled(str(path))


def _of_directory(directory: Path) -> str:
    directory = directory.resolve()
    if directory.parent.name == "snapshots" and directory.parents[1].name.startswith("models--"):
        return _spelled(directory.parents[1].name.removeprefix("models--").replace("--", "/"))  # in the hub's cache
    return _spelled(directory.name)


def _spelled(name: str) -> str:
    return name.replace("/", "-").replace("_", "-")


def find_scan(path: str | Path, slug: str, key: str = "freeze.scan") -> Path:
    """Find the scan at `path`, a file, or in a directory: ours, or the published one of the model named `slug`.

    A published one may have an organisation before the model's name, and the name spelled with `_` or `-`. Raises
    UserError where a directory has none, or several.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        spelled = path.with_name(f"snr_results_{_spelled(path.name.removeprefix('snr_results_'))}")
        return spelled if not path.exists() and path.name.startswith("snr_results_") and spelled.exists() else path
    if (path / "snr.json").is_file():
        return path / "snr.json"
    held = sorted({file for inside in DIRECTORIES for file in (path / inside).glob("snr_results_*.json")})
    for pattern in (slug, f"{slug}_sorted", f"*-{escape(slug)}"):
        of_model = [file for file in held if _matches(file, pattern)]
        if len(of_model) == 1:
            return of_model[0]
        if of_model:
            names = ", ".join(file.name for file in of_model[:3])
            raise UserError(f"{key}: {path} has several scans of {slug}: {names}; give the file")
    names = f" ({len(held)} others, {held[0].name} first)" if held else ""
    raise UserError(
        f"{key}: {path} has neither snr.json nor {PUBLISHED.format(slug=slug)}{names}; give the file, or make it with "
        "starling_train.snr"
    )


def _matches(file: Path, pattern: str) -> bool:
    """Compare the model's name in the name of a file, however its `_` is spelled and whatever the case."""
    name = _spelled(file.stem.removeprefix("snr_results_")).lower()
    return fnmatchcase(name, _spelled(pattern).lower())
