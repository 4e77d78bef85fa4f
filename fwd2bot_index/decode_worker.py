"""The process that decodes: reads requests from standard input and answers on standard output.

A request is one line of JSON with ``path`` and ``max_side``. The answer is one line of JSON with the ``id`` of the
content as soon as the file was read, and then one with either an ``error`` or the sizes, followed by the pixels: height
x width x 3 bytes. Nothing is pickled. It ends with its input. It imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, BinaryIO

from fwd2bot_index.decoding import content_id, decode_image, read_file
from fwd2bot_index.errors import ImageError


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    _send(answers, {"ready": True})
    for line in requests:
        request = json.loads(line)
        try:
            data = read_file(request["path"])
            _send(answers, {"id": content_id(data)})
            decoded = decode_image(data, max_side=request["max_side"])
        except ImageError as e:
            _send(answers, {"error": e.reason, "unreachable": e.unreachable})
            continue
        columns, rows = decoded.image.size
        sizes = {"columns": columns, "rows": rows, "width": decoded.width, "height": decoded.height}
        _send(answers, sizes, decoded.image.tobytes())


def _send(answers: BinaryIO, message: dict[str, Any], pixels: bytes = b"") -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.write(pixels)
    answers.flush()


def main() -> None:
    # Image libraries write to the terminal by themselves; only the answers may use the pipe.
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        serve(sys.stdin.buffer, answers)
    except BrokenPipeError:
        os._exit(0)  # nobody listens any more


if __name__ == "__main__":
    main()
