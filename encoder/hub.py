"""Locations on the Hugging Face Hub, pinned to one commit. No torch."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from encoder.safetensors_file import CheckpointError, open_location, read_location

_LOCATION = re.compile(
    r"(?P<root>hf://(?:(?P<kind>models|datasets|spaces)/)?(?P<repo>[^/@]+/[^/@]+))"
    r"(?:@(?P<revision>refs/pr/\d+|refs/convert/\w+|[^/]+))?(?P<rest>/.*)?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?")


def pin_location(location: str | os.PathLike[str]) -> str:
    """Resolves what a location on the Hub names now, so that all is read of one commit.

    Args:
        location: `hf://org/name[@revision]`, where the revision is a branch, a tag or a hash
            (the default branch where there is none), with a path behind it or none; or any other
            location, a local one as text or a path.

    Returns:
        `hf://org/name@<40 hexadecimal digits>`, with the same path; what is pinned already, and
        what is no repository on the Hub, as it is and without a request. Always text.

    Raises:
        CheckpointError: No such repository or revision, or huggingface_hub is not installed.
        ValueError: It is neither text nor a path.
        Exception: The Hub's own, where it does not answer.
    """
    location = read_location(location)
    if not location.startswith("hf://") or location.startswith("hf://buckets/"):
        return location
    place = _LOCATION.fullmatch(location.rstrip("/"))
    if place is None:
        raise CheckpointError(f"{location}: not of the form hf://org/name[@revision]")
    revision = unquote(place["revision"] or "main")
    if _COMMIT.fullmatch(revision):
        return location
    fs, _ = open_location(location)
    # An extra, and slow to import.
    from huggingface_hub import HfApi  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    kind = (place["kind"] or "models").removesuffix("s")
    api = HfApi(endpoint=fs.endpoint, token=fs.token)
    try:
        commit = api.repo_info(place["repo"], repo_type=kind, revision=revision, timeout=10).sha
    except RepositoryNotFoundError as error:
        reason = "the Hub has no such repository, or shows it only to those with a token (HF_TOKEN)"
        raise CheckpointError(f"{location}: {reason}") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{location}: the repository has no revision {revision}") from error
    except HFValidationError as error:
        raise CheckpointError(f"{location}: {' '.join(str(error).split())}") from error
    return f"{place['root']}@{commit}{place['rest'] or ''}"


def hub_hint(location: str) -> str:
    """What to add to an error about a location: where `org/name` is, if it is nowhere here."""
    if _NAME.fullmatch(location) is None or Path(location).exists():
        return ""
    return f"; for the repository on the Hub, write hf://{location}"
