"""The one way that a digest of JSON is taken."""

import hashlib
import json

DIGEST_BYTES = 16


def json_digest(value: object) -> str:
    """Returns 128 bits of blake2b over canonical JSON, as 32 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES).hexdigest()
