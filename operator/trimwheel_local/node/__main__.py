"""`python -m trimwheel_local.node`: the node of one cluster. The supervisor starts it."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from trimwheel_local.layout import Layout
from trimwheel_local.names import DEFAULT_FAKE_GPUS
from trimwheel_local.node import agent


def main() -> None:
    """Parse the arguments and run until SIGTERM."""
    parser = argparse.ArgumentParser(description="Run pods as local processes.")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--fake-gpus", type=int, default=DEFAULT_FAKE_GPUS)
    parser.add_argument("--path", default="", help="folders to put on the containers' PATH")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    folders = [str(Path(sys.executable).parent), arguments.path, "/usr/local/bin", os.defpath]
    path = ":".join(folder for folder in folders if folder)
    layout = Layout(arguments.state, arguments.index)
    asyncio.run(agent.run(layout, arguments.fake_gpus, path))


if __name__ == "__main__":
    main()
