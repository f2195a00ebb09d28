"""A store in a bucket, over boto3: conditional puts, parts in parallel, every failure one of ours.

Nothing is believed because it was answered: what was put is looked for, what is needed of an answer is asked for by name, and
what is moved is removed only where it is seen to have arrived. A put has succeeded once the ETag of what is there is the MD5
of the bytes that we sent (of several parts, the MD5 of their MD5s); where ETags are no MD5s (SSE-KMS and the like), once the
object was read back with the sha256 of those bytes. One that holds others is removed, and sent again. A server that was seen
to refuse bytes other than those signed is believed of each part, which saves the MD5 of big files.

Retrying is the business of `RetryingStore`, so every call can be repeated: big files travel in parts, and a call that is tried
again moves only the parts that are missing. Whether the bucket honours `If-None-Match` is found out where an experiment is
opened (`arbitration.py`).
"""

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prunella.errors import ConfigError, KeyExists, KeyMissing, PrunellaError, StorageUnavailable
from prunella.storage.bucket import BucketRequests
from prunella.storage.cache import ObjectCache, cache_limit_bytes, link_or_copy
from prunella.storage.parts import (
    PART_BYTES,
    PIECE_BYTES,
    SIGNED_ALONE_BYTES,
    Cut,
    Upload,
    content_md5,
    etag_of,
    hash_part,
    identity_of,
    in_parallel,
    part_size,
)
from prunella.storage.refusals import UploadLost, existing, translated
from prunella.storage.store import LOOKS, Content, Stamp, TransferCut, aside, check_key, content_of, dropped_too_soon

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

logger = logging.getLogger(__name__)
T = TypeVar("T")


class S3Store(BucketRequests):
    """A store under a prefix of a bucket."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._uploads: dict[str, Upload] = {}
        self._unproven: dict[tuple[str, str], str] = {}
        self._cuts: dict[str, Cut] = {}
        self._cache = ObjectCache(self.root, limit_bytes=cache_limit_bytes())

    @property
    def copies_limit_bytes(self) -> int | None:
        return self._cache.limit_bytes

    # -------------------------------------------------------------------------------- writing

    def put_new(self, key: str, data: bytes) -> None:
        self._put_whole(key, data)

    def put_new_file(self, key: str, path: Path, *, keep_copy: bool = False) -> Content:
        size_bytes, sha256 = path.stat().st_size, hashlib.sha256()
        if size_bytes <= PART_BYTES:
            data = path.read_bytes()
            sha256.update(data)
            version = self._put_whole(key, data)
        else:
            version = self._put_in_parts(key, path, size_bytes, sha256)
        if keep_copy:
            self._keep(key, version, path)
        return Content(size_bytes=size_bytes, sha256=sha256.hexdigest())

    def _keep(self, key: str, version: str, path: Path) -> None:
        """Spare this machine a download. What was put is put, so a scratch disk without room, or none, fails nothing."""
        try:
            self._cache.adopt(key, version, path)
        except (OSError, ConfigError) as error:
            logger.warning("copy_not_kept key=%s error=%s", key, error)

    def _put_whole(self, key: str, data: bytes) -> str:
        """Write one object; returns its version.

        One that the server took from an earlier try is known by the ETag that it was given, and proven now.
        """
        sent = etag_of(data)
        try:
            answer = self.write(key, "put_object", "ETag", Body=data, ContentMD5=content_md5(sent), IfNoneMatch="*")
        except KeyExists:
            etag = self._unproven.get((key, sent))
            if etag is None or etag != (self.find(key) or {}).get("ETag"):
                raise
        else:
            self._unproven[key, sent] = etag = answer["ETag"]
        version = self._prove(key, etag, sent, lambda: self.get(key) == data)
        del self._unproven[key, sent]
        return version

    def _put_in_parts(self, key: str, path: Path, size_bytes: int, sha256: "Hash") -> str:
        """Send the parts that are not there yet, then commit them as one object, if there is none by then; returns its version.

        The upload outlives a cut: the next try goes on from here, and knows by their ETags the object that an earlier commit
        has made, whose answer was lost. It does not outlive any other failure.
        """
        found, upload = self.find(key), self._upload_of(key, path)
        if found is not None and (upload is None or not upload.has_become(found["ETag"])):
            self._give_up(key, upload)
            raise existing(self.root, key)
        upload = upload or self.begin(key)
        upload.source = identity_of(path)
        self._uploads[key] = upload
        with self._outliving_cuts(key, upload):
            self._send_parts(key, upload, path, size_bytes, sha256)  # where the object is there: none, they are only hashed
            etag = found["ETag"] if found is not None else self.commit(key, upload)
            content = Content(size_bytes=size_bytes, sha256=sha256.hexdigest())
            sent = etag if upload.is_checked else upload.etag_sent
            version = self._prove(key, etag, sent, lambda: self._read_back(key) == content)
        del self._uploads[key]
        return version

    def _upload_of(self, key: str, path: Path) -> Upload | None:
        """The upload of this file that an earlier try began. Parts of another file under the same key are forgotten."""
        upload = self._uploads.get(key)
        if upload is None or upload.source == identity_of(path):
            return upload
        self._give_up(key, upload)
        return None

    @contextlib.contextmanager
    def _outliving_cuts(self, key: str, upload: Upload) -> Iterator[None]:
        """Tells a cut, after which the upload can go on (and whether it had got on), from what it is given up after."""
        n_before = len(upload.done)
        try:
            yield
        except UploadLost:
            self._give_up(key, upload)
            raise
        except StorageUnavailable as error:
            if len(upload.done) > n_before:
                raise TransferCut(str(error)) from error
            raise
        except PrunellaError:
            self._give_up(key, upload)
            raise

    def _send_parts(self, key: str, upload: Upload, path: Path, size_bytes: int, sha256: "Hash") -> None:
        """Send the parts that are not there yet, while `sha256` is given the whole file."""
        upload.is_checked = size_bytes >= SIGNED_ALONE_BYTES and self.checks_arrivals(key, upload)
        part_bytes = part_size(size_bytes)
        own = threading.local()

        def send(number: int) -> None:
            if number in upload.done:
                return
            if not hasattr(own, "buffer"):
                own.buffer = bytearray(part_bytes)  # used again for every part: new memory costs more than what is done with it
            count = os.preadv(descriptor, [own.buffer], (number - 1) * part_bytes)
            self.send_part(key, upload, number, memoryview(own.buffer)[:count])

        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            for number in in_parallel(send, range(1, -(-size_bytes // part_bytes) + 1)):
                hash_part(sha256, descriptor, (number - 1) * part_bytes, part_bytes)

    def give_up(self, key: str) -> None:
        self._give_up(key, self._uploads.get(key))

    def _give_up(self, key: str, upload: Upload | None) -> None:
        self._uploads.pop(key, None)
        if upload is None:
            return
        try:
            self.abort(key, upload)
        except PrunellaError as error:  # the next attempt clears it, or the bucket's own rule for unfinished uploads
            logger.warning("upload_not_aborted key=%s error=%s", key, error)

    def _prove(self, key: str, etag: str, sent: str, is_whole: Callable[[], bool]) -> str:
        """Look whether what is there now is what the server said it took (proxies have said so and kept nothing), and that
        what we sent.

        Args:
            etag: the server's, of what it took.
            sent: as an ETag, the MD5 of what we sent.
            is_whole: whether the object holds that when it is read. Asked where its ETag is another: then it is no MD5, or of
                other bytes.

        Returns its version.
        """
        found = self.find(key)
        if found is None:
            raise StorageUnavailable(f"{self.root}: object {key!r} was accepted and is not there")
        if found["ETag"] != etag:
            raise StorageUnavailable(f"{self.root}: object {key!r} was accepted, and another is there")
        if etag.strip('"') != sent.strip('"') and not (is_whole() or is_whole()):  # a byte may also flip on its way down
            self.delete(key)
            raise UploadLost(
                f"{self.root}: object {key!r}: expected the bytes that were sent, MD5 {sent}, found others, {etag}: damaged "
                "on their way or there, and removed; check the network and the proxies in between"
            )
        return _version(found)

    def _read_back(self, key: str) -> Content:
        """What is in the bucket, whatever lies here."""
        self._cache.drop(key)
        try:
            return self.measure(key)
        finally:
            self._cache.drop(key)

    # -------------------------------------------------------------------------------- reading

    def get(self, key: str) -> bytes:
        answer = self.call(key, "get_object", "ContentLength")  # with it, the SDK counts what comes
        with translated(self.root, key):
            content: bytes = answer["Body"].read()
            return content

    def exists(self, key: str) -> bool:
        if self.find(key) is not None:
            return True
        self.see_bucket(key)
        return False

    def size_bytes(self, key: str) -> int:
        return int(self.head(key)["ContentLength"])

    def stamp(self, key: str) -> Stamp:
        modified = self.head(key)["LastModified"]
        return Stamp(at_ns=int(modified.timestamp() * 1e9), grain_ns=1_000_000_000)

    def list(self, prefix: str) -> list[str]:
        under = f"{self.name_of(prefix)}/"
        names: set[str] = set()
        for page in self.pages(prefix, "list_objects_v2", Delimiter="/"):
            names |= {entry["Key"].removeprefix(under) for entry in page.get("Contents", [])}
            names |= {entry["Prefix"].removeprefix(under).rstrip("/") for entry in page.get("CommonPrefixes", [])}
        return sorted(names - {""})

    # -------------------------------------------------------------------------------- local copies

    def local_path(self, key: str) -> Path:
        path, _ = self._copy(key, None)
        return path

    def place(self, key: str, path: Path) -> Content | None:
        def name(copy: Path, fetched: Content | None) -> Content | None:
            link_or_copy(copy, path)
            return fetched

        return self._with_copy(key, name)

    def measure(self, key: str) -> Content:
        return self._with_copy(key, lambda copy, fetched: fetched or content_of(copy))

    def drop_copy(self, key: str) -> bool:
        return self._cache.drop(check_key(key))

    def limit_copies(self, prefix: str, *, newest: int) -> None:
        self._cache.limit(check_key(prefix), newest=newest)

    def _with_copy(self, key: str, use: Callable[[Path, Content | None], T]) -> T:
        """What `use` makes of a copy, and of its content where that was told by fetching it."""
        for _ in range(LOOKS):
            copy, fetched = self._copy(key, hashlib.sha256())
            with contextlib.suppress(FileNotFoundError):  # another process has dropped it since
                return use(copy, fetched)
        raise dropped_too_soon(self.root, key)

    def _copy(self, key: str, sha256: "Hash | None") -> tuple[Path, Content | None]:
        """The local copy of an object; and its content, where it was fetched now and `sha256` was given it meanwhile."""
        found, is_fetched = self.head(key), False

        def fetch(path: Path) -> None:
            nonlocal is_fetched
            self._fetch(key, path, found, sha256)
            is_fetched = True

        path = self._cache.file(key, _version(found), fetch)
        if sha256 is None or not is_fetched:
            return path, None
        return path, Content(size_bytes=int(found["ContentLength"]), sha256=sha256.hexdigest())

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
            self._cuts[key] = Cut(version, path.with_name(f"{path.name}.cut"), done)
            os.replace(path, self._cuts[key].path)
            if len(done) > n_before:
                raise TransferCut(str(error)) from error
            raise

    def _download(self, key: str, path: Path, size_bytes: int, done: set[int], sha256: "Hash | None") -> None:
        """Write the parts that are not `done`, in parallel, while `sha256`, if there is one, is given what was written."""

        def receive(first: int) -> None:
            if first in done:
                return
            start, end = first, min(first + part_bytes, size_bytes)
            for piece in self._pieces(key, first, end - 1, size_bytes):
                start += os.pwrite(descriptor, piece, start)
            if start != end:
                raise StorageUnavailable(f"{self.root}: object {key!r}: expected {end - first} bytes, found {start - first}")
            done.add(first)

        part_bytes = part_size(size_bytes)
        with path.open("r+b" if done else "w+b", buffering=0) as file:
            descriptor = file.fileno()
            for start in in_parallel(receive, range(0, size_bytes, part_bytes)):
                if sha256 is not None:
                    hash_part(sha256, descriptor, start, part_bytes)

    def _pieces(self, key: str, first: int, last: int, size_bytes: int) -> Iterator[bytes]:
        """A range of an object of that size, piece by piece."""
        answer = self.call(key, "get_object", "ContentRange", Range=f"bytes={first}-{last}")
        wanted, found = f"bytes {first}-{last}/{size_bytes}", answer["ContentRange"]
        if found != wanted:
            raise StorageUnavailable(f"{self.root}: object {key!r}: expected {wanted}, found {found}: cut, or replaced")
        with translated(self.root, key):
            while piece := answer["Body"].read(PIECE_BYTES):
                self.moves += 1
                yield piece

    # -------------------------------------------------------------------------------- removing

    def delete(self, key: str) -> None:
        found = self.find(key)
        if found is not None:
            self.call(key, "delete_object")
            left = self.find(key)
            if left is not None and _version(left) == _version(found):
                raise StorageUnavailable(f"{self.root}: object {key!r} was deleted, and is still there")
        self._cache.drop(key)

    def clear_unfinished(self, prefix: str, is_dead: Callable[[str], bool]) -> tuple[str, ...]:
        dead = [(key, upload) for key, upload in self.unfinished(prefix) if is_dead(key)]
        for key, upload in dead:
            self.abort(key, upload)
        return tuple(key for key, _ in dead)

    def set_aside(self, key: str, target: str | None = None) -> str:
        target = target or aside(key)
        found, moved = self.find(key), self.find(target)
        if found is None and moved is None:
            self.see_bucket(key)
            raise KeyMissing(f"{self.root}: no object {key!r}")
        if found is not None:
            if moved is None:
                self.copy(key, target)
            self._remove_copied(key, found, target)
        return target  # where nothing was found, an earlier try has moved it, and its answer was lost

    def _remove_copied(self, key: str, found: dict[str, Any], target: str) -> None:
        """Delete an object that was copied, once the copy is seen."""
        copied = self.find(target)
        if copied is None or copied["ContentLength"] != found["ContentLength"]:
            raise StorageUnavailable(
                f"{self.root}: expected a copy of object {key!r}, {found['ContentLength']} bytes, at {target!r}, found "
                f"{copied['ContentLength'] if copied else 'none'}; nothing was deleted"
            )
        self.delete(key)


def _version(head: dict[str, Any]) -> str:
    """What tells an object from one that was there before, or comes after."""
    return f"{head['ETag']} {head['LastModified']}"
