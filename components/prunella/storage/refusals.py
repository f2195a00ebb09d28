"""What the refusals of an S3 server mean: each becomes one of our errors, which says what to do next."""

import contextlib
from collections.abc import Iterator

from prunella.errors import ConfigError, KeyExists, KeyMissing, PrunellaError, StorageFull, StorageUnavailable

_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXISTS = {"PreconditionFailed", "412"}
_LOST = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder"}
_FULL = {"QuotaExceeded", "EntityTooLarge", "InsufficientStorage", "507"}
#: What waiting does not mend, and what does.
_REFUSED = {
    "NoSuchBucket": "there is no such bucket; make it, or correct --root",
    "InvalidAccessKeyId": "the access key is unknown there; check AWS_ACCESS_KEY_ID or the profile",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or the profile",
    "ExpiredToken": "the session token has expired; sign in again",
    "AccessDenied": "these credentials may not do that; grant them read and write on the bucket",
    "403": "these credentials may not do that; grant them read and write on the bucket",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "301": "the bucket is in another region; set AWS_REGION",
    "AuthorizationHeaderMalformed": "the region is wrong; set AWS_REGION to the bucket's",
    "IllegalLocationConstraintException": "the region is wrong; set AWS_REGION to the bucket's",
}


class UploadLost(StorageUnavailable):
    """The server does not know the upload, or a part that it once accepted: only a new upload helps."""


def existing(root: str, key: str) -> KeyExists:
    return KeyExists(f"{root}: object {key!r} exists already and is immutable")


@contextlib.contextmanager
def translated(root: str, key: str) -> Iterator[None]:
    """Whatever the SDK raises inside is raised as ours."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _meaning(root, key, str(error.response.get("Error", {}).get("Code", ""))) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise ConfigError(f"--root {root}: no credentials; set AWS_ACCESS_KEY_ID or a profile") from error
    except (BotoCoreError, HTTPError, OSError) as error:
        raise StorageUnavailable(f"{root}: object {key!r} is out of reach ({type(error).__name__})") from error


def _meaning(root: str, key: str, code: str) -> PrunellaError:
    if code in _EXISTS:
        return existing(root, key)
    if code in _MISSING:
        return KeyMissing(f"{root}: no object {key!r}")
    if code in _LOST:
        return UploadLost(f"{root}: the upload of object {key!r} was lost ({code})")
    if code in _FULL:
        return StorageFull(f"{root}: no room for object {key!r} ({code}); free space and run again")
    if code in _REFUSED:
        return ConfigError(f"--root {root}: {_REFUSED[code]} ({code})")
    return StorageUnavailable(f"{root}: object {key!r} is out of reach ({code})")
