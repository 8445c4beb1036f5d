"""A decoder process: decodes one upload after another under limits of memory and CPU time.

`service/submission/decoder.py` starts it, hands it open files and kills it. It is a plain Python
process of its own, neither a fork of the API, which has threads, nor one of its modules: it
imports Pillow and nothing of the service but the reading of pictures. Once its socket is closed
it ends.
"""

import json
import math
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from service.core import malloc
from service.core.errors import InvalidImage, UnsupportedMedia
from service.core.upload_types import MESSAGE_BYTES, UploadKind
from service.submission import images

BASE_MEMORY_BYTES: Final = 256 * 2**20
"""Address space of the interpreter, its libraries and one upload with its copies: 110 MiB."""
MEMORY_BYTES_A_PIXEL: Final = 14
"""The most that any format took was 12: turned, transparent, with a profile."""
READING_CPU_SECONDS: Final = 4
"""To take a file apart and open it, whatever its size."""
CPU_SECONDS: Final = 4
CPU_SECONDS_A_MEGAPIXEL: Final = 0.25
"""To decode it; honest files take a tenth of it on the machine of `python -m bench.uploads`."""


NICENESS: Final = 15
"""Below the API, whose other requests do not wait for uploads where there are few cores."""


class _TooLarge(Exception):
    """Raised where a picture has more pixels than this request may decode."""


def _limit(max_pixels: int) -> None:
    """Set what holds for the whole process."""
    memory = BASE_MEMORY_BYTES + MEMORY_BYTES_A_PIXEL * max_pixels
    for name, wanted in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 4 * max_pixels + 64 * 2**20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, most = resource.getrlimit(name)
        bound = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(name, (bound, bound))
    # Where memory runs out, the kernel ends a decoder rather than the API.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _allow_cpu(seconds: float) -> None:
    """Let the kernel end this process once it has computed for so many more seconds."""
    soft = math.ceil(time.process_time() + seconds)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _decode(request: dict[str, Any], source: int, target: int) -> dict[str, Any]:
    data = os.pread(source, request["size"], 0)

    def on_size(pixels: int) -> None:
        if pixels > request["most_pixels"]:
            raise _TooLarge(pixels)
        _allow_cpu(CPU_SECONDS + CPU_SECONDS_A_MEGAPIXEL * pixels / 1e6)

    _allow_cpu(READING_CPU_SECONDS)
    try:
        with os.fdopen(os.dup(target), "wb") as out:
            picture = images.normalise(
                data,
                out,
                kind=UploadKind(request["kind"]),
                max_pixels=request["max_pixels"],
                on_size=on_size,
            )
    except _TooLarge as error:
        return {"pixels": error.args[0]}
    except (InvalidImage, UnsupportedMedia) as error:
        return {"error": error.code, "detail": error.detail}
    except MemoryError:
        return {"error": InvalidImage.code, "detail": "takes too much memory to decode"}
    return {
        "format": picture.format.value,
        "width": picture.width,
        "height": picture.height,
        "sha256": picture.sha256,
        "as_sent": picture.as_sent,
    }


def main() -> None:
    """Serve the socket whose descriptor is the first argument.

    The second is the pixel limit, the third the descriptor of the shared memory.
    """
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)  # the API ends it, after the uploads that come in
    malloc.keep_freed()  # small pictures follow one another; after a large one the process is ended
    os.nice(NICENESS)
    _limit(int(sys.argv[2]))
    connection, small = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[3])
    connection.send(b"{}")
    while True:
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
        if not message:
            return
        target, *on_disk = files
        source = on_disk[0] if on_disk else small
        try:
            answer = _decode(json.loads(message), source, target)
        finally:
            for file in files:
                os.close(file)
        connection.send(json.dumps(answer).encode())


if __name__ == "__main__":
    main()
