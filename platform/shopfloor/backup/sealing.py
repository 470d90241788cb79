"""Secrets in a backup: one file, encrypted under a key that the operator keeps elsewhere.

The key is any text that is long enough; scrypt makes Fernet's key of it, with a salt of its own for each backup.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from shopfloor.errors import UsageError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

SEALING_KEY = "SHOPFLOOR_BACKUP_KEY"
"""Variable with the key that seals the secrets of a backup, where no file is named."""
SHORTEST = 20
"""Characters of the shortest key that is taken."""
_SALT_BYTES = 16


def read_key(file: Path | None) -> str | None:
    """Return the operator's key, from a file or else from the variable; `None` where neither is given.

    Raises:
        UsageError: The file cannot be read, or the key is short.
    """
    try:
        key = file.read_text(encoding="utf-8").strip() if file else os.environ.get(SEALING_KEY, "").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The key file {file} cannot be read.", "Make one: openssl rand -hex 32 > FILE") from error
    if not key and file is None:
        return None
    if len(key) < SHORTEST:
        raise UsageError(
            f"The key has {len(key)} characters, and needs {SHORTEST}.", "Make one: openssl rand -hex 32 > FILE"
        )
    return key


def seal(values: dict[str, str], key: str) -> bytes:
    """Return the secrets encrypted."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return salt + _fernet(key, salt).encrypt(json.dumps(values, sort_keys=True).encode())


def unseal(content: bytes, key: str | None) -> dict[str, str]:
    """Return the secrets that `seal` encrypted.

    Raises:
        UsageError: There is no key, or it is another one.
    """
    from cryptography.fernet import InvalidToken

    remedy = f"Give the key that it was made with: --key-file FILE, or ${SEALING_KEY}."
    if key is None:
        raise UsageError("The secrets of the backup are sealed, and there is no key.", remedy)
    try:
        values: dict[str, str] = json.loads(_fernet(key, content[:_SALT_BYTES]).decrypt(content[_SALT_BYTES:]))
    except InvalidToken as error:
        raise UsageError("The key does not open the secrets of the backup.", remedy) from error
    return values


def _fernet(key: str, salt: bytes) -> Fernet:
    from cryptography.fernet import Fernet

    derived = hashlib.scrypt(key.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)
    return Fernet(base64.urlsafe_b64encode(derived))
