"""The keys of clients, as a file or the environment lists them; nothing here shows or repeats one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from configs.environment import API_KEYS, read_environment

FROM_ENVIRONMENT = "environment"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY = re.compile(r"[!-~]{16,512}")
_FORM = (
    "each line must be NAME:KEY, the name of 1 to 64 letters, digits or any of . _ -, "
    "the key of 16 to 512 visible ASCII characters without spaces"
)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key and whose it is. Keys of one name share caches; those of different names share nothing."""

    tenant: str
    secret: str = field(repr=False)


def read_api_keys(source: str | None) -> tuple[ApiKey, ...]:
    """The keys; none when there is no `source`, and then anybody is answered.

    Args:
        source: a file, or 'environment' for the variable TRIPTYCH_API_KEYS.

    Raises:
        ValueError: there is a source but no key in it, or something else. The message repeats nothing of the content.
    """
    if source is None:
        return ()
    if source == FROM_ENVIRONMENT:
        text, where = read_environment().api_keys, API_KEYS
        if text is None:
            raise ValueError(f"ingress.api_keys: {API_KEYS} is not set where the ingress runs")
    else:
        where = f"ingress.api_keys {source}"
        try:
            text = Path(source).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not ASCII text"
            raise ValueError(f"{where} cannot be read: {reason}") from None
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        tenant, _, secret = line.strip().partition(":")
        if _NAME.fullmatch(tenant) is None or _KEY.fullmatch(secret) is None:
            raise ValueError(f"{where}, line {number}: {_FORM}")
        keys.append(ApiKey(tenant, secret))
    if not keys:
        raise ValueError(f"{where} holds no key: {_FORM}")
    if len({key.secret for key in keys}) != len(keys):
        raise ValueError(f"{where} has a key twice")
    return tuple(keys)
