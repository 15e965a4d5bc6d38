"""Locations on the Hugging Face Hub, pinned to one commit. No torch."""

import re

from encoder.safetensors_file import CheckpointError, open_location

_PINNED = re.compile(r"hf://[^@]+@[0-9a-f]{40}(/|$)")


def pin_location(location: str) -> str:
    """Resolves what a location on the Hub names now, so that all is read of one commit.

    Args:
        location: `hf://org/name[@revision]`, where the revision is a branch, a tag or a hash
            (the default branch where there is none); or any other location.

    Returns:
        `hf://org/name@<40 hexadecimal digits>`; what is pinned already, and what is not on the
        Hub, as it is and without a request.

    Raises:
        CheckpointError: No such repository or revision, or huggingface_hub is not installed.
        Exception: The Hub's own, where it does not answer.
    """
    if not location.startswith("hf://") or _PINNED.match(location):
        return location
    fs, path = open_location(location)
    from huggingface_hub import HfApi  # noqa: PLC0415 (an extra, and slow to import)

    try:
        place = fs.resolve_path(path)
    except (FileNotFoundError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{location}: {error}") from error
    if not hasattr(place, "revision"):  # A bucket, which has no commits.
        return location
    info = HfApi(endpoint=fs.endpoint, token=fs.token).repo_info(
        place.repo_id, repo_type=place.repo_type, revision=place.revision
    )
    before = location.partition(place.repo_id)[0]
    return f"{before}{place.repo_id}@{info.sha}/{place.path_in_repo}".rstrip("/")
