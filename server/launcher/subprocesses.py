"""Spawns child processes that cannot outlive this one, and stops them in order."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

# The child asks the kernel for SIGTERM at our death, then becomes the real program. A launcher rather than
# preexec_fn, which is unsafe in a threaded process; the setting survives execv. The comparison closes the race
# in which we died before the child asked.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("parent died during start")
os.execv(sys.argv[2], sys.argv[2:])
"""


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    keep_fds: Sequence[int] = (),
    quiet: bool = False,
    pipe: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start `command` (absolute path first) so that it dies with us.

    `quiet` drops its output; `pipe` gives all of it to `stdout` of the result, and lets only this user read the files
    that it creates. It gets its own session: Ctrl-C in a terminal reaches the whole foreground group, but children have
    to stop in order, not all at once.
    """
    output = subprocess.PIPE if pipe else subprocess.DEVNULL if quiet else None
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command],
        env=dict(env) if env is not None else None,
        pass_fds=tuple(keep_fds),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if pipe else output,
        umask=0o077 if pipe else -1,
    )


def stop(process: "subprocess.Popen[bytes]", *, grace_s: float) -> int:
    """Send SIGTERM, then SIGKILL after the grace period; returns the exit status."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


async def stop_async(process: "subprocess.Popen[bytes]", *, grace_s: float) -> int:
    """Do the same as `stop`, without blocking the event loop."""
    return await asyncio.to_thread(stop, process, grace_s=grace_s)
