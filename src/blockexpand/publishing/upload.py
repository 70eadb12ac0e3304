"""A checked shipment to the hub, in one commit, by huggingface_hub.

In: a folder, where it goes, what is stated for its card, and the key. Out: the address of what is there. Refused,
before anything is sent: what is not fit, no network by setting, a repository that holds something else. All files come
with one commit, the card among them, so a repository is never half written; large files are uploaded before it, and
count for nothing until then. Weights of an earlier push that this one does not have go with the same commit, since a
folder with both would be two models.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blockexpand.errors import PublishError
from blockexpand.packs import Card
from blockexpand.packs.card import HUB_ID
from blockexpand.progress import say
from blockexpand.publishing.figures import Records
from blockexpand.publishing.shipment import Shipment, prepare_shipment
from blockexpand.staging import PACK_NAME, RECORD_NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_OURS = (PACK_NAME, RECORD_NAME)
_REVISION = re.compile(r"[\w][\w./-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where it goes, and how."""

    repo: str
    """`org/name`."""
    private: bool = False
    """Make a new repository private; one that is there stays as it is."""
    revision: str | None = None
    """The branch, made if it is not there; the main one if not given."""
    message: str | None = None
    """Of the commit."""
    create_pr: bool = False
    """Open a pull request in place of writing to the branch; the repository has to be there."""

    def __post_init__(self) -> None:
        if not HUB_ID.fullmatch(self.repo):
            raise PublishError(
                f"{self.repo!r} is no repository of the hub; expected org/name or user/name; give both parts"
            )
        if self.revision is not None and not _REVISION.fullmatch(self.revision):
            raise PublishError(f"{self.revision!r} is no branch; expected letters, digits, '-', '_', '.' and '/'")
        if self.revision is not None and self.create_pr:
            raise PublishError(
                f"a pull request goes to the main branch, and --revision is {self.revision!r}; expected one of the "
                "two; leave --create-pr or --revision out"
            )


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What was, or would be, sent."""

    repo: str
    url: str | None
    """Of the commit or the pull request; None when nothing was sent."""
    commit: str | None
    files: dict[str, int]
    """Bytes of each file."""
    removed: tuple[str, ...]
    """Weights of an earlier push that are not there any more."""
    stays: tuple[str, ...]
    """Files of the folder that did not go."""
    checked: str
    notes: tuple[str, ...]
    card: str
    """The model card's text."""


def push(
    folder: str | Path,
    destination: Destination,
    key: Callable[[], str] | None,
    card: Card | None = None,
    records: Records | None = None,
) -> Pushed:
    """Check a pack or checkpoint, make its card, and send both; without `key`, which gives the hub's token, only check.

    Raises:
        PublishError: it is not fit to be given to others, or the hub does not take it.
    """
    shipment = prepare_shipment(folder, card, records, destination.repo)
    if key is None:
        return _told(shipment, destination)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise PublishError(
            f"HF_HUB_OFFLINE is set, so nothing is sent to {destination.repo}; expected it unset; unset it, or look "
            "with --dry-run at what would be sent"
        )
    api = HfApi(token=key())
    with _errors_in_words(destination.repo):
        old = _open_repository(api, shipment, destination)
        say(f"sending {shipment.num_bytes:,} bytes in {len(shipment.files)} files to {destination.repo}")
        info = api.create_commit(
            destination.repo,
            operations=[
                *(CommitOperationAdd(path_in_repo=one.name, path_or_fileobj=one.source) for one in shipment.files),
                *(CommitOperationDelete(path_in_repo=name, is_folder=False) for name in old),
            ],
            commit_message=destination.message or f"Push the {shipment.kind} {shipment.name} with blockexpand",
            revision=destination.revision,
            create_pr=destination.create_pr,
        )
    return _told(shipment, destination, info.pr_url or info.commit_url, info.oid, old)


def _told(
    shipment: Shipment,
    destination: Destination,
    url: str | None = None,
    commit: str | None = None,
    removed: tuple[str, ...] = (),
) -> Pushed:
    source = next(file.source for file in shipment.files if file.name == "README.md")
    return Pushed(
        repo=destination.repo,
        url=url,
        commit=commit,
        files={file.name: file.num_bytes for file in shipment.files},
        removed=removed,
        stays=shipment.stays,
        checked=shipment.checked,
        notes=shipment.notes,
        card=(source if isinstance(source, bytes) else source.read_bytes()).decode("utf-8", "replace"),
    )


def _open_repository(api: HfApi, shipment: Shipment, destination: Destination) -> tuple[str, ...]:
    """See that repository and branch are there; the weights there that would be a second model beside ours.

    Raises:
        PublishError: the repository holds something that we did not push.
    """
    repo, made = destination.repo, False
    if not destination.create_pr and not api.repo_exists(repo):
        api.create_repo(repo, private=destination.private or None)
        made = True
    if destination.revision is not None and destination.revision != "main":
        api.create_branch(repo, branch=destination.revision, exist_ok=True)
    if made:
        return ()
    there = set(api.list_repo_files(repo, revision=destination.revision)) - {".gitattributes"}
    if there and not destination.create_pr and not there & set(_OURS):
        raise PublishError(
            f"{repo} holds {len(there)} files ({', '.join(sorted(there)[:3])}...) and was not pushed by blockexpand; "
            "expected an empty repository, a new one, or one of ours; choose another name, or propose it with "
            "--create-pr"
        )
    stale = there - {file.name for file in shipment.files}
    weights = {name for name in stale if "/" not in name and any(fnmatch.fnmatch(name, p) for p in _WEIGHTS)}
    return tuple(sorted(weights | (stale & set(_OURS))))


@contextmanager
def _errors_in_words(repo: str) -> Generator[None]:
    """The hub's and the network's errors in one line; nothing is committed where one comes."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except PublishError:
        raise
    except (HfHubHTTPError, HTTPError, OSError, ValueError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HfHubHTTPError | KeyboardInterrupt):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, KeyboardInterrupt):  # what a connection fails at while it is torn down is no answer
            raise cause from None
        response = cause.response if isinstance(cause, HfHubHTTPError) else None
        status = None if response is None else response.status_code
        told = " ".join(str((cause.server_message if isinstance(cause, HfHubHTTPError) else None) or error).split())
        expected = {401: "a valid key", 403: "a key that may write there", 404: "a repository that the key may see"}
        answer = f"HTTP {status}" if status else "no answer" if isinstance(error, HTTPError | OSError) else "refused"
        raise PublishError(
            f"nothing was committed to {repo} ({answer}: {told[:300]}); expected "
            f"{expected.get(status or 0, 'the hub to take the files')}; mend that, or push again later"
        ) from error
