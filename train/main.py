"""Trains a VGG with Gravity: `python train/main.py --help`."""

import concurrent.futures
import logging

from trainer import command
from trainer.config import ResolvedConfig, UserError, resolve
from trainer.flags import parse
from trainer.preemption import StopRequest

log = logging.getLogger("train")


def main() -> int:
    """The exit code.

    0; 1 for an error in the run; 2 for invalid flags; 75 if the same command with --resume resumes the
    run (after SIGTERM, SIGHUP or the loss of another process of the run); 130 for Ctrl-C.
    """
    return command.run(_main)


def _main(arguments: list[str]) -> int:
    config = resolve(parse(arguments))
    # In a thread, because Ctrl-C cannot interrupt a compilation or a wait for the device, but it can interrupt the wait
    # for that thread. History is written as each epoch ends, so nothing needs saving.
    notice = StopRequest()
    notice.listen()
    run = concurrent.futures.ThreadPoolExecutor(1).submit(_run, config, notice)
    try:
        # In short waits, because a signal delivered to another thread does not interrupt them.
        while not concurrent.futures.wait([run], timeout=0.5).done:
            pass
        return run.result()
    except KeyboardInterrupt:
        if command.interactive():  # a thread cannot be ended from outside, and the kernel must not end
            notice.give("an interrupt")
            run.result()
        else:
            log.error("interrupted; what was recorded so far is in the workdir")
            command.end_now(command.INTERRUPTED)
        return command.INTERRUPTED


def _run(config: ResolvedConfig, notice: StopRequest) -> int:
    """Trains; the exit code."""
    joined = False
    try:
        command.prepare_jax(config)
        from trainer import devices, jax_setup, loop, progress

        joined = True
        if not devices.primary():
            log.setLevel(logging.WARNING)
        jax_setup.use_compilation_cache(config.compilation_cache)
        for hint in jax_setup.hints(config.precision):
            log.info(hint)
        with devices.lost_peers():
            loop.train(config, notice=notice)
    except UserError as error:
        log.error("error: %s", error)
        if joined:
            devices.leave(error.exit_code, together=isinstance(error, (progress.Diverged, progress.Preempted)))
        elif config.num_processes != 1 and not command.interactive():
            command.end_now(error.exit_code)  # a half-open connection keeps the process from ending
        return error.exit_code
    except Exception:
        log.exception("error: this should not have happened")
        if joined:
            devices.leave(1, together=False)
        return 1
    return 0


if __name__ == "__main__":
    command.leave(main())
