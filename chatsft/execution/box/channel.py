"""Messages between the two processes: JSON with its length before it."""

import json
import os
import struct

MAX_BYTES = 16 * 1024**2


def send(descriptor: int, message: object) -> None:
    """Write one message."""
    data = json.dumps(message).encode()
    write_all(descriptor, struct.pack("I", len(data)) + data)


def receive(descriptor: int) -> object:
    """Read one message.

    Raises:
        EOFError: the other side has ended.
        ValueError: what came is too long, or no JSON.
    """
    (length,) = struct.unpack("I", read_exactly(descriptor, 4))
    if length > MAX_BYTES:
        raise ValueError(f"a message of {length:,} bytes; at most {MAX_BYTES:,} are taken")
    return json.loads(read_exactly(descriptor, length))


def read_exactly(descriptor: int, length: int) -> bytes:
    """Read so many bytes and not one more, so that what follows stays unread."""
    parts, missing = [], length
    while missing:
        part = os.read(descriptor, min(missing, 65536))
        if not part:
            raise EOFError("the other process has ended")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
