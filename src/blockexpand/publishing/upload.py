"""A checked shipment to the hub, in one commit, and a look at what is there then.

In: a shipment, where it goes, and the key; perhaps the base of a pack stored as differences. Out: the address of what
is there. Refused, before anything is sent: no network by setting, a repository that holds something else. All files
come with one commit, the card among them, so a repository is never half written; large files are uploaded before it,
and count for nothing until then. Weights of an earlier push that this one does not have go with the same commit, since
a folder with both would be two models.
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import PublishError
from blockexpand.progress import progress_mode, say
from blockexpand.publishing.shipment import Shipment, Shipped, check_shipment
from blockexpand.publishing.statements import HUB_ID
from blockexpand.publishing.subject import read_published
from blockexpand.staging import PACK_NAME, RECORD_NAME

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

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


def push(
    folder: str | Path,
    destination: Destination,
    key: Callable[[], str] | None,
    base: str | Path | None = None,
) -> Pushed:
    """Check a pack or checkpoint and send it; without `key`, which gives the hub's token, only check.

    `base`: the folder of the base of a pack stored as delta, which cannot be checked whole without it.

    Raises:
        PublishError: it is not fit to be given to others, or the hub does not take it.
    """
    shipment = check_shipment(read_published(folder), open_checkpoint(base) if base is not None else None)
    if key is None:
        return _told(shipment, destination, None, ())
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise PublishError(
            f"HF_HUB_OFFLINE is set, so nothing is sent to {destination.repo}; expected it unset; unset it, or look "
            "with --dry-run at what would be sent"
        )
    api, at = HfApi(token=key()), _Stage()
    with _errors_in_words(destination, at):
        at.made = _open_repository(api, destination)
        old = _stale(api, shipment, destination, at.made)
        say(f"sending {shipment.num_bytes:,} bytes in {len(shipment.files)} files to {destination.repo}")
        at.sending, start = True, time.monotonic()
        with _bars():
            info = _commit(api, shipment, destination, old)
        at.commit = info.oid
        say(f"committed as {info.oid} after {time.monotonic() - start:,.1f} s")
        _check_there(api, shipment, destination, info)
    return _told(shipment, destination, info, old)


@contextmanager
def _bars() -> Generator[None]:
    """huggingface_hub's own bars (a file each, with rate and time left) on a terminal, and nowhere else: in a log each
    of their steps would be a line."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    if progress_mode() == "terminal" or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield  # what the environment says holds
        return
    with disable_progress_bars():
        yield


@dataclass(kw_only=True)
class _Stage:
    """How far a push has come; what an error says is left follows from it."""

    made: bool = False
    """The repository was made by it."""
    sending: bool = False
    commit: str | None = None
    """What was committed."""

    def left(self, repo: str, answered: bool) -> str:
        """What is there now, in words."""
        before = f"{repo} was made and is empty" if self.made else f"{repo} is as it was"
        if self.commit is not None:
            return f"The commit {self.commit} was made, and could not be looked at"
        return (
            f"Nothing was committed: {before}" if answered or not self.sending else f"No commit is known of: {before}"
        )


def _told(shipment: Shipment, destination: Destination, info: CommitInfo | None, removed: tuple[str, ...]) -> Pushed:
    return Pushed(
        repo=destination.repo,
        url=(info.pr_url or info.commit_url) if info else None,
        commit=info.oid if info else None,
        files={file.name: file.num_bytes for file in shipment.files},
        removed=removed,
        stays=shipment.stays,
        checked=shipment.checked,
        notes=shipment.notes,
    )


def _open_repository(api: HfApi, destination: Destination) -> bool:
    """See that the repository and the branch are there; whether the repository was made."""
    made = False
    if not destination.create_pr and not api.repo_exists(destination.repo):
        api.create_repo(destination.repo, private=destination.private or None)
        made = True
    if destination.revision is not None and destination.revision != "main":
        api.create_branch(destination.repo, branch=destination.revision, exist_ok=True)
    return made


def _stale(api: HfApi, shipment: Shipment, destination: Destination, made: bool) -> tuple[str, ...]:
    """Weights that are there and would be a second model beside ours.

    Raises:
        PublishError: the repository holds something that we did not push.
    """
    if made:
        return ()
    there = set(api.list_repo_files(destination.repo, revision=destination.revision)) - {".gitattributes"}
    if there and not destination.create_pr and not there & set(_OURS):
        raise PublishError(
            f"{destination.repo} holds {len(there)} files ({', '.join(sorted(there)[:3])}...) and was not pushed by "
            "blockexpand; expected an empty repository, a new one, or one of ours; choose another name, or propose it "
            "with --create-pr"
        )
    ours = {file.name for file in shipment.files}
    others = {PACK_NAME, RECORD_NAME}
    return tuple(
        sorted(
            name
            for name in there - ours
            if name in others or ("/" not in name and any(fnmatch.fnmatch(name, pattern) for pattern in _WEIGHTS))
        )
    )


def _commit(api: HfApi, shipment: Shipment, destination: Destination, old: tuple[str, ...]) -> CommitInfo:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    def source(file: Shipped) -> bytes | Path:
        return file.content if file.content is not None else shipment.folder / file.name

    adding = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=source(file)) for file in shipment.files]
    removing = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in old]
    return api.create_commit(
        destination.repo,
        operations=[*adding, *removing],
        commit_message=destination.message or f"Push the {shipment.kind} {shipment.name} with blockexpand",
        revision=destination.revision,
        create_pr=destination.create_pr,
    )


def _check_there(api: HfApi, shipment: Shipment, destination: Destination, info: CommitInfo) -> None:
    """Every file is there in its length: a .gitignore in the repository, for one, leaves files out in silence."""
    from huggingface_hub.hf_api import RepoFile

    there = {
        entry.path: entry.size
        for entry in api.list_repo_tree(destination.repo, revision=info.oid, recursive=True)
        if isinstance(entry, RepoFile)
    }
    for file in shipment.files:
        if there.get(file.name) != file.num_bytes:
            raise PublishError(
                f"{destination.repo} has {file.name} with {there.get(file.name)} bytes after the push; expected "
                f"{file.num_bytes:,}; look at its .gitignore, and push again"
            )


@contextmanager
def _errors_in_words(destination: Destination, at: _Stage) -> Generator[None]:
    """The hub's and the network's errors in one line that says what is there now."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HfHubHTTPError, httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        if (interrupt := _interrupt_behind(error)) is not None:
            raise interrupt from None
        # huggingface_hub wraps what went wrong with one file.
        inner = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        response: Any = vars(inner).get("response")
        status = None if response is None else response.status_code
        told = " ".join(str(vars(inner).get("server_message") or inner).split())[:300]
        reason = _refused(destination.repo, status, told) if status else _failed(destination.repo, inner, told)
        left = at.left(destination.repo, answered=status is not None)
        raise PublishError(f"{reason}. {left}") from error


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The Ctrl-C that an error came of: what a connection fails at while it is being torn down is no answer."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    return found


def _refused(repo: str, status: int, told: str) -> str:
    words = {
        401: "the hub does not know the key; expected one that is valid; make one at its settings page, and export it",
        403: f"the key may not write to {repo}; expected one with write access to it; make such a key",
        404: f"the hub has no {repo}, or the key may not see it; expected it to be there; check the name",
        409: f"{repo} was changed by somebody else meanwhile; expected to be the only one; push again",
        413: "the hub takes no commit that large; expected fewer bytes in small files; look with --dry-run",
        429: "the hub asks to wait; expected fewer requests at a time; push again later",
    }
    reason = words.get(status, "the hub could not do it; expected it to take the files; push again later")
    return f"{reason} (HTTP {status}: {told})"


def _failed(repo: str, error: BaseException, told: str) -> str:
    if isinstance(error, ValueError):
        return (
            f"the hub does not take what was to be sent to {repo} ({told}); expected a card it can read; mend the card"
        )
    return f"the hub did not answer about {repo} ({told}); expected an answer; check the network, and push again"
