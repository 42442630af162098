"""Trains a VGG with Gravity: `python train/main.py --help`."""

import concurrent.futures
import logging
import os
import signal
import sys

from trainer import standard_streams
from trainer.config import ResolvedConfig, UsageError, UserError, resolve
from trainer.flags import parse
from trainer.jaxlib_fault import work_around
from trainer.preemption import StopRequest

log = logging.getLogger("train")


def main() -> int:
    """The exit code.

    0; 1 for what went wrong in the run; 2 for invalid flags; 75 if the same command with --resume
    resumes the run (SIGTERM, or another process of the run is lost); 130 for Ctrl-C.
    """
    try:
        config = resolve(parse(sys.argv[1:]))
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    handler = logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # libraries may give the root logger a handler of its own
    # In a thread of its own, because Ctrl-C cannot interrupt a compilation or a wait for the device, but it can end the
    # wait for that thread. History is on disk as each epoch ends, so there is nothing left to save then.
    notice = StopRequest()
    signal.signal(signal.SIGTERM, notice.receive)
    run = concurrent.futures.ThreadPoolExecutor(1).submit(_run, config, notice)
    try:
        # In pieces, because a signal that the system hands to another thread ends no wait of this one.
        while not concurrent.futures.wait([run], timeout=0.5).done:
            pass
        return run.result()
    except KeyboardInterrupt:
        log.error("interrupted; what was recorded so far is in the workdir")
        handler.flush()
        os._exit(130)


def _run(config: ResolvedConfig, notice: StopRequest) -> int:
    """Trains; the exit code."""
    work_around()  # before jax is imported
    from trainer import devices, loop, progress

    try:
        devices.join_processes(config)
    except UserError as error:
        log.error("error: %s", error)
        logging.shutdown()
        os._exit(error.exit_code)  # half a connection keeps the process from ending
    if not devices.primary():
        log.setLevel(logging.WARNING)
    try:
        devices.allow_transfers()
        devices.use_compilation_cache(config.compilation_cache)
        for hint in devices.hints(config.precision):
            log.info(hint)
        devices.check_arithmetic()
        with devices.lost_peers():
            loop.train(config, notice=notice)
    except UserError as error:
        log.error("error: %s", error)
        devices.leave(error.exit_code, together=isinstance(error, (progress.Diverged, progress.Preempted)))
        return error.exit_code
    except Exception:
        log.exception("error: this should not have happened")
        devices.leave(1, together=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(standard_streams.run(main))
