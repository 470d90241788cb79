"""Any S3 as the platform's store: its buckets made ready, and the calls that it must answer tried on it.

Credentials are those of the AWS variables. `bootstrap` needs an account that may make buckets, `check` one that may
use one; both can be repeated, and `check` leaves nothing behind.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from shopfloor.errors import ServiceError, UsageError, first_line
from shopfloor.records import Record
from shopfloor.settings import Settings
from shopfloor.storage import refusal

if TYPE_CHECKING:
    from minio import Minio
    from minio.lifecycleconfig import LifecycleConfig

ATTEMPT_DAYS = 7
"""Days after which the parts of an upload that nobody finished go."""
OLD_VERSION_DAYS = 30
"""Days in which an object that was replaced or deleted can be brought back."""
PART_BYTES = 5 * 1024**2
"""The smallest part that S3 takes, but for the last."""
WRITERS = 8
MOST_SKEW_S = 300.0
"""A signature from a clock further off than that is refused within minutes (S3 itself takes 15)."""
CLEANS, CLEAN_EVERY_S = 5, 0.2
"""How often `check` looks for what it wrote, to remove it."""
Verdict = Literal["ok", "fail", "unsupported"]

logger = logging.getLogger(__name__)


class Row(Record):
    """One thing that was done or tried."""

    name: str
    verdict: Verdict
    message: str


def buckets(settings: Settings) -> list[str]:
    """Return the buckets that a profile's places are in, each once."""
    places = (settings.artifact_root, settings.data_remote or "", settings.feature_registry)
    return list(dict.fromkeys(urlsplit(place).netloc for place in places if place.startswith("s3://")))


def bootstrap(settings: Settings, more: list[str]) -> list[Row]:
    """Make the buckets with versions and rules for what is old; what is so already stays.

    Args:
        settings: Say where the store is and which buckets they name.
        more: Further buckets.

    Returns:
        A row for each bucket's versions and rules; `unsupported` where the server has no such thing.

    Raises:
        UsageError: The profile names no bucket.
        ServiceError: The store does not answer, or a bucket cannot be made.
    """
    from minio.commonconfig import ENABLED
    from minio.versioningconfig import VersioningConfig

    names = list(dict.fromkeys([*buckets(settings), *more]))
    if not names:
        raise UsageError(
            f"Profile {settings.profile!r} keeps nothing in an object store.", "Name a bucket with --bucket."
        )
    client, rows = _client(settings), []
    for name in names:
        with _answering(settings, name):
            present = client.bucket_exists(name)
            if not present:
                client.make_bucket(name)
            rows.append(Row(name=name, verdict="ok", message="was there" if present else "made"))
            versioned = partial(client.set_bucket_versioning, name, VersioningConfig(ENABLED))
            rows.append(_optional(f"{name} versions", versioned))
            rows.append(_optional(f"{name} rules", partial(client.set_bucket_lifecycle, name, _rules())))
    return rows


def check(settings: Settings, bucket: str, keys: int) -> list[Row]:
    """Try the calls that the platform and its components make, under a prefix that is removed afterwards.

    Args:
        settings: Say where the store is.
        bucket: Exists, and may be written to.
        keys: How many objects a listing must show; more than 1,000 needs a second page.

    Raises:
        ServiceError: The store does not answer at all.
    """
    client = _client(settings)
    with _answering(settings, bucket):
        there = client.bucket_exists(bucket)
    if not there:
        raise ServiceError(f"There is no bucket {bucket!r}.", "Make it: shopfloor storage bootstrap")
    trial = _Trial(settings, client, bucket, f".shopfloor-check/{secrets.token_hex(6)}", keys)
    tries: dict[str, Callable[[], str]] = {
        "clock": trial.clock,
        "metadata": trial.metadata,
        "range": trial.ranges,
        "multipart": trial.multipart,
        "conditional put": trial.conditional_put,
        "concurrent writers": trial.concurrent_writers,
        "presigned": trial.presigned,
        "wrong key refused": trial.wrong_key,
        "listing": trial.listing,
    }
    try:
        return [_tried(name, attempt) for name, attempt in tries.items()]
    finally:
        trial.clean()


class _Trial:
    """The calls, each a method that returns what it saw and raises where that is wrong."""

    def __init__(self, settings: Settings, client: Minio, bucket: str, prefix: str, keys: int) -> None:
        self._settings, self._client, self._bucket, self._prefix, self._keys = settings, client, bucket, prefix, keys

    def clock(self) -> str:
        import urllib3

        sent = dt.datetime.now(dt.UTC)
        answer = urllib3.PoolManager().request("GET", _endpoint(self._settings), timeout=10, retries=False)
        date = answer.headers.get("Date")
        if not date:
            return "the server names no time"
        skew = abs((parsedate_to_datetime(date) - sent).total_seconds())
        _require(skew < MOST_SKEW_S, f"{skew:.0f} s from this machine's: mend one of the clocks")
        return f"{skew:.0f} s from this machine's"

    def metadata(self) -> str:
        self._put("metadata", b"x", {"note": "kept"})
        stat = self._client.stat_object(self._bucket, self._key("metadata"))
        values = {name.lower(): value for name, value in (stat.metadata or {}).items()}
        _require(values.get("x-amz-meta-note") == "kept", "an object lost what was said of it")
        return "kept with the object"

    def ranges(self) -> str:
        self._put("range", bytes(range(256)))
        part = self._get("range", offset=100, length=16)
        _require(part == bytes(range(100, 116)), "a part of an object came with other bytes")
        return "16 of 256 bytes"

    def multipart(self) -> str:
        content = os.urandom(PART_BYTES) * 2 + b"end"
        size = len(content)
        self._client.put_object(self._bucket, self._key("parts"), io.BytesIO(content), size, part_size=PART_BYTES)
        digests = [hashlib.sha256(data).hexdigest() for data in (content, self._get("parts"))]
        _require(digests[0] == digests[1], "an object in three parts came back with other bytes")
        return f"{size:,} bytes in three parts"

    def conditional_put(self) -> str:
        url = self._client.presigned_put_object(self._bucket, self._key("once"))
        answers = [self._request("PUT", url, b"1", {"If-None-Match": "*"}) for _ in range(2)]
        _require(answers[0] == 200, f"the first write got {answers[0]}")
        _require(answers[1] == 412, f"a second write of `If-None-Match: *` got {answers[1]}, not 412")
        return "a second write is refused"

    def concurrent_writers(self) -> str:
        contents = [bytes([number]) * 100_000 for number in range(WRITERS)]
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda content: self._put("contended", content), contents))
        _require(self._get("contended") in contents, "an object is a mixture of what several wrote")
        return f"{WRITERS} at a time, one of them whole"

    def presigned(self) -> str:
        self._put("signed", b"signed")
        url = self._client.presigned_get_object(self._bucket, self._key("signed"))
        _require(self._request("GET", url) == 200, "a signed address was refused")
        changed = url[:-1] + ("0" if url[-1] != "0" else "1")
        _require(self._request("GET", changed) == 403, "an address with another signature was not refused")
        return "a signed address answers, a changed one does not"

    def wrong_key(self) -> str:
        from minio.error import S3Error

        stranger = _client(self._settings, secret_key=secrets.token_hex(20))
        try:
            stranger.stat_object(self._bucket, self._key("signed"))
        except S3Error as error:
            _require(error.response.status == 403, f"it got {error.response.status}, not 403")
            return "403"
        raise ValueError("somebody with a wrong secret key was let in")

    def listing(self) -> str:
        names = [f"listing/{number:06}" for number in range(self._keys)]
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda name: self._put(name, b""), names))
        keys = self._list("listing/")
        _require(keys == [self._key(name) for name in names], f"{len(keys)} of {len(names)} keys, or in another order")
        return f"{len(names):,} keys in order"

    def clean(self) -> None:
        """Remove what the trial wrote, where the store lets us.

        More than once: a store that still wrote an object when it was removed may show it again.
        """
        from minio.deleteobjects import DeleteObject

        for number in range(CLEANS):
            if number:
                time.sleep(CLEAN_EVERY_S)
            names = self._list("")
            if not names:
                return
            for error in self._client.remove_objects(self._bucket, map(DeleteObject, names)):
                logger.debug("%s stays: %s", error.name, error.message)
        logger.warning("What the check wrote stays in bucket %s: %s/", self._bucket, self._prefix)

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def _list(self, below: str) -> list[str]:
        items = self._client.list_objects(self._bucket, self._key(below), recursive=True)
        return [str(item.object_name) for item in items]

    def _put(self, name: str, content: bytes, metadata: dict[str, str] | None = None) -> None:
        stream = io.BytesIO(content)
        self._client.put_object(self._bucket, self._key(name), stream, len(content), metadata=dict(metadata or {}))

    def _get(self, name: str, offset: int = 0, length: int = 0) -> bytes:
        answer = self._client.get_object(self._bucket, self._key(name), offset=offset, length=length)
        try:
            return bytes(answer.read())
        finally:
            answer.close()
            answer.release_conn()

    def _request(self, method: str, url: str, body: bytes = b"", headers: dict[str, str] | None = None) -> int:
        import urllib3

        timeout = self._settings.request_timeout_s
        answer = urllib3.PoolManager().request(
            method, url, body=body or None, headers=headers, timeout=timeout, retries=False
        )
        return int(answer.status)


def _tried(name: str, attempt: Callable[[], str]) -> Row:
    try:
        return Row(name=name, verdict="ok", message=attempt())
    except Exception as error:  # whatever the client or the server makes of it is the verdict
        return Row(name=name, verdict="fail", message=first_line(error, 200))


def _optional(name: str, action: Callable[[], None]) -> Row:
    from minio.error import InvalidResponseError, S3Error, ServerError

    try:
        action()
    except (InvalidResponseError, S3Error, ServerError) as error:
        if isinstance(error, S3Error) and error.response.status in {401, 403}:
            raise
        message = error.message if isinstance(error, S3Error) else first_line(error, 60)
        return Row(name=name, verdict="unsupported", message=message or "")
    return Row(name=name, verdict="ok", message="set")


def _rules() -> LifecycleConfig:
    from minio.commonconfig import ENABLED, Filter
    from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, NoncurrentVersionExpiration, Rule

    return LifecycleConfig(
        [
            Rule(
                ENABLED,
                rule_filter=Filter(prefix=""),
                rule_id="shopfloor",
                abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(ATTEMPT_DAYS),
                noncurrent_version_expiration=NoncurrentVersionExpiration(OLD_VERSION_DAYS),
            )
        ]
    )


def _endpoint(settings: Settings) -> str:
    return settings.s3_endpoint_url or "https://s3.amazonaws.com"


def _client(settings: Settings, secret_key: str | None = None) -> Minio:
    """Return a client that gives up in time.

    Raises:
        UsageError: There are no credentials.
    """
    import urllib3
    from minio import Minio

    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        raise UsageError(
            "There are no credentials for the object store.", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    place = urlsplit(_endpoint(settings))
    limit = urllib3.Timeout(connect=5.0, read=settings.request_timeout_s)
    return Minio(
        place.netloc,
        access_key=key,
        secret_key=secret_key or secret,
        secure=place.scheme == "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        http_client=urllib3.PoolManager(timeout=limit, maxsize=WRITERS, retries=urllib3.Retry(total=2, read=0)),
    )


@contextmanager
def _answering(settings: Settings, bucket: str) -> Iterator[None]:
    """Say in one line why the store cannot be used.

    Raises:
        AccessError: It does not let us in.
        ServiceError: It does not answer, or refuses.
    """
    from minio.error import MinioException, S3Error, ServerError
    from urllib3.exceptions import HTTPError, MaxRetryError

    place = _endpoint(settings)
    try:
        yield
    except S3Error as error:
        raise refusal(place, bucket, error.response.status, error.code or "", error.message or "") from error
    except ServerError as error:
        raise refusal(place, bucket, error.status_code, "", first_line(error, 200)) from error
    except (MinioException, HTTPError, OSError) as error:
        reason = error.reason if isinstance(error, MaxRetryError) and error.reason else error
        words = first_line(reason, 200).rpartition(": ")[2]
        raise refusal(place, bucket, 0, "", words) from error


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
