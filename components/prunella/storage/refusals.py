"""What an S3 server's answers mean: each refusal becomes one of our errors, which says what to do next, and so does a cut one.

An answer that was cut inside its headers looks whole to everything below us: Python takes the end of the connection for the
end of the headers, and the SDK leaves out whatever field did not come. So whoever needs a field asks for it here.

An answer to a HEAD has no body, so that its refusal is a bare number, which does not tell a wrong secret from a missing right,
nor a missing bucket from a missing object (`is_wordless`). Whoever got one asks again, with a request that is told why. A bare
400 to anything else is an answer whose reason was cut off: what is refused so for a moment is no refusal for good.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from prunella.errors import ConfigError, KeyExists, KeyMissing, PrunellaError, StorageFull, StorageUnavailable

_MISSING = {"NoSuchKey", "404", "NotFound"}
_EXISTS = {"PreconditionFailed", "412"}
_LOST = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder"}
_FULL = {"QuotaExceeded", "EntityTooLarge", "InsufficientStorage", "507", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_NO_RIGHT = "these credentials may not do that; grant them read and write on the bucket"
_NO_KEY = "the access key is unknown there; check AWS_ACCESS_KEY_ID or the profile"
_EXPIRED = "the session token has expired; sign in again"
_NOT_SIGNED_IN = "the session token is not valid there; sign in again, or unset AWS_SESSION_TOKEN"
_OTHER_REGION = "the bucket is in another region; set AWS_REGION"
_BAD_REGION = "the region is wrong; set AWS_REGION to the bucket's"
_BAD_CLOCK = "this machine's clock is not the server's; set it (`timedatectl` shows whether it is synchronised)"
_CLOSED = "the account may not be used; ask whoever runs the server"
_UNKNOWN_REQUEST = "the server does not know a request that a ledger needs; use a server that does, or a newer one"
_UNEXPLAINED = (
    "the server refuses the request and does not say why; check AWS_ENDPOINT_URL_S3, AWS_REGION and the session token"
)
#: What waiting does not mend, and what does. Source: the error codes of Amazon S3, Ceph 16 and MinIO, 2026-11.
_REFUSED = {
    "NoSuchBucket": "there is no such bucket; make it, or correct --root",
    "InvalidBucketName": "there can be no bucket of that name; correct --root",
    "InvalidAccessKeyId": _NO_KEY,
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY or the profile",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": _NOT_SIGNED_IN,
    "InvalidClientTokenId": _NOT_SIGNED_IN,
    "InvalidIdentityToken": "the web identity's token is not valid there; check AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN",
    "RequestTimeTooSkewed": _BAD_CLOCK,
    "RequestExpired": _BAD_CLOCK,
    "AccessDenied": _NO_RIGHT,
    "AllAccessDisabled": _CLOSED,
    "AccountProblem": _CLOSED,
    "NotSignedUp": _CLOSED,
    "UserSuspended": _CLOSED,
    "403": _NO_RIGHT,
    "PermanentRedirect": _OTHER_REGION,
    "301": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _BAD_REGION,
    "IllegalLocationConstraintException": _BAD_REGION,
    "InvalidObjectState": "the object was moved to an archive; restore it, and take the root out of the bucket's rule for that",
    "MethodNotAllowed": _UNKNOWN_REQUEST,
    "NotImplemented": _UNKNOWN_REQUEST,
    "405": _UNKNOWN_REQUEST,
    "501": _UNKNOWN_REQUEST,
    "BadRequest": _UNEXPLAINED,
}
_NO_BUNDLE = "AWS_CA_BUNDLE, or `ca_bundle` of the profile, names no readable file of certificates; correct it"
_NOT_TRUSTED = (
    "the server's certificate is not trusted; name its authority's certificates with AWS_CA_BUNDLE, or have it renewed"
)
#: What keeps a connection from being private, by OpenSSL's reason for it, and what mends it. Source: OpenSSL 3.0, 2026-11.
_NOT_PRIVATE = {
    "NO_CERTIFICATE_OR_CRL_FOUND": _NO_BUNDLE,
    "WRONG_VERSION_NUMBER": "there is a server, but not with TLS; set AWS_ENDPOINT_URL_S3 to http://, or to the port with TLS",
}
#: Refusals of what arrived otherwise than it was signed. Source: the error codes of Amazon S3, Ceph 16 and MinIO, 2026-11.
_ALTERED = {"XAmzContentSHA256Mismatch", "BadDigest", "SignatureDoesNotMatch"}
#: Refusals that came without a word.
_WORDLESS = {"400", "403", "404"}


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
    """Whether a quoted ETag lacks its second quote, or a time its zone, which stands at its end."""
    if isinstance(value, datetime):
        return value.tzinfo is None
    return isinstance(value, str) and value.startswith('"') and (len(value) == 1 or not value.endswith('"'))


def existing(root: str, key: str) -> KeyExists:
    return KeyExists(f"{root}: object {key!r} exists already and is immutable")


@contextlib.contextmanager
def translated(root: str, key: str) -> Iterator[None]:
    """Whatever the SDK raises inside is raised as ours."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise _meaning(root, key, error.response) from error
    except (BotoCoreError, HTTPError, OSError, ResponseParserError, ValueError) as error:
        # ValueError: a number or a time that was cut, which the SDK parses as if it were whole.
        if (advice := credentials_advice(error) or _privacy_advice(error)) is not None:
            raise ConfigError(f"--root {root}: {advice} ({type(error).__name__})") from error
        raise StorageUnavailable(f"{root}: object {key!r} is out of reach ({type(error).__name__})") from error


def is_wordless(error: PrunellaError) -> bool:
    """Whether the server refused something, or did not find it, without a word."""
    response = getattr(error.__cause__, "response", None) or {}
    return _code(response) in _WORDLESS


def is_altered(error: PrunellaError) -> bool:
    """Whether the server refused something because it was not what was signed."""
    return _code(getattr(error.__cause__, "response", None) or {}) in _ALTERED


def credentials_advice(error: Exception) -> str | None:
    """What to do about credentials that the SDK could not make out of its settings; None where it is about something else."""
    from botocore import exceptions as sdk

    if isinstance(error, (sdk.NoCredentialsError, sdk.PartialCredentialsError)):
        return "no credentials; set AWS_ACCESS_KEY_ID or a profile"
    if isinstance(error, (sdk.SSOError, sdk.TokenRetrievalError, sdk.NoAuthTokenError, sdk.LoginError)):
        return "the sign-in of the profile has expired or is not there; sign in again (`aws sso login` or `aws login`)"
    if isinstance(error, sdk.CredentialRetrievalError):
        return "the profile's source of credentials gave none; check its credential_process, or the role of this machine"
    return None


def _privacy_advice(error: Exception) -> str | None:
    """What to do about a connection that cannot be made private; None where it was cut, or is about something else."""
    from botocore.exceptions import SSLError

    if not isinstance(error, SSLError):
        return None
    reason: BaseException = error
    while reason.__context__ is not None:
        reason = reason.__context__
    if isinstance(reason, ValueError):  # about the certificate, whoever looked at it: OpenSSL or urllib3
        return f"{_NOT_TRUSTED}: {getattr(reason, 'verify_message', reason)}"
    if isinstance(reason, (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)):
        return _NO_BUNDLE
    return _NOT_PRIVATE.get(str(getattr(reason, "reason", "")))


def _code(response: dict[str, Any]) -> str:
    return str(response.get("Error", {}).get("Code", ""))


def _meaning(root: str, key: str, response: dict[str, Any]) -> PrunellaError:
    code, status = _code(response), str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    if code in _EXISTS:
        return existing(root, key)
    if code in _MISSING:
        return KeyMissing(f"{root}: no object {key!r}")
    if code in _LOST:
        return UploadLost(f"{root}: the upload of object {key!r} was lost ({code})")
    if code in _FULL or status in _FULL:
        return StorageFull(f"{root}: no room for object {key!r} ({code}); free space and run again")
    if code in _REFUSED:
        return ConfigError(f"--root {root}: {_REFUSED[code]} ({code})")
    return StorageUnavailable(f"{root}: object {key!r} is out of reach ({code})")
