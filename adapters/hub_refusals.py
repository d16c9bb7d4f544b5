"""What the Hugging Face hub refuses, and what somebody with a network does about it."""

from __future__ import annotations


def remedy(error: BaseException, revision: str | None = None) -> str:
    """What to do on a machine with a network about an error of the hub's client, or of a library that called it.

    Args:
        error: as it was caught; what it was raised from counts too.
        revision: branch, tag or commit that was asked for.
    """
    from huggingface_hub import errors

    wanted = repr(revision or "main")
    refusals = (
        (errors.GatedRepoError, "accept the repository's terms on the hub and log in by `hf auth login`"),
        (
            errors.RepositoryNotFoundError,
            "see that the hub has the repository; log in by `hf auth login` if it is private",
        ),
        (errors.RevisionNotFoundError, f"name a revision that the repository has, got {wanted}"),
        (errors.HFValidationError, "name a repository as OWNER/NAME, or a folder that is there"),
        (errors.RemoteEntryNotFoundError, f"name a revision that has the file, got {wanted}"),
    )
    cause: BaseException | None = error
    while cause is not None:
        for kind, what in refusals:
            if isinstance(cause, kind):
                return f"with a network, {what}"
        cause = cause.__cause__ or cause.__context__
    return "with a network, unset HF_HUB_OFFLINE and run again"
