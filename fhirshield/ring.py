"""The key ring: one secret file, a key derived from it for each purpose (HKDF-SHA256, RFC 5869).

It seals page links (AES-256-GCM), digests views into version tokens and hashes values (keyed BLAKE2b). Replicas that share
the file understand each other's links and agree on tokens.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fhirshield.errors import Fault, OperatorError

BYTES = 32


class Ring:
    """Keys by purpose; purposes are fixed strings in the code, never input."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._keys: dict[str, bytes] = {}

    def key(self, purpose: str) -> bytes:
        """32 bytes for that purpose."""
        found = self._keys.get(purpose)
        if found is None:
            kdf = HKDF(SHA256(), BYTES, salt=b"fhirshield ring 1", info=purpose.encode())
            found = self._keys[purpose] = kdf.derive(self._secret)
        return found

    def seal(self, purpose: str, content: bytes) -> str:
        """Encrypt and authenticate; URL-safe text."""
        nonce = os.urandom(12)
        sealed = AESGCM(self.key(purpose)).encrypt(nonce, content, purpose.encode())
        return base64.urlsafe_b64encode(nonce + sealed).rstrip(b"=").decode()

    def open(self, purpose: str, text: str) -> bytes | None:
        """The content of what ``seal`` made, or None."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            return AESGCM(self.key(purpose)).decrypt(raw[:12], raw[12:], purpose.encode())
        except (ValueError, InvalidTag):
            return None

    def digest(self, purpose: str, content: bytes, size: int = 16) -> str:
        """A keyed digest as hex; ``size`` in bytes."""
        return hashlib.blake2b(content, digest_size=size, key=self.key(purpose)).hexdigest()


def load_key(path: Path, *, make: bool = False) -> tuple[bytes, bool]:
    """A secret file's bytes, and whether it was made just now. Raises OperatorError when it is missing or too short."""
    try:
        secret = path.read_bytes()
    except FileNotFoundError:
        if not make:
            raise OperatorError([Fault(str(path), "", "no such key file", f"make one: head -c {BYTES} /dev/urandom")]) from None
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        secret = os.urandom(BYTES)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secret)
            stream.flush()
            os.fsync(stream.fileno())
        return secret, True
    except OSError as error:
        raise OperatorError([Fault(str(path), "", f"cannot be read: {error}", "fix its permissions")]) from None
    if len(secret) < BYTES:
        raise OperatorError([Fault(str(path), "", f"holds {len(secret)} bytes, needs {BYTES}", "make a longer one")])
    return secret, False


def same(one: str, other: str) -> bool:
    """Constant-time comparison."""
    return hmac.compare_digest(one.encode(), other.encode())
