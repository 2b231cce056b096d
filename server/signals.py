"""The signals that stop a process of the service."""

import signal


def stop_signals() -> list[signal.Signals]:
    """SIGTERM and SIGINT, and SIGHUP, with which a terminal says goodbye, unless `nohup` has it ignored."""
    found = [signal.SIGTERM, signal.SIGINT]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return found
