"""What steps hand on: directories behind a URI, with the hash of their content.

A step writes into a local staging directory; `publish` hashes it and puts it at its URI, on a disk or in an S3 store.
A later step calls `local_copy` and gets a directory to read. Nobody else needs to know where the profile keeps things.
What is needed for a while only lies in a `scratch` directory, which goes with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shopfloor.errors import AccessError, NotFoundError, ServiceError, ShopfloorError, UsageError, first_line
from shopfloor.settings import Settings

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CONTENT_HASH = "content_hash"
EFFECT = "effect"
"""Metadata key of an artifact that stands for something outside the artifact store."""
STORED = "stored"
"""Metadata key of what the store says of an artifact's files: a hash of their bytes, or of a bucket's listing."""
SCRATCH = ".shopfloor-scratch-"
"""Beginning of the name of every scratch directory."""
REMEMBERED_S = 30 * 86_400.0
"""Age at which a remembered answer is forgotten; whoever wants it again computes it again."""


class Artifact(Protocol):
    """The part of a KFP artifact that a step fills in."""

    name: str
    uri: str
    metadata: dict[str, Any]


class Metrics(Protocol):
    """The part of a KFP metrics artifact that the step fills in."""

    def log_metric(self, metric: str, value: float) -> None:
        """Keep one number."""


def is_remote(uri: str) -> bool:
    """Tell whether `uri` needs a client to be read (anything with a scheme but `file://`)."""
    return "://" in uri and not uri.startswith("file://")


def local_path(uri: str) -> Path:
    """Return the path that a local URI names."""
    return Path(uri.removeprefix("file://"))


def join(uri: str, *parts: str) -> str:
    """Append path segments to a URI or a directory."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def filesystem(settings: Settings, uri: str, aws_profile: str | None = None) -> tuple[FileSystem, str]:
    """Return the pyarrow file system of `uri` and the path on it; S3 credentials come from the AWS variables.

    An S3 store that does not answer, or refuses, raises a ServiceError or an AccessError in any call.

    Args:
        settings: Say where the object store is, and how long a call may take.
        uri: Of a directory or a file.
        aws_profile: Profile of AWS's configuration files that has another store's address, keys and region.

    Raises:
        UsageError: There is no such profile.
    """
    from pyarrow import fs

    if not is_remote(uri):
        return fs.LocalFileSystem(), str(local_path(uri))
    if uri.startswith("s3://"):
        address = settings.s3_endpoint_url if aws_profile is None else _address_of(aws_profile)
        client = _s3(address, 2 * settings.request_timeout_s, aws_profile)
        return fs.PyFileSystem(fs.FSSpecHandler(client)), uri.removeprefix("s3://")
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path


def _address_of(aws_profile: str) -> str | None:
    """Return the address of the store that a profile of AWS's configuration files names; `None` for AWS itself."""
    from botocore.exceptions import ProfileNotFound
    from botocore.session import Session

    try:
        address: str | None = Session(profile=aws_profile).get_scoped_config().get("endpoint_url")
    except ProfileNotFound as error:
        raise UsageError(
            f"AWS's configuration files have no profile {aws_profile!r}.",
            "Write it into ~/.aws/credentials, or into the file that AWS_SHARED_CREDENTIALS_FILE names.",
        ) from error
    return address


def _s3(endpoint_url: str | None, longest_s: float, aws_profile: str | None = None) -> Any:
    """Return a client, here or in another process that it was sent to."""
    client = _s3_client()(endpoint_url=endpoint_url, profile=aws_profile, use_listings_cache=False)
    client.longest_s = longest_s
    return client


@functools.cache
def _s3_client() -> Any:
    """Return the class of a client of S3 that takes no refusal for an empty place, and waits for no answer for ever."""
    import asyncio

    # s3fs, which DVC uses too, gets along with more S3 servers than pyarrow's own client.
    from fsspec.asyn import sync_wrapper
    from s3fs import S3FileSystem

    class Client(S3FileSystem):  # type: ignore[misc]
        longest_s = 60.0

        async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
            carries = kwargs.keys() & {"Body", "MultipartUpload"}  # then the time depends on the size
            try:
                async with asyncio.timeout(None if carries else self.longest_s):
                    return await super()._call_s3(method, *akwarglist, **kwargs)
            except (FileNotFoundError, FileExistsError) as error:
                if "bucket" not in str(error).lower():
                    raise
                raise NotFoundError(
                    f"There is no bucket s3://{kwargs['Bucket']} in {self._place}.",
                    "Make it: shopfloor storage bootstrap",
                ) from error
            except Exception as error:  # of botocore, of aiohttp, of s3fs
                answer = getattr(error.__cause__, "response", {})
                code = answer.get("Error", {}).get("Code", "")
                status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                words = answer.get("Error", {}).get("Message") or first_line(error, 200)
                if region := answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region"):
                    words += f"; use region {region}"
                if isinstance(error, TimeoutError):
                    words = f"nothing came within {self.longest_s:.0f} s"
                raise refusal(self._place, kwargs.get("Bucket", ""), status, code, words, self._profile) from error

        call_s3 = sync_wrapper(_call_s3)

        async def _mkdir(self, path: str, acl: Any = False, create_parents: bool = True, **kwargs: Any) -> None:
            """Do nothing: S3 has no directories, and whose key is for a prefix may not look at the bucket."""

        mkdir = sync_wrapper(_mkdir)

        def isfile(self, path: str) -> bool:
            try:  # the class above this one takes every error for a no
                return bool(self.info(path)["type"] == "file")
            except FileNotFoundError:
                return False

        async def _read_with_tag(self, path: str) -> tuple[bytes, str]:
            bucket, key, _ = self.split_path(path)
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key)
            async with answer["Body"] as body:
                return await body.read(), str(answer["ETag"])

        read_with_tag = sync_wrapper(_read_with_tag)

        async def _put_if(self, path: str, data: bytes, **condition: str) -> bool:
            bucket, key, _ = self.split_path(path)
            try:
                await self._call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)
            except FileNotFoundError:  # what was to be replaced is gone
                return False
            except ServiceError as error:
                answer = getattr(getattr(error.__cause__, "__cause__", None), "response", {})
                status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                if status == HTTPStatus.NOT_IMPLEMENTED:  # a server without conditions
                    await self._call_s3("put_object", Bucket=bucket, Key=key, Body=data)
                elif status not in {HTTPStatus.PRECONDITION_FAILED, HTTPStatus.CONFLICT}:
                    raise
                else:
                    return False
            return True

        put_if = sync_wrapper(_put_if)

        def __reduce__(self) -> tuple[Any, ...]:
            return _s3, (self.endpoint_url, self.longest_s, self._profile)

        @property
        def _place(self) -> str:
            return str(self.endpoint_url or "AWS")

        @property
        def _profile(self) -> str | None:
            name: str | None = self.kwargs.get("profile")
            return name

    return Client


def refusal(
    place: str, bucket: str, status: int, code: str, words: str, aws_profile: str | None = None
) -> ServiceError:
    """Return the error that says why an object store does not do it.

    Args:
        place: Its address.
        bucket: Name of the bucket that was meant.
        status: HTTP status of its answer; 0 where there was none.
        code: S3's code of the error, which a HEAD request's answer lacks.
        words: Message of the store or of the client.
        aws_profile: Profile of AWS's configuration files that the keys come from, and not from the variables.
    """
    whose, keys = repr(os.environ.get("AWS_ACCESS_KEY_ID", "")), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if aws_profile is not None:
        whose, keys = f"the profile {aws_profile!r}", f"the keys of the profile {aws_profile!r}"
    if status in {301, 400} and ("region" in words or code in {"301", "PermanentRedirect"}):
        return ServiceError(
            f"The bucket {bucket!r} is in another region: {words}.", "Set AWS_DEFAULT_REGION, or the store's address."
        )
    if status in {401, 403}:
        return AccessError(
            f"The object store {place} does not let {whose} do that in bucket {bucket!r}: {code or words}.",
            f"Look at {keys}, and at whose bucket it is.",
        )
    if status == HTTPStatus.INSUFFICIENT_STORAGE or "StorageFull" in code or "QuotaExceeded" in code:
        return ServiceError(f"The object store {place} is full: {words}.", "Free some space there, then do it again.")
    if not status and "locate credentials" in words:
        return AccessError(
            f"There are no credentials for the object store {place}.",
            f"Set {keys}.",
        )
    if status:
        return ServiceError(f"The object store {place} refused ({status}): {words}.", "See its log.")
    return ServiceError(f"The object store {place} does not answer: {words}.", "Look at its address and its log.")


def hash_directory(directory: Path) -> str:
    """Return the SHA-256 over the relative names and contents of all files in `directory`, or of the one file."""
    digest = hashlib.sha256()
    files = [directory] if directory.is_file() else sorted(path for path in directory.rglob("*") if path.is_file())
    for file in files:
        name = file.name if directory.is_file() else file.relative_to(directory).as_posix()
        with file.open("rb") as handle:
            digest.update(f"{name}\0{hashlib.file_digest(handle, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def publish(settings: Settings, artifact: Artifact, kind: str, content_hash: str | None = None) -> Iterator[Path]:
    """Give a staging directory; at the end of the block its files stand behind `artifact.uri`, complete or not at all.

    Args:
        settings: Says where artifacts live.
        artifact: Gets `uri` and `metadata["content_hash"]`.
        kind: The folder under `<artifact_root>/steps/` (the step's name).
        content_hash: Given where the bytes are no measure of the content (a Data Docs page holds the time).

    Raises:
        ShopfloorError: The store is full or refuses the write; nothing is left half written.
    """
    root = Path(settings.artifact_root) if not is_remote(settings.artifact_root) else settings.state_dir / "staging"
    with naming_full_disk(root):
        _make(settings, root)
        with scratch(root) as staging:
            yield staging
            content = content_hash or hash_directory(staging)
            artifact.metadata.pop(STORED, None)
            # The name is new for each execution: a reader of an earlier one is never disturbed.
            uri = join(settings.artifact_root, "steps", kind, f"{content[:16]}-{uuid.uuid4().hex[:8]}")
            if is_remote(uri):
                _upload(settings, staging, uri)
            else:
                target = local_path(uri)
                target.parent.mkdir(parents=True, exist_ok=True)
                staging.chmod(0o755)
                move_synced(staging, target)
    artifact.uri = uri
    artifact.metadata[CONTENT_HASH] = content
    artifact.metadata[STORED] = stored(settings, uri)
    if settings.published_dir:
        note = {"name": artifact.name, "uri": uri, "metadata": artifact.metadata}
        write_atomically(settings.published_dir / f"{artifact.name}.json", json.dumps(note))


@contextlib.contextmanager
def scratch(place: Path | None = None) -> Iterator[Path]:
    """Give a new directory, which is removed after the block; see `keep_scratch`."""
    path, remove = keep_scratch(place)
    try:
        yield path
    finally:
        remove()


def keep_scratch(place: Path | None = None) -> tuple[Path, Callable[[], None]]:
    """Return a new directory, and what removes it; those of processes that removed nothing go now.

    Each is held by a lock on the directory itself, which the system releases when its process ends.

    Args:
        place: Directory that gets it; `None` is the system's temporary one.
    """
    place = place or Path(tempfile.gettempdir())
    for leftover in place.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):  # held by another process, gone, or on a file system without locks
            _remove(leftover, _held(leftover, fcntl.LOCK_NB))
    while True:
        path = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=place))
        with contextlib.suppress(FileNotFoundError):  # another process took it for one that was left
            return path, functools.partial(_remove, path, _held(path))


def _held(path: Path, flags: int = 0) -> int:
    """Return a descriptor that holds a scratch directory of ours.

    Raises:
        FileNotFoundError: It is gone, or another account's.
        OSError: With flags, another process holds it, or the file system has no locks: nobody removes anything there.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
        except OSError:
            if flags:
                raise
        if path.stat().st_ino != os.fstat(descriptor).st_ino or path.stat().st_uid != os.getuid():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove(path: Path, descriptor: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(descriptor)


def local_copy(settings: Settings, uri: str) -> Path:
    """Return a directory that holds what is behind `uri`; what is remote is fetched once, kept, and looked at again.

    Raises:
        NotFoundError: Nothing is there.
        ServiceError: What came from the store is not what it lists.
    """
    if not is_remote(uri):
        path = local_path(uri)
        if not path.exists():
            raise NotFoundError(f"Artifact {uri} is gone.", "Submit again: the step that made it will run.")
        return path
    target = settings.state_dir / "fetched" / hashlib.sha256(uri.encode()).hexdigest()[:32]
    stale = target.exists()
    if stale and stored(settings, str(target / "files")) == _text(target / "sha256"):
        return target / "files"
    with naming_full_disk(target.parent):
        _make(settings, target.parent)
        with scratch(target.parent) as staging:
            if stale:  # changed by somebody, or half gone: who still reads it goes on with what it has open
                with contextlib.suppress(OSError):
                    target.rename(staging / "stale")
            copy = staging / "copy"
            copy.mkdir()
            _download(settings, uri, copy / "files")
            (copy / "sha256").write_text(hash_directory(copy / "files"), encoding="utf-8")
            # Two readers may fetch the same thing: the second rename finds the target there, which is as good.
            with contextlib.suppress(OSError):
                move_synced(copy, target)
    return target / "files"


def _text(file: Path) -> str | None:
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8")
    return None


def move_synced(source: Path, target: Path) -> None:
    """Rename a file or a directory so that after a power cut its bytes are on the disk where its name is.

    Raises:
        OSError: The disk refuses to keep it, or `target` is a directory that holds something.
    """
    from concurrent.futures import ThreadPoolExecutor

    inside = [source, *source.rglob("*")] if source.is_dir() else [source]
    with ThreadPoolExecutor(16) as pool:  # a disk writes many files at once as fast as one
        list(pool.map(sync, inside))
    source.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exists(settings: Settings, uri: str) -> bool:
    """Tell whether a file or a non-empty prefix is behind `uri`."""
    from pyarrow import fs

    filesystem_, path = filesystem(settings, uri)
    info = filesystem_.get_file_info(path)
    if info.type is fs.FileType.File:
        return True
    return bool(filesystem_.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def stored(settings: Settings, uri: str) -> str | None:
    """Return a hash of what is behind `uri` now, `None` where nothing is.

    Files on this machine are hashed whole, and again only when a size, a time or an inode changed. An object store is
    believed: its listing gives the objects' names, sizes and ETags.
    """
    if is_remote(uri):
        return _listing(settings, uri)
    path = local_path(uri)
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return remembered(settings, json.dumps([file_stamp(file) for file in files]), lambda: hash_directory(path))


def file_stamp(file: Path) -> list[str | int]:
    """Return what another content of a file cannot have: path, size, inode, and the times of content and inode.

    The time of the content can be set by anybody, and that of the inode by nobody.
    """
    status = file.stat()
    return [str(file), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def remembered(settings: Settings, stamp: str, compute: Callable[[], str]) -> str:
    """Return what `compute` gave for the same stamp before, in any process; else ask it now, and keep the answer.

    Args:
        settings: The answers are kept in its state directory.
        stamp: What the answer depends on, such as a file's path, size, time and inode.
        compute: Gives the answer, a text that is not empty.
    """
    name = hashlib.sha256(stamp.encode()).hexdigest()
    cache = settings.state_dir / "hashes" / name[:2] / name
    with contextlib.suppress(OSError):
        if text := cache.read_text(encoding="utf-8"):
            return text
    text = compute()
    # No answer is worth a failure, nor waiting for the disk: after a crash it is empty, or not there.
    with contextlib.suppress(OSError, UsageError):
        _make(settings, cache.parent)
        draft = cache.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex[:8]}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(cache)
        for other in cache.parent.iterdir():
            if other.stat().st_mtime < time.time() - REMEMBERED_S:
                other.unlink()
    return text


def _make(settings: Settings, directory: Path) -> None:
    """Make a directory where it is missing; one below the state directory in the part that other accounts cannot enter.

    Raises:
        UsageError: The state directory stays open to others.
    """
    if directory.is_relative_to(settings.state_dir):
        settings.private_state_dir()
    directory.mkdir(parents=True, exist_ok=True)


def _listing(settings: Settings, uri: str) -> str | None:
    """Return a hash of the names, sizes and ETags of the objects behind a remote URI."""
    from pyarrow import fs

    source, path = filesystem(settings, uri)
    handler = getattr(source, "handler", None)
    if isinstance(handler, fs.FSSpecHandler):
        files = handler.fs.find(path, detail=True)
        objects = [[name.removeprefix(path), item["size"], item.get("ETag", "")] for name, item in files.items()]
    else:
        infos = source.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
        objects = [[item.path.removeprefix(path), item.size, ""] for item in infos if item.type is fs.FileType.File]
    return hashlib.sha256(json.dumps(sorted(objects)).encode()).hexdigest() if objects else None


@contextlib.contextmanager
def naming_full_disk(
    place: Path, remedy: str = "Free some space and submit again: finished steps are kept."
) -> Iterator[None]:
    """Turn `No space left on device` inside the block into an error that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise ShopfloorError(f"The disk that holds {place} is full.", remedy) from error


def write_atomically(file: Path, text: str, mode: int = 0o600) -> None:
    """Replace `file` by `text` so that a reader or a crash sees the old text or the new, never a part.

    Args:
        file: Its directory is made where there is none.
        text: The new content.
        mode: Permissions of the new file.

    Raises:
        ShopfloorError: The disk is full.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with naming_full_disk(file.parent):
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
                os.fchmod(descriptor, mode)
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            Path(name).replace(file)
            sync(file.parent)
        finally:
            Path(name).unlink(missing_ok=True)


def _upload(settings: Settings, directory: Path, uri: str) -> None:
    from pyarrow import fs

    target, path = filesystem(settings, uri)
    fs.copy_files(str(directory), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=target)


def _download(settings: Settings, uri: str, directory: Path) -> None:
    """Copy what is behind a remote URI to a new directory.

    Raises:
        NotFoundError: Nothing is there.
        ServiceError: A file came in another size than the store lists it with.
    """
    from pyarrow import fs

    source, path = filesystem(settings, uri)
    if not exists(settings, uri):
        raise NotFoundError(f"Artifact {uri} is gone.", "Submit again: the step that made it will run.")
    directory.mkdir()
    fs.copy_files(path, str(directory), source_filesystem=source, destination_filesystem=fs.LocalFileSystem())
    for item in source.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True)):
        copy = directory / item.path.removeprefix(path).lstrip("/")
        if item.is_file and (not copy.is_file() or copy.stat().st_size != item.size):
            raise ServiceError(f"{item.path} came incomplete from the store of {uri}.", "Do it again.")
