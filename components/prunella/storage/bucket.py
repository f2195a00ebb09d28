"""A bucket, one request at a time: each refusal and each cut is one of our errors, each answer has what is needed of it.

What requests are put together to is the store's business (`s3.py`); how they are signed and how long they may be silent, that
of the client.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from prunella.errors import ConfigError, KeyMissing, PrunellaError, StorageUnavailable
from prunella.storage.client import make_client
from prunella.storage.parts import MAX_PARTS, Altered, Body, Upload, content_md5, etag_of, etag_of_parts
from prunella.storage.refusals import UploadLost, is_altered, is_wordless, require, translated
from prunella.storage.store import check_key

SCHEME = "s3"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class BucketRequests:
    """Requests about objects under a prefix of a bucket.

    Attributes:
        moves: changes with every answer; what a download is given counts too.

    Raises:
        ConfigError: the root names no bucket, or holds credentials.
    """

    def __init__(self, root: str) -> None:
        bucket, _, prefix = root.removeprefix(f"{SCHEME}://").strip("/").partition("/")
        if "@" in root:
            raise ConfigError("--root: expected s3://BUCKET/PREFIX, found credentials in it (not shown); set AWS_ACCESS_KEY_ID")
        if not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"--root {root}: expected s3://BUCKET or s3://BUCKET/PREFIX")
        self._root = f"{SCHEME}://{bucket}/{check_key(prefix)}" if prefix else f"{SCHEME}://{bucket}"
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self._client = make_client(self._root)
        self._is_bucket_seen = False
        self._is_checking: bool | None = None
        self.moves = 0

    @property
    def root(self) -> str:
        """`s3://BUCKET/PREFIX`."""
        return self._root

    # -------------------------------------------------------------------------------- any request

    def name_of(self, key: str) -> str:
        """An object's name in the bucket."""
        return self._prefix + check_key(key)

    def head(self, key: str) -> dict[str, Any]:
        """As `find`. Raises KeyMissing, once the bucket was seen."""
        found = self.find(key)
        if found is None:
            self.see_bucket(key)
            raise KeyMissing(f"{self.root}: no object {key!r}")
        return found

    def find(self, key: str) -> dict[str, Any] | None:
        """What the server says of an object, or None where it says that it has none, though perhaps for want of the bucket.

        All three or nothing: a length that was cut between two of its digits is another length, and nothing tells but that
        what comes after it did not come. Where the length comes last, a download still compares it with what it gets.
        """
        try:
            return self.call(key, "head_object", "ETag", "LastModified", "ContentLength")
        except KeyMissing:
            return None
        except PrunellaError as error:
            if not is_wordless(error):
                raise
            if self.is_served(key):
                raise StorageUnavailable(
                    f"{self.root}: object {key!r} was refused, and not when asked again: {error}"
                ) from error
            return None

    def see_bucket(self, key: str) -> None:
        """Make sure, once, that there is a bucket that an object may be missing in. Raises ConfigError."""
        if not self._is_bucket_seen:
            self.is_served(key)
            self._is_bucket_seen = True

    def is_served(self, key: str) -> bool:
        """Whether there is an object, asked so that a refusal, which is raised, comes with its reason."""
        try:
            self.call(key, "get_object", Range="bytes=0-0")["Body"].close()
        except KeyMissing:
            return False
        return True

    def write(self, key: str, operation: str, *fields: str, **arguments: Any) -> dict[str, Any]:
        """As `call`. What a write misses is its upload; the server's word for that may have been cut off its answer."""
        try:
            return self.call(key, operation, *fields, **arguments)
        except KeyMissing as error:
            raise UploadLost(f"{self.root}: the upload of object {key!r} was lost") from error

    def call(self, key: str, operation: str, *fields: str, **arguments: Any) -> dict[str, Any]:
        """One request; the answer has all of `fields`."""
        with translated(self.root, key):
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self._bucket, Key=self.name_of(key), **arguments)
        self.moves += 1
        self._is_bucket_seen = True
        require(self.root, key, answer, *fields)
        return answer

    def copy(self, key: str, target: str) -> None:
        """Have the server copy an object within the root, in parts where it is large."""
        with translated(self.root, key):
            source = {"Bucket": self._bucket, "Key": self.name_of(key)}
            try:
                self._client.copy(source, self._bucket, self.name_of(target))
            except KeyError as error:  # the SDK's own transfers take every answer for whole
                raise StorageUnavailable(f"{self.root}: object {key!r}: the answer to its copying lacks {error}") from error

    def pages(self, prefix: str, operation: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """The pages of a listing of what lies under a prefix."""
        with translated(self.root, prefix):
            under = f"{self.name_of(prefix)}/"
            for page in self._client.get_paginator(operation).paginate(Bucket=self._bucket, Prefix=under, **arguments):
                require(self.root, prefix, page, "IsTruncated")
                yield page

    # -------------------------------------------------------------------------------- an upload in parts

    def begin(self, key: str) -> Upload:
        """An upload without a part."""
        return Upload(upload_id=self.write(key, "create_multipart_upload", "UploadId")["UploadId"])

    def send_part(self, key: str, upload: Upload, number: int, content: bytes | memoryview) -> None:
        """Send a part; `upload` knows it then. Numbers count from 1."""
        arguments: dict[str, Any] = {"UploadId": upload.upload_id, "PartNumber": number}
        if not upload.is_checked:
            upload.sent[number] = etag_of(content)
            arguments["ContentMD5"] = content_md5(upload.sent[number])
        upload.done[number] = self.write(key, "upload_part", "ETag", Body=Body(content), **arguments)["ETag"]

    def checks_arrivals(self, key: str, upload: Upload) -> bool:
        """Whether the server refuses bytes that are not those that were signed: then our MD5 of them tells nothing more, and it
        is more than half of what a put costs on this side. Asked once a store, with a part that no commit names."""
        if self._is_checking is None:
            arguments = {"UploadId": upload.upload_id, "PartNumber": MAX_PARTS, "Body": Altered()}
            try:
                self.write(key, "upload_part", "ETag", **arguments)
                self._is_checking = False
            except PrunellaError as error:
                if not is_altered(error):
                    raise
                self._is_checking = True
        return self._is_checking

    def commit(self, key: str, upload: Upload) -> str:
        """Make the parts one object, if there is none; returns its ETag."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(upload.etags, start=1)]
        arguments = {"UploadId": upload.upload_id, "MultipartUpload": {"Parts": parts}, "IfNoneMatch": "*"}
        upload.is_commit_asked = True
        answer = self.write(key, "complete_multipart_upload", **arguments)
        return answer.get("ETag") or etag_of_parts(upload.etags)

    def abort(self, key: str, upload: Upload) -> None:
        """Forget the parts; an upload that is not there any more is fine."""
        with contextlib.suppress(UploadLost):
            self.write(key, "abort_multipart_upload", UploadId=upload.upload_id)

    def unfinished(self, prefix: str) -> Iterator[tuple[str, Upload]]:
        """Uploads under a prefix that were begun, by whomever."""
        for page in self.pages(prefix, "list_multipart_uploads"):
            for entry in page.get("Uploads", []):
                yield entry["Key"].removeprefix(self._prefix), Upload(upload_id=entry["UploadId"])
