"""The refusals of the queue's scripts, which name a limit and how much of it is used, as errors for the caller."""

from collections.abc import Mapping

from server.errors.requests import QueueFull, RateLimited, RequestError

MIB = 1 << 20
RETRY_WHEN_FULL_S = 5  # the gateway replaces it with an estimate where it has one
RETRY_WHEN_USED_UP_S = 60  # memory is free again when something expires


def job_refusal(
    outcome: str, used: str, owner: str, model: str, limits: Mapping[str, float], max_jobs: int
) -> RequestError | None:
    """The error of a limit of jobs that enqueue.lua names; None if the outcome is no such limit."""
    if outcome == "full":
        return QueueFull(
            f"{used} jobs are waiting for {model}, the limit is {limits['max_queue']} (FLUID_MAX_QUEUE). Try later.",
            retry_after_s=RETRY_WHEN_FULL_S,
        )
    text = {
        "busy": f"{used} jobs of {owner!r} wait or run, the limit is {max_jobs} (FLUID_MAX_JOBS).",
        "share": f"{used} jobs of {owner!r} wait. Of the {limits['max_queue']} places for {model} "
        "(FLUID_MAX_QUEUE), less those of other keys, one key may have a share of "
        f"{limits['queue_share']:g} (FLUID_QUEUE_SHARE).",
        "lines": f"{used} lines of {owner!r}'s batches for {model} wait or run, the limit is "
        f"{limits['max_batch_lines']} (FLUID_MAX_BATCH_LINES).",
        "webhooks": f"{used} webhooks of {owner!r} are not delivered yet, the limit is {limits['max_webhooks']} "
        "(FLUID_MAX_WEBHOOKS). Repair their endpoints, or leave 'webhook' out.",
    }.get(outcome)
    param = "webhook" if outcome == "webhooks" else None
    return RateLimited(f"{text} Try later.", param=param, retry_after_s=1) if text else None


def memory_refusal(
    outcome: str, used: str, owner: str, limits: Mapping[str, int], param: str | None = None
) -> RequestError:
    """The error of a script's outcome key_bytes or bytes: the memory of this owner, or of all, is used up."""
    of_key = outcome == "key_bytes"
    limit = limits["max_key_bytes" if of_key else "max_bytes"]
    whose, setting = (repr(owner), "FLUID_MAX_KEY_MIB") if of_key else ("all callers", "FLUID_MAX_MIB")
    text = (
        f"Jobs, images, files and batches of {whose} take {int(used) / MIB:.1f} MiB, and this request would take "
        f"them beyond the limit of {limit / MIB:.1f} MiB ({setting}). Delete files, or wait until images expire "
        "(FLUID_RESULT_TTL_S)."
    )
    error = RateLimited if of_key else QueueFull
    return error(text, param=param, retry_after_s=RETRY_WHEN_USED_UP_S)
