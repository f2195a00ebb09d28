"""Files in parts: how large they are, several on their way at once, and by what name S3 knows what was made of them."""

import base64
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

#: Size of a part at least, and from what size on a file goes up in parts. Source: boto3's TransferConfig has 8 MiB, 2026-11; S3
#: takes parts of 5 MiB to 5 GiB, 10,000 of them at most, so the size grows with the file.
PART_BYTES = 8 * 2**20
MAX_PARTS = 10_000
#: A file of so many parts or more gets larger ones, up to this. Source: measured 2026-11 against radosgw with 1 GiB: parts of
#: 32 MiB take boto3 about a tenth less time than parts of 8 MiB.
_MANY_PARTS = 32
_LARGE_PART_BYTES = 32 * 2**20
#: From what size on a file's parts are sent without an MD5 of ours where the server checks what was signed. Source: own choice
#: 2026-11: the MD5 of 256 MiB takes a third of a second of a core, to ask whether it is needed takes a request.
SIGNED_ALONE_BYTES = _MANY_PARTS * PART_BYTES
#: What is read from a connection, or a file, at once. Source: boto3's TransferConfig.io_chunksize, 2026-11.
PIECE_BYTES = 256 * 2**10
#: Parts under way at once: two a core, because threads of one interpreter beyond that wait for each other, and ten at most.
#: Source: ten is boto3's TransferConfig.max_concurrency; measured 2026-11 on 2 cores against radosgw: four beat ten.
_CONCURRENCY = min(10, 2 * len(os.sched_getaffinity(0)))


@dataclass(slots=True)
class Upload:
    """An upload in parts that has begun. `done` maps part numbers, from 1, to the ETags that the server gave them, `sent` to
    those of what was sent; `source` is the file they are of."""

    upload_id: str
    done: dict[int, str] = field(default_factory=dict)
    sent: dict[int, str] = field(default_factory=dict)
    #: Whether the server refuses a part that arrives otherwise than it was signed: then its word on each part is enough.
    is_checked: bool = False
    #: Whether the server was asked to commit it, which it may have done without our hearing of it.
    is_commit_asked: bool = False
    source: tuple[int, ...] = ()

    @property
    def etags(self) -> list[str]:
        """Of the parts, in order, as the server has them."""
        return [etag for _, etag in sorted(self.done.items())]

    @property
    def etag_sent(self) -> str:
        """Of an object that holds what was sent."""
        return etag_of_parts([etag for _, etag in sorted(self.sent.items())])

    def has_become(self, etag: str) -> bool:
        """Whether an object of this ETag is what this upload makes."""
        return self.is_commit_asked and etag == etag_of_parts(self.etags)


class Body:
    """What is sent as one part, read a little at a time out of memory that it does not own.

    Memory itself would go out in one call, for all of which the connection has the time that it has for silence: over plain
    HTTP, a large part on a slow link would be given up each time, shortly before or long before its end.
    """

    def __init__(self, content: bytes | bytearray | memoryview) -> None:
        self._content = memoryview(content)
        self._at = 0

    def read(self, size: int = -1) -> memoryview:
        """The next piece. It may be larger than asked, up to PIECE_BYTES: the SDK asks for 16 KiB, and takes what it gets."""
        end = len(self._content) if size < 0 else self._at + max(size, PIECE_BYTES)
        piece = self._content[self._at : end]
        self._at += len(piece)
        return piece

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: len(self._content)}[whence]
        return self._at


class Altered(Body):
    """A body of one byte that is another one when it is sent than when it was signed, as one that flips on its way."""

    def __init__(self) -> None:
        super().__init__(b"0")
        self._is_signed = False

    def read(self, size: int = -1) -> memoryview:
        piece = super().read(size)
        if not piece:
            return piece
        before, self._is_signed = self._is_signed, True
        return memoryview(b"1") if before else piece


@dataclass(frozen=True, slots=True)
class Cut:
    """A download that was cut: of which version, how much of it lies where, and at which bytes the parts of that begin."""

    version: str
    path: Path
    done: set[int]


def identity_of(file: Path | int) -> tuple[int, ...]:
    """Of a file, or of an open one's descriptor: another one for another file, or for the same one after it was written to."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def part_size(size_bytes: int) -> int:
    """How large the parts of a file are; all but the last."""
    return max(PART_BYTES, min(size_bytes // _MANY_PARTS, _LARGE_PART_BYTES), -(-size_bytes // MAX_PARTS))


def etag_of(content: bytes | memoryview) -> str:
    """What S3 calls an object, or a part, that was put in one request: its MD5."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def content_md5(etag: str) -> str:
    """The header by which a server that looks refuses what does not arrive as it was sent."""
    return base64.b64encode(bytes.fromhex(etag.strip('"'))).decode()


def etag_of_parts(etags: list[str]) -> str:
    """What S3 calls an object made of parts: the MD5 of their MD5s, and their number.

    radosgw 16.2 does not say it in its answer to the commit (found 2026-11), only when the object is asked for. Empty, which
    no object is called, where the parts' ETags are no MD5s.
    """
    try:
        digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in etags)
    except ValueError:
        return ""
    return f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"'


def in_parallel(work: Callable[[int], None], numbers: range) -> Iterator[int]:
    """Do them all; yields each, in order, once it is done.

    Raises the first failure after those under way have ended, without starting the others.
    """
    with ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="s3") as pool:
        for number, _ in zip(numbers, pool.map(work, numbers), strict=True):
            yield number


def hash_part(sha256: "Hash", descriptor: int, start: int, size_bytes: int) -> None:
    """Give a hash what a file holds from `start` on."""
    end = start + size_bytes
    while start < end and (piece := os.pread(descriptor, min(PIECE_BYTES, end - start), start)):
        sha256.update(piece)
        start += len(piece)
