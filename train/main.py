"""Trains a VGG with Gravity: `python train/main.py --help`."""

import concurrent.futures
import logging
import os
import sys

import tyro
from config import Config, UsageError, UserError, resolve

log = logging.getLogger("train")


def main() -> int:
    """The exit code: 0, 1 for what went wrong in the run, 2 for flags that cannot be meant so, 130 for Ctrl-C."""
    try:
        config = resolve(tyro.cli(Config, prog="train/main.py"))
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # libraries may give the root logger a handler of its own
    # In a thread of its own, because Ctrl-C cannot interrupt a compilation or a wait for the device, but it can end the
    # wait for that thread. History is on disk as each epoch ends, so there is nothing left to save then.
    run = concurrent.futures.ThreadPoolExecutor(1).submit(_run, config)
    try:
        run.result()
    except UserError as error:
        log.error("error: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; what was recorded so far is in the workdir")
        handler.flush()
        os._exit(130)
    return 0


def _run(config: Config) -> None:
    import devices
    import loop

    devices.use_compilation_cache(config.compilation_cache)
    devices.check_arithmetic()
    loop.train(config)


if __name__ == "__main__":
    sys.exit(main())
