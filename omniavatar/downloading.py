"""The published files of a configuration, from Hugging Face's hub into its cache, where a run finds them.

    wishes = wishes_of(config, "fp8")              # what is published for each entry
    hub = Hub()
    todo = [remote for wish in wishes for remote in hub.files(wish) if hub.cached(remote) is None]
    for remote in todo:
        hub.fetch(remote, show)

The hub's library finds servers, names and places (HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE are
heeded). A file counts as there when its size and its hash are those that the hub states; what was interrupted goes on
where it stopped, also in another process.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlparse

from omniavatar.config import ModelEntry, Published, RunConfig
from omniavatar.errors import CheckpointError, InputError, OutputError, in_one_line

Show = Callable[[int], None]
"""Takes the number of bytes that there are of a file, and of a file that is checked, that have been read."""
BRANCH = "main"
PUBLISHED = "published"
"""What the files are called that a configuration names without another precision."""
SPARE = 2**28
"""Bytes that are left free on the disk."""


@dataclass(frozen=True)
class Wish:
    """Files that are published for an entry. quant: their precision, as the user calls it, or `PUBLISHED`."""

    entry: ModelEntry
    published: Published
    quant: str


@dataclass(frozen=True)
class Remote:
    """A file on the hub. sha256: of its content, if it is a large one; else `blob`, git's hash, tells."""

    repo: str
    name: str
    size: int
    commit: str
    sha256: str | None
    blob: str | None

    def __str__(self) -> str:
        return f"{self.repo}/{self.name}"


def quants_of(config: RunConfig) -> list[str]:
    """The precisions in which some of a configuration's files are published, beside those that it names."""
    return sorted({quant for entry in config.models for quant in entry.quants})


def wishes_of(config: RunConfig, quant: str | None = None) -> list[Wish]:
    """What to download for each entry, the files of a precision where there are some. Raises InputError."""
    if quant is not None and quant not in quants_of(config):
        known = ", ".join(quants_of(config))
        raise InputError(
            f"--quant {quant}: no such files are known for this configuration; "
            + (f"choices: {known}; or leave --quant out" if known else "leave --quant out")
        )
    wishes: list[Wish] = []
    for entry in config.models:
        if quant in entry.quants:
            wishes += [Wish(entry, published, str(quant)) for published in entry.quants[str(quant)]]
        elif entry.repo is not None:
            wishes.append(Wish(entry, Published(repo=entry.repo, files=entry.files or ("*",)), PUBLISHED))
    if not wishes:
        raise InputError("the configuration does not say where its models are published; add repo: to their entries")
    return wishes


class Hub:
    """A hub and the cache that its files go to; by default those of Hugging Face's own settings."""

    def __init__(self, endpoint: str | None = None, cache: Path | None = None) -> None:
        from huggingface_hub import constants

        self.endpoint = endpoint or str(constants.ENDPOINT)
        self.cache = cache or Path(constants.HF_HUB_CACHE)
        self._listed: dict[str, list[Remote]] = {}

    def files(self, published: Published) -> list[Remote]:
        """The files that some names and patterns mean. Raises CheckpointError for a name that is not there."""
        listed = self._list(published.repo)
        found: dict[str, Remote] = {}
        for pattern in published.files:
            fitting = [remote for remote in listed if fnmatch.fnmatchcase(remote.name, pattern)]
            if not fitting:
                raise CheckpointError(
                    f"{published.repo} has no file {pattern} any more; "
                    f"see {self.endpoint}/{published.repo} for what there is"
                )
            found |= {remote.name: remote for remote in fitting}
        return list(found.values())

    def cached(self, remote: Remote) -> Path | None:
        """The file in the cache, if it is there as the hub has it now."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(remote.repo, remote.name, cache_dir=self.cache, revision=remote.commit)
        return Path(found) if isinstance(found, str) and os.path.getsize(found) == remote.size else None

    def check_room(self, nbytes: int) -> None:
        """Raise OutputError if the disk has no room for so many further bytes."""
        folder = next(path for path in (self.cache, *self.cache.absolute().parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if free < nbytes + SPARE:
            raise OutputError(
                f"{nbytes / 1e9:.1f} GB do not fit: {folder} has {free / 1e9:.1f} GB free; "
                "make room, or name another disk with HF_HOME=FOLDER"
            )

    def partial(self, remote: Remote) -> int:
        """Bytes of a file that an interrupted download has left."""
        try:
            return self._incomplete(remote).stat().st_size
        except OSError:
            return 0

    def fetch(self, remote: Remote, show: Show = lambda _: None) -> Path:
        """Download a file, or the rest of it, and check it. Returns where it is in the cache.

        Raises CheckpointError if it cannot be had or is not what the hub says, OutputError if it cannot be written.
        """
        from huggingface_hub import hf_hub_download

        with self._explained(remote.repo, remote.name):
            self._fetch_blob(remote, show)
            path = hf_hub_download(  # finds the blob, and makes the snapshot's link to it
                remote.repo, remote.name, cache_dir=self.cache, endpoint=self.endpoint, revision=BRANCH
            )
        return Path(path)

    def _list(self, repo: str) -> list[Remote]:
        """All files of a repository."""
        if repo not in self._listed:
            from huggingface_hub import HfApi

            with self._explained(repo):
                info = HfApi(endpoint=self.endpoint).model_info(repo, revision=BRANCH, files_metadata=True)
            commit = str(info.sha)
            self._listed[repo] = [remote_of(repo, commit, sibling) for sibling in info.siblings or ()]
        return self._listed[repo]

    def _blobs(self, repo: str) -> Path:
        from huggingface_hub.file_download import repo_folder_name

        return self.cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"

    def _incomplete(self, remote: Remote) -> Path:
        return self._blobs(remote.repo) / f"{remote.sha256 or remote.blob}.incomplete"

    def _fetch_blob(self, remote: Remote, show: Show) -> None:
        """Bring the content of a file into the cache."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock, build_hf_headers

        url = hf_hub_url(remote.repo, remote.name, endpoint=self.endpoint, revision=BRANCH)
        stated = get_hf_file_metadata(url)
        blob = self._blobs(remote.repo) / plain_name(stated.etag, remote)
        if stated.etag not in (remote.sha256, remote.blob) or (stated.size or remote.size) != remote.size:
            raise CheckpointError(f"{remote} has changed on the hub since it was listed; give the command again")
        if blob.exists():
            return
        headers = build_hf_headers()
        if urlparse(stated.location).netloc != urlparse(url).netloc:
            headers.pop("authorization", None)  # it is for the hub, not for whoever stores its files
        blob.parent.mkdir(parents=True, exist_ok=True)
        incomplete = blob.with_name(f"{blob.name}.incomplete")
        lock = self.cache / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock), silent(), Counted(incomplete, show) as file:
            had = file.seek(0, os.SEEK_END)
            if had > remote.size:
                had = file.truncate(file.seek(0))
            show(had)
            if had < remote.size:
                http_get(stated.location, file, resume_size=had, headers=headers, expected_size=remote.size)
            file.flush()
            if not is_intact(incomplete, remote, show):
                incomplete.unlink()
                raise CheckpointError(
                    f"{remote} came with another hash than the hub states, so it is damaged, and was removed; "
                    "give the command again"
                )
            os.replace(incomplete, blob)

    @contextmanager
    def _explained(self, repo: str, name: str = "") -> Iterator[None]:
        """Make one line of whatever a download raises."""
        try:
            yield
        except (CheckpointError, OutputError):
            raise
        except Exception as error:
            raise explained(error, self.endpoint, repo, name) from error


class Counted(io.FileIO):
    """A file that a download is appended to, and that tells how long it is."""

    def __init__(self, path: Path, show: Show) -> None:
        super().__init__(path, "ab+")
        self.show = show

    def write(self, data: Any) -> int:
        count = super().write(data)
        self.show(self.tell())
        return count


def remote_of(repo: str, commit: str, sibling: Any) -> Remote:
    """A file of a listing. Raises CheckpointError for a name that leads out of its folder."""
    name = str(sibling.rfilename)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise CheckpointError(f"{repo} lists the file {name!r}, which leads out of its folder")
    large = sibling.lfs
    return Remote(
        repo=repo,
        name=name,
        size=int(sibling.size or 0),
        commit=commit,
        sha256=None if large is None else str(large["sha256"] if isinstance(large, dict) else large.sha256),
        blob=sibling.blob_id,
    )


def plain_name(etag: str | None, remote: Remote) -> str:
    """A hash as the name of a blob. Raises CheckpointError if it is none."""
    if not etag or not etag.isalnum():
        raise CheckpointError(f"the hub states no hash for {remote}; give the command again later")
    return etag


def is_intact(file: Path, remote: Remote, show: Show) -> bool:
    """Whether a file has the size and the hash that the hub states."""
    size = file.stat().st_size
    content = hashlib.sha256() if remote.sha256 else hashlib.sha1(usedforsecurity=False)
    if not remote.sha256:
        content.update(f"blob {size}\0".encode())  # as git does
    with file.open("rb") as stream:
        while piece := stream.read(2**24):
            content.update(piece)
            show(size)
    return size == remote.size and content.hexdigest() == (remote.sha256 or remote.blob)


@contextmanager
def silent() -> Iterator[None]:
    """Without the bars and the warnings of the hub's library, which come between our own lines."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    was_silent, verbosity = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not was_silent:
            enable_progress_bars()


def explained(error: Exception, endpoint: str, repo: str, name: str = "") -> CheckpointError | OutputError:
    """One line about why a file, or the list of a repository's files, cannot be had."""
    from huggingface_hub import errors

    what = f"{repo}/{name}" if name else repo
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return CheckpointError(f"{what} is not here, and HF_HUB_OFFLINE is set; unset it, or copy the files here")
    if status is not None:
        is_gated, is_hidden = (
            isinstance(error, kind) for kind in (errors.GatedRepoError, errors.RepositoryNotFoundError)
        )
        return refused(what, f"{endpoint}/{repo}", status, is_gated=is_gated, is_hidden=is_hidden)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return OutputError(f"the disk is full, so {what} is not complete; make room and give the command again")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return OutputError(f"cannot write {error.filename}: {error.strerror}; name another folder with HF_HOME=FOLDER")
    return CheckpointError(
        f"{what} cannot be downloaded from {endpoint} ({in_one_line(error)}); "
        "what has come is kept: give the command again, or name a mirror with HF_ENDPOINT=URL"
    )


def refused(what: str, page: str, status: int, *, is_gated: bool, is_hidden: bool) -> CheckpointError:
    """One line about what the hub has answered. is_hidden: it says that there is no such repository."""
    if is_gated:
        return CheckpointError(
            f"{what} is for people whom its authors let in ({status}); ask at {page}, then log in with 'hf auth login'"
        )
    if is_hidden or status in (401, 403):
        return CheckpointError(
            f"{what} is not there, or not for you ({status}); see {page}; for a private one log in with 'hf auth login'"
        )
    hint = "see what there is" if status == 404 else "give the command again later"
    return CheckpointError(f"{what} cannot be had: {page} answered {status}; {hint}")


def total(remotes: Sequence[Remote]) -> int:
    """Bytes of some files."""
    return sum(remote.size for remote in remotes)
