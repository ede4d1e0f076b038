"""dataset.json's checksum of itself."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEAL = b'"sha256": "'  # the last key: the SHA-256 of the file with 64 zeros here


def seal(info: Mapping[str, Any]) -> bytes:
    """dataset.json's bytes: `info` for people, in the order given, and its own checksum at last."""
    text = json.dumps({**info, "sha256": "0" * 64}, indent=2).encode() + b"\n"
    head, mark, tail = text.rpartition(SEAL)
    return head + mark + hashlib.sha256(text).hexdigest().encode() + tail[64:]


def is_sealed(data: bytes) -> bool:
    """Whether dataset.json's bytes are those that `seal` made."""
    head, mark, tail = data.rpartition(SEAL)
    blank = head + mark + b"0" * 64 + tail[64:]
    return tail[:64] == hashlib.sha256(blank).hexdigest().encode()
