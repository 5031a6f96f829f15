"""Entry of the engine process: `python -m trimwheel_workers.engine FD`, started by the front alone.

Reads its configuration from the socket, loads the model, says READY, and serves. What cannot be
cured by another start (a wrong digest, a broken artifact) is reported as permanent.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys

from trimwheel_api.errors import InvalidInput
from trimwheel_workers.engine.config import EngineConfig
from trimwheel_workers.engine.frames import Decoder, Kind, encode

_LOG = logging.getLogger("trimwheel_workers.engine")
_WARM_SIZES = (1, 2, 8)


def main() -> int:
    """0 when the front ended it, 1 when the model could not be loaded."""
    # The front decides when the engine ends (it closes the socket), also when a whole process
    # group gets a signal; otherwise answers in hand would be lost while the front drains.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s engine: %(message)s",
    )
    sock = socket.socket(fileno=int(sys.argv[1]))
    config = _configuration(sock)
    if config is None:
        return 0
    try:
        serve(sock, config)
    except InvalidInput as error:
        _LOG.error("the model cannot be served: %s", error)
        sock.sendall(encode(Kind.FAILED, {"error": error.sentence()}))
        return 1
    return 0


def serve(sock: socket.socket, config: EngineConfig) -> None:
    """Load, report, serve. Raises InvalidInput when the model cannot be loaded."""
    # Only here, so that the front's death while we start is noticed before torch is imported.
    import torch

    from trimwheel_workers.engine.loop import EngineLoop
    from trimwheel_workers.engine.runner import Runner
    from trimwheel_workers.engine.warm_up import warm_up
    from trimwheel_workers.model.artifact import load
    from trimwheel_workers.model.measured import dtype_comparison

    torch.set_num_threads(config.threads)
    torch.set_num_interop_threads(1)
    model = load(config.model_path, config.model_digest or None, config.dtype)  # type: ignore[arg-type]
    runner = Runner(model)
    warm_up(runner, [size for size in _WARM_SIZES if size <= config.max_batch])
    # A full collection with torch loaded takes 90 ms; what is alive now stays alive.
    gc.collect()
    gc.freeze()
    _LOG.info(
        "model %s on cpu (no GPU is used), %d thread(s), pid %d, in %s (asked for: %s; %s)",
        model.digest,
        config.threads,
        os.getpid(),
        model.dtype,
        config.dtype,
        dtype_comparison(),
    )
    _LOG.info("fastest ways here: %s", runner.shape.kernels)  # fmt: skip
    sock.sendall(encode(Kind.READY, runner.shape.to_wire()))
    EngineLoop(sock, config, runner).run()


def _configuration(sock: socket.socket) -> EngineConfig | None:
    """The first frame; None when the front is gone."""
    decoder = Decoder()
    while data := sock.recv(65536):
        for kind, body in decoder.feed(data):
            assert kind is Kind.CONFIG, f"the first frame is the configuration, got {kind!r}"
            return EngineConfig.from_wire(body)
    return None


if __name__ == "__main__":
    sys.exit(main())
