"""A store in a bucket, over boto3: conditional puts, parts in parallel, every failure one of ours.

Retrying is the business of `RetryingStore`. Big files go up in parts; a put that is tried again sends only the parts that are
missing. Whether the bucket honours `If-None-Match` is found out where an experiment is opened (`arbitration.py`).
"""

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prunella.errors import ConfigError, KeyExists, KeyMissing, PrunellaError, StorageUnavailable
from prunella.storage.cache import ObjectCache, cache_limit_bytes
from prunella.storage.client import make_client
from prunella.storage.refusals import UploadLost, existing, translated
from prunella.storage.store import Content, Stamp, TransferCut, check_key, content_of

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

logger = logging.getLogger(__name__)
T = TypeVar("T")

SCHEME = "s3"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")

#: Size of a part at least, and from what size on a file goes up in parts. Source: boto3's TransferConfig has 8 MiB, 2026-11; S3
#: takes parts of 5 MiB to 5 GiB, 10,000 of them at most, so the size grows with the file.
_PART_BYTES = 8 * 2**20
_MAX_PARTS = 10_000
#: A file of so many parts or more gets larger ones, up to this. Source: measured 2026-11 against radosgw with 1 GiB: parts of
#: 32 MiB take boto3 about a tenth less time than parts of 8 MiB.
_MANY_PARTS = 32
_LARGE_PART_BYTES = 32 * 2**20
#: What is read from a connection at once. Source: boto3's TransferConfig.io_chunksize, 2026-11.
_PIECE_BYTES = 256 * 2**10
#: Parts under way at once: two a core, because threads of one interpreter beyond that wait for each other, and ten at most.
#: Source: ten is boto3's TransferConfig.max_concurrency; measured 2026-11 on 2 cores against radosgw: four beat ten.
_CONCURRENCY = min(10, 2 * len(os.sched_getaffinity(0)))


@dataclass(slots=True)
class _Upload:
    """An upload in parts that has begun. `done` maps part numbers, from 1, to their ETags."""

    upload_id: str
    done: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A download that was cut: of which version, where what arrived lies, and at which bytes its parts begin."""

    version: str
    path: Path
    done: set[int]


class S3Store:
    """A store under a prefix of a bucket."""

    def __init__(self, root: str) -> None:
        bucket, _, prefix = root.removeprefix(f"{SCHEME}://").strip("/").partition("/")
        if "@" in root:
            raise ConfigError("--root: expected s3://BUCKET/PREFIX, found credentials in it (not shown); set AWS_ACCESS_KEY_ID")
        if not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"--root {root}: expected s3://BUCKET or s3://BUCKET/PREFIX")
        self._root = f"{SCHEME}://{bucket}/{check_key(prefix)}" if prefix else f"{SCHEME}://{bucket}"
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._client = make_client(self._root)
        self._uploads: dict[str, _Upload] = {}
        self._cuts: dict[str, _Cut] = {}
        self._cache = ObjectCache(self._root, limit_bytes=cache_limit_bytes())

    @property
    def root(self) -> str:
        return self._root

    # -------------------------------------------------------------------------------- writing

    def put_new(self, key: str, data: bytes) -> None:
        self._put_whole(key, data)

    def put_new_file(self, key: str, path: Path, *, keep_copy: bool = False) -> Content:
        size_bytes, sha256 = path.stat().st_size, hashlib.sha256()
        if size_bytes <= _PART_BYTES:
            data = path.read_bytes()
            sha256.update(data)
            version = self._put_whole(key, data)
        else:
            version = self._put_in_parts(key, path, size_bytes, sha256)
        if keep_copy:
            self._keep(key, version, path)
        return Content(size_bytes=size_bytes, sha256=sha256.hexdigest())

    def _keep(self, key: str, version: str, path: Path) -> None:
        """Spare this machine a download. What was put is put, so a scratch disk that has no room fails nothing."""
        try:
            self._cache.adopt(key, version, path)
        except OSError as error:
            logger.warning("copy_not_kept key=%s error=%s", key, error)

    def _put_whole(self, key: str, data: bytes) -> str:
        """Write one object; returns its version."""
        return self._prove(key, self._call(key, "put_object", Body=data, IfNoneMatch="*")["ETag"])

    def _put_in_parts(self, key: str, path: Path, size_bytes: int, sha256: "Hash") -> str:
        """Send the parts that are not there yet, then commit them as one object, if there is none by then; returns its version.

        The upload outlives a cut: the next try goes on from here. It does not outlive any other failure.
        """
        if self.exists(key):
            self._uploads.pop(key, None)
            raise existing(self._root, key)
        upload = self._uploads.get(key) or self._begin(key)
        self._uploads[key] = upload
        n_before = len(upload.done)
        try:
            self._send_parts(key, upload, path, size_bytes, sha256)
            etag = self._commit(key, upload)
        except PrunellaError as error:
            if isinstance(error, UploadLost) or not isinstance(error, StorageUnavailable):
                self._abort(key, upload)
            elif len(upload.done) > n_before:
                raise TransferCut(str(error)) from error
            raise
        del self._uploads[key]
        return self._prove(key, etag)

    def _send_parts(self, key: str, upload: _Upload, path: Path, size_bytes: int, sha256: "Hash") -> None:
        """Send the parts that are not there yet, while `sha256` is given the whole file."""
        part_bytes = _part_bytes(size_bytes)
        own = threading.local()

        def send(number: int) -> None:
            if number in upload.done:
                return
            if not hasattr(own, "buffer"):
                own.buffer = bytearray(part_bytes)  # used again for every part: new memory costs more than what is done with it
            count = os.preadv(descriptor, [own.buffer], (number - 1) * part_bytes)
            self._send_part(key, upload, number, own.buffer if count == part_bytes else own.buffer[:count])

        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            for number in _in_parallel(send, range(1, -(-size_bytes // part_bytes) + 1)):
                _hash(sha256, descriptor, (number - 1) * part_bytes, part_bytes)

    def _begin(self, key: str) -> _Upload:
        return _Upload(upload_id=self._call(key, "create_multipart_upload")["UploadId"])

    def _send_part(self, key: str, upload: _Upload, number: int, body: bytes | bytearray) -> None:
        answer = self._call(key, "upload_part", UploadId=upload.upload_id, PartNumber=number, Body=body)
        upload.done[number] = answer["ETag"]

    def _commit(self, key: str, upload: _Upload) -> str:
        """Make the parts one object, if there is none; returns its ETag."""
        etags = [etag for _, etag in sorted(upload.done.items())]
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
        arguments = {"UploadId": upload.upload_id, "MultipartUpload": {"Parts": parts}, "IfNoneMatch": "*"}
        answer = self._call(key, "complete_multipart_upload", **arguments)
        return answer.get("ETag") or _etag_of_parts(etags)

    def _abort(self, key: str, upload: _Upload) -> None:
        self._uploads.pop(key, None)
        with contextlib.suppress(PrunellaError):  # the bucket's own rule for unfinished uploads clears it
            self._call(key, "abort_multipart_upload", UploadId=upload.upload_id)

    def keeps_what_is_there(self, key: str) -> bool:
        """Whether the commit of an upload in parts is refused where an object is, as `put_new` is. Leaves nothing behind."""
        try:
            self.put_new(key, b"first")
            upload = self._begin(key)
            self._send_part(key, upload, 1, b"second")
            try:
                self._commit(key, upload)
            except KeyExists:
                self._abort(key, upload)
                return True
            return False
        finally:
            self.delete(key)

    def _prove(self, key: str, etag: str) -> str:
        """Look whether what is there now is what the server said it took: proxies have said so and kept nothing.

        Returns its version.
        """
        try:
            found = self._call(key, "head_object")
        except KeyMissing as error:
            raise StorageUnavailable(f"{self._root}: object {key!r} was accepted and is not there") from error
        if found["ETag"] != etag:
            raise StorageUnavailable(f"{self._root}: object {key!r} was accepted, and another is there")
        return _version(found)

    # -------------------------------------------------------------------------------- reading

    def get(self, key: str) -> bytes:
        with translated(self._root, key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key))
            content: bytes = answer["Body"].read()
            return content

    def exists(self, key: str) -> bool:
        try:
            self._call(key, "head_object")
        except KeyMissing:
            return False
        return True

    def size_bytes(self, key: str) -> int:
        return int(self._call(key, "head_object")["ContentLength"])

    def stamp(self, key: str) -> Stamp:
        modified = self._call(key, "head_object")["LastModified"]
        return Stamp(at_ns=int(modified.timestamp() * 1e9), grain_ns=1_000_000_000)

    def list(self, prefix: str) -> list[str]:
        under = f"{self._key(prefix)}/"
        names: set[str] = set()
        with translated(self._root, prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=under, Delimiter="/")
            for page in pages:
                names |= {entry["Key"].removeprefix(under) for entry in page.get("Contents", [])}
                names |= {entry["Prefix"].removeprefix(under).rstrip("/") for entry in page.get("CommonPrefixes", [])}
        return sorted(names - {""})

    def local_path(self, key: str) -> Path:
        found = self._call(key, "head_object")
        return self._cache.file(key, _version(found), lambda path: self._fetch(key, path, found, None))

    def measure(self, key: str) -> Content:
        found, sha256, is_fetched = self._call(key, "head_object"), hashlib.sha256(), False

        def fetch(path: Path) -> None:
            nonlocal is_fetched
            self._fetch(key, path, found, sha256)
            is_fetched = True

        path = self._cache.file(key, _version(found), fetch)
        return Content(size_bytes=path.stat().st_size, sha256=sha256.hexdigest()) if is_fetched else content_of(path)

    def drop_copy(self, key: str) -> bool:
        return self._cache.drop(check_key(key))

    def limit_copies(self, prefix: str, *, newest: int) -> None:
        self._cache.limit(check_key(prefix), newest=newest)

    def _fetch(self, key: str, path: Path, found: dict[str, Any], sha256: "Hash | None") -> None:
        """Write an object to `path`. What arrived before a cut is not asked for again by the next try."""
        version, done = _version(found), set[int]()
        cut = self._cuts.pop(key, None)
        if cut is not None and cut.path.exists():
            os.replace(cut.path, path)
            done = cut.done if cut.version == version else done
        n_before = len(done)
        try:
            self._download(key, path, int(found["ContentLength"]), done, sha256)
        except StorageUnavailable as error:
            self._cuts[key] = _Cut(version, path.with_name(f"{path.name}.cut"), done)
            os.replace(path, self._cuts[key].path)
            if len(done) > n_before:
                raise TransferCut(str(error)) from error
            raise

    def _download(self, key: str, path: Path, size_bytes: int, done: set[int], sha256: "Hash | None") -> None:
        """Write the parts that are not `done`, in parallel, while `sha256`, if there is one, is given what was written."""

        def receive(first: int) -> None:
            if first in done:
                return
            start = first
            for piece in self._pieces(key, first, min(first + part_bytes, size_bytes) - 1):
                start += os.pwrite(descriptor, piece, start)
            done.add(first)

        part_bytes = _part_bytes(size_bytes)
        with path.open("r+b" if done else "w+b", buffering=0) as file:
            descriptor = file.fileno()
            for start in _in_parallel(receive, range(0, size_bytes, part_bytes)):
                if sha256 is not None:
                    _hash(sha256, descriptor, start, part_bytes)

    def _pieces(self, key: str, first: int, last: int) -> Iterator[bytes]:
        """A range of an object, piece by piece."""
        with translated(self._root, key):
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(key), Range=f"bytes={first}-{last}")
            while piece := answer["Body"].read(_PIECE_BYTES):
                yield piece

    # -------------------------------------------------------------------------------- removing

    def delete(self, key: str) -> None:
        self._call(key, "delete_object")
        self._cache.drop(key)

    def set_aside(self, key: str) -> str:
        target = f"set-aside/{key}.{time.time_ns()}"
        with translated(self._root, key):
            source = {"Bucket": self._bucket, "Key": self._key(key)}
            self._client.copy(source, self._bucket, self._key(target))
        self.delete(key)
        return target

    # -------------------------------------------------------------------------------- shared

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _call(self, key: str, operation: str, **arguments: Any) -> dict[str, Any]:
        with translated(self._root, key):
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self._bucket, Key=self._key(key), **arguments)
            return answer


def _part_bytes(size_bytes: int) -> int:
    """How large the parts of a file are; all but the last."""
    return max(_PART_BYTES, min(size_bytes // _MANY_PARTS, _LARGE_PART_BYTES), -(-size_bytes // _MAX_PARTS))


def _version(head: dict[str, Any]) -> str:
    """What tells an object from one that was there before, or comes after."""
    return f"{head['ETag']} {head['LastModified']}"


def _etag_of_parts(etags: "list[str]") -> str:
    """What S3 calls an object made of parts: the MD5 of their MD5s, and their number.

    radosgw 16.2 does not say it in its answer to the commit (found 2026-11), only when the object is asked for.
    """
    digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in etags)
    return f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"'


def _in_parallel(work: Callable[[int], None], numbers: range) -> Iterator[int]:
    """Do them all; yields each, in order, once it is done.

    Raises the first failure after those under way have ended, without starting the others.
    """
    with ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="s3") as pool:
        for number, _ in zip(numbers, pool.map(work, numbers), strict=True):
            yield number


def _hash(sha256: "Hash", descriptor: int, start: int, size_bytes: int) -> None:
    """Give a hash what a file holds from `start` on."""
    end = start + size_bytes
    while start < end and (piece := os.pread(descriptor, min(_PIECE_BYTES, end - start), start)):
        sha256.update(piece)
        start += len(piece)
