"""Secrets that this process knows from its environment, masked in words for people: log lines, error texts, records, XCom.

Decides what counts as a secret: the values of `SECRET_VARIABLES`, and the password inside any address that a variable holds.
Only words are masked, never names, keys or settings: a password that happens to be a word of ours must not break the ledger.
Never a reason to be careless with a secret: this is the net under code that did not mean to write one.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

MASK = "***"
#: Variables whose whole value is a secret.
SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PRUNELLA_AIRFLOW_PASSWORD",
    "PRUNELLA_ALERT_WEBHOOK",
    "AIRFLOW__API__SECRET_KEY",
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__CORE__FERNET_KEY",
)
#: Fields of records that hold words for people, and in them what a foreign library put into the text of its error.
_WORDS = frozenset({"message", "reason", "detail", "value", "evidence", "warnings"})
#: The password of `scheme://user:password@host`, as in PRUNELLA_DATABASE, MLFLOW_BACKEND_STORE_URI and HTTPS_PROXY.
_PASSWORD = re.compile(r"://[^:/@\s]*:([^@\s]+)@")
#: What is shorter is masked nowhere, or every line would lose words. Source: the default of Airflow 3.3.2's
#: `[logging] min_length_masked_secret`, 2026-11.
_MIN_LENGTH = 5
#: Passwords of quick trials, which are words of every line. Source: Airflow 3.3.2 spares its own name too.
_SPARED = ("airflow", "prunella")


def secrets(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Every secret of the environment in each form that it may take in a text, longest first."""
    known = [environment.get(name, "") for name in SECRET_VARIABLES]
    known += [urlsplit(address).path for address in known if "://" in address]  # http libraries name host and path apart
    known += [password for value in environment.values() if "://" in value for password in _PASSWORD.findall(value)]
    forms = {form for secret in known for form in (secret, unquote(secret), quote(secret, safe=""))}
    found = [form for form in forms if len(form) >= _MIN_LENGTH and form not in _SPARED]
    return sorted(found, key=lambda form: (-len(form), form))


def redacted(text: str) -> str:
    """`text` with every secret of this process's environment masked."""
    return _without(secrets(), text)


def _without(hidden: list[str], text: str) -> str:
    for secret in hidden:
        text = text.replace(secret, MASK)
    return text


def redacted_words(document: Any) -> Any:
    """An encoded record with every secret masked in the fields that hold words; all else as it is."""
    return _masked(document, secrets(), is_words=False)


def _masked(document: Any, hidden: list[str], *, is_words: bool) -> Any:
    """A document with every string masked that is words, or is within a field that holds words, however deep."""
    if isinstance(document, dict):
        return {name: _masked(item, hidden, is_words=is_words or name in _WORDS) for name, item in document.items()}
    if isinstance(document, list):
        return [_masked(item, hidden, is_words=is_words) for item in document]
    return _without(hidden, document) if is_words and isinstance(document, str) else document
