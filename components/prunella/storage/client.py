"""The SDK's client, made from the SDK's own settings; one that cannot be meant is one clear error, before anything is asked.

Credentials, region, endpoint and time-outs come from where the AWS command line has them (environment, profile, instance
role), so that what works there works here; none of them is ever logged or recorded. Retrying is the business of
`RetryingStore`: the SDK's own is off.
"""

import os
from typing import Any

from prunella.errors import ConfigError
from prunella.storage.refusals import credentials_advice

#: Seconds until a connection, or a silent one, counts as lost. Source: own choice 2026-11; healthy answers take milliseconds.
_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 30
#: Seconds for which one request may be silent before it fails.
REQUEST_SILENCE_S = _CONNECT_TIMEOUT_S + _READ_TIMEOUT_S
#: How a bucket may be addressed. Source: the SDK's `addressing_style`, botocore 1.44, 2026-11.
_STYLES = ("auto", "path", "virtual")


def make_client(root: str) -> Any:
    """A client for the bucket of `root`.

    The region is AWS_REGION, as with every other SDK of AWS; this one does not look at it and, without it, goes by
    AWS_DEFAULT_REGION and the profile. PRUNELLA_S3_STYLE (`auto`, `path`, `virtual`) is how the bucket is addressed.

    Raises:
        ConfigError: a setting cannot be meant as written.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    settings = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        max_pool_connections=20,
        s3={"addressing_style": _style()},
        # Our own sha256 is proven on every read; not every server knows the SDK's newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )

    def leave_hash_to_md5(request: Any, **_event: object) -> None:
        """A body whose MD5 is signed needs no second hash: over HTTPS the SDK sees that by itself, over HTTP it does not."""
        if "Content-MD5" in request.headers:
            config = request.context["client_config"]
            unsigned = Config(s3={**config.s3, "payload_signing_enabled": False})
            request.context["client_config"] = config.merge(unsigned)

    try:
        client = boto3.session.Session().client("s3", region_name=os.environ.get("AWS_REGION") or None, config=settings)
        client.meta.events.register("before-sign.s3", leave_hash_to_md5)
        return client
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(f"--root {root}: {_meaning(error)}") from error


def _style() -> str:
    style = os.environ.get("PRUNELLA_S3_STYLE") or "auto"
    if style not in _STYLES:
        raise ConfigError(f"PRUNELLA_S3_STYLE: expected one of {', '.join(_STYLES)}, found {style!r}; correct it")
    return style


def _meaning(error: Exception) -> str:
    """What is wrong with the settings. Never with an `@` in it: an endpoint may hold a password."""
    from botocore.exceptions import ProfileNotFound

    if (advice := credentials_advice(error)) is not None:
        return f"{advice} ({type(error).__name__})"
    found = str(error) if "@" not in str(error) else "one that is not shown, because it may hold a password"
    if isinstance(error, ProfileNotFound):
        return f"expected AWS_PROFILE to name a profile of the AWS configuration files, found: {found}; correct it or add one"
    if str(error).startswith("Invalid endpoint"):
        return f"expected AWS_ENDPOINT_URL like https://HOST:PORT, found: {found}; correct it"
    return f"expected settings that a client can be made of, found: {found}; correct AWS_REGION or the AWS configuration files"
