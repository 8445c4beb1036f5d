"""Names of everything this service keeps in Redis beside RQ's own keys, and in storage.

Also loads the Lua scripts of `lua/`. Each file documents its KEYS, its ARGV and its answer; KEYS
holds every key that a script touches. A line `-- include NAME` puts the text of another file before
it.
"""

import re
from functools import cache
from pathlib import Path
from typing import Final

PREFIX = "imageprompt:"


def job(job_id: str) -> str:
    """Hash: the record of one job (`service.core.job.Job`)."""
    return f"{PREFIX}job:{job_id}"


def tombstone(job_id: str) -> str:
    """String: the owner of an ended job, kept after its record so that it answers 410."""
    return f"{PREFIX}tombstone:{job_id}"


def events(job_id: str) -> str:
    """Stream: the events of one job, oldest first."""
    return f"{PREFIX}events:{job_id}"


def owner_jobs(owner: str) -> str:
    """Sorted set: ids of one owner's jobs by creation time."""
    return f"{PREFIX}owner:{owner}"


def active_jobs(owner: str) -> str:
    """Sorted set: ids of one owner's jobs that have not ended, by when they count no more."""
    return f"{PREFIX}active:{owner}"


def rate(owner: str) -> str:
    """String: when one owner's next request would be due at an even pace."""
    return f"{PREFIX}rate:{owner}"


def idempotency(owner: str, digest: str) -> str:
    """Hash: which job an owner's Idempotency-Key (by its SHA-256) stands for."""
    return f"{PREFIX}idempotency:{owner}:{digest}"


def file(file_id: str) -> str:
    """String with a time to live: the record of a file that a later request may use."""
    return f"{PREFIX}file:{file_id}"


def owner_files(share: str) -> str:
    """Sorted set: ids of one caller's files by when they were uploaded."""
    return f"{PREFIX}files:{share}"


def worker(name: str) -> str:
    """String with a time to live: one worker's entry in the registry (`WorkerInfo`)."""
    return f"{PREFIX}worker:{name}"


API_KEYS = f"{PREFIX}apikeys"
"""Hash: the records of all API keys by their ids; the keys themselves as hashes only."""

API_KEYS_REVOKED = f"{API_KEYS}:all-revoked"
"""String: there is no API key, since the last one was revoked."""

EMBEDDINGS = f"{PREFIX}embeddings"
"""Hash: cached embeddings of images and texts by their fingerprints."""

EMBEDDINGS_LAST_USE = f"{EMBEDDINGS}:last-use"
"""Sorted set: their fingerprints by when they were last used."""

EMBEDDINGS_TOTAL_BYTES = f"{EMBEDDINGS}:total-bytes"
"""String: the size of all of them together."""

URL_SECRETS = f"{PREFIX}url_secrets"
"""Hash: the secrets that sign URLs, by their ids."""

OUTBOX = f"{PREFIX}outbox"
"""Sorted set: webhooks that are still to be delivered, by when they are due.

An entry is the job's id for its end, and `ID:start` or `ID:output` for what comes before it.
"""

OUTBOX_ATTEMPTS = f"{OUTBOX}:attempts"
"""Hash: how often each of them was tried, by its entry."""

DEADLINES = f"{PREFIX}deadlines"
"""Sorted set: ids of jobs that wait for their first worker, by when they expire."""

SWEEP = f"{PREFIX}sweep"
"""String with a time to live: somebody has lately swept the storage."""

STORAGE_OWNER = f"{PREFIX}storage-owner"
"""String: the mark (`Storage.owner_mark`) of the storage folder whose jobs this Redis holds."""

WORKERS = f"{PREFIX}workers"
"""Sorted set: names of registered workers by the time of their last heartbeat."""


FILES_FOLDER: Final = "files"
"""Folder in the storage of files that later requests may use."""


def upload(job_id: str, name: str) -> str:
    """Storage key of one upload of a job, `name` without a folder."""
    return f"uploads/{job_id}/{name}"


def stored_file(file_id: str) -> str:
    """Storage key of a file that a later request may use."""
    return f"{FILES_FOLDER}/{file_id}/content"


def result(job_id: str, name: str) -> str:
    """Storage key of one picture of a job."""
    return f"results/{job_id}/{name}"


FOLDER: Final = Path(__file__).parent / "lua"


@cache
def load_script(name: str) -> str:
    """The text of one script, for `redis.register_script`."""
    text = (FOLDER / f"{name}.lua").read_text("utf-8")
    included = re.findall(r"^-- include (\w+)$", text, re.MULTILINE)
    return "\n".join([*map(load_script, included), text])
