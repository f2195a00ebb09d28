"""What an S3 server's answers mean: each refusal becomes one of our errors, which says what to do next, and so does a cut one.

An answer that was cut inside its headers looks whole to everything below us: Python takes the end of the connection for the
end of the headers, and the SDK leaves out whatever field did not come. So whoever needs a field asks for it here.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

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


def require(root: str, key: str, answer: dict[str, Any], *fields: str) -> None:
    """Raises StorageUnavailable unless the fields of an answer arrived whole."""
    lacking = [field for field in fields if field not in answer or _is_cut(answer[field])]
    if lacking:
        raise StorageUnavailable(
            f"{root}: object {key!r}: expected {' and '.join(fields)} in the server's answer, found no whole {lacking[0]}: "
            "the answer was cut"
        )


def _is_cut(value: object) -> bool:
    """Whether a quoted ETag lacks its second quote."""
    return isinstance(value, str) and value.startswith('"') and (len(value) == 1 or not value.endswith('"'))


def existing(root: str, key: str) -> KeyExists:
    return KeyExists(f"{root}: object {key!r} exists already and is immutable")


@contextlib.contextmanager
def translated(root: str, key: str) -> Iterator[None]:
    """Whatever the SDK raises inside is raised as ours."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _meaning(root, key, str(error.response.get("Error", {}).get("Code", ""))) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise ConfigError(f"--root {root}: no credentials; set AWS_ACCESS_KEY_ID or a profile") from error
    except (BotoCoreError, HTTPError, OSError, ResponseParserError, ValueError) as error:
        # ValueError: a number or a time that was cut, which the SDK parses as if it were whole.
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
