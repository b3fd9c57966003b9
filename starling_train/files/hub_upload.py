"""Uploads of a directory to a model's repository on the hub; what is wrong is a line, before anything is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starling_train.config.fields import UserError, without_secrets
from starling_train.files.hub_files import OFFLINE, status_of


def check_push(name: str, key: str) -> None:
    """Raise UserError for a repository's name that the hub would not take, without a token, or offline; asks nobody.

    name: OWNER/NAME, or a name of one's own.
    key: the configuration key, for messages.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{key}: '{name}' is not a name on the hub; give OWNER/NAME") from error
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{key}: {' or '.join(OFFLINE)} keeps everything off the hub; unset it, or leave {key} out")
    if not get_token():
        raise UserError(f"{key}: no token of the hub; set HF_TOKEN to one that may write, or run `hf auth login`")


def create(name: str, key: str, private: bool) -> str:
    """Make a repository unless it exists, and return its OWNER/NAME. Raises UserError if the hub refuses.

    name, key: as in `check_push`.
    private: of a new one; one that exists stays as it is.
    """
    from huggingface_hub import HfApi

    with _told(name, key, "nothing was written"):
        return HfApi().create_repo(name, private=private, exist_ok=True).repo_id


def upload(directory: Path, name: str, key: str, message: str) -> str:
    """Upload a directory in one commit, and return the repository's address; what the hub has already is not sent.

    directory: stays as it is, also after an error.
    name: OWNER/NAME of a repository that exists.
    key: as in `check_push`.
    message: of the commit.

    Raises UserError.
    """
    from huggingface_hub import HfApi, constants

    with _told(name, key, f"{directory} is whole: the same command uploads it"):
        HfApi().upload_folder(repo_id=name, folder_path=directory, commit_message=message)
    return f"{constants.ENDPOINT}/{name}"


@contextmanager
def _told(name: str, key: str, state: str) -> Iterator[None]:
    """Turn what the hub or the network refuses into a UserError. state: what there is now, for the message."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: of Xet, its transport
        status = status_of(error)
        reason = without_secrets(next((line.strip() for line in str(error).splitlines() if line.strip()), ""))[:200]
        if status == 401:
            said = "the hub does not know the token (401); set HF_TOKEN to one that may write, or run `hf auth login`"
        elif status == 403:
            said = f"the token may not write to '{name}' (403); give a name of your own, or a token with that right"
        elif isinstance(error, HfHubHTTPError) and status:
            said = f"the hub refuses '{name}' ({reason}); see what it says, and try again"
        elif isinstance(error, HTTPError):
            said = f"the hub does not answer ({type(error).__name__}: {reason}); check the network, and try again"
        else:
            said = f"'{name}' cannot be uploaded ({type(error).__name__}: {reason}); repair that, and try again"
        raise UserError(f"{key}: {said}; {state}") from error
