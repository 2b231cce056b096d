"""The names of the Redis keys that Python reads, and the Lua scripts that touch more than one key atomically.

Scripts form the other names themselves (lua/common.lua lists them all): which job a script touches, it often finds
out only while it runs.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys share one hash tag, so that a Redis Cluster keeps them on one node."""

    namespace: str

    def _key(self, *parts: str) -> str:
        return ":".join((self.root, *parts))

    @property
    def root(self) -> str:
        return f"{{{self.namespace}}}"

    # --- jobs ---------------------------------------------------------------------------------------

    def job_hash(self, job_id: str) -> str:
        return self._key("job", job_id)

    def tombstone(self, job_id: str) -> str:
        return self._key("tomb", job_id)

    def resume_hash(self, job_id: str) -> str:
        return self._key("resume", job_id)

    def input_bytes(self, job_id: str) -> str:
        return self._key("input", job_id)

    def result_bytes(self, job_id: str, token: int, index: int) -> str:
        """The token is in the name: a worker that lost its lease cannot overwrite the visible picture."""
        return self._key("result", job_id, str(token), str(index))

    def events_stream(self, job_id: str) -> str:
        return self._key("events", job_id)

    def preview_bytes(self, job_id: str, index: int, number: int) -> str:
        return self._key("preview", job_id, str(index), str(number))

    def hook_hash(self, job_id: str) -> str:
        return self._key("hook", job_id)

    @property
    def hooks_zset(self) -> str:
        return self._key("hooks")

    def batch_hash(self, batch_id: str) -> str:
        return self._key("batch", batch_id)

    def batch_lines(self, batch_id: str) -> str:
        return self._key("batch_lines", batch_id)

    def batch_errors(self, batch_id: str) -> str:
        return self._key("batch_errors", batch_id)

    @property
    def batches_zset(self) -> str:
        return self._key("batches")

    def batch_list(self, owner: str) -> str:
        return self._key("batch_list", owner)

    def file_hash(self, file_id: str) -> str:
        return self._key("file", file_id)

    def file_bytes(self, file_id: str) -> str:
        return self._key("file_bytes", file_id)

    def file_list(self, owner: str) -> str:
        return self._key("file_list", owner)

    def list_zset(self, owner: str) -> str:
        return self._key("list", owner)

    # --- the line and the leases --------------------------------------------------------------------

    def since_zset(self, model: str, priority: str) -> str:
        return self._key("since", model, priority)

    def leases_zset(self, model: str) -> str:
        return self._key("leases", model)

    def bell_list(self, model: str) -> str:
        return self._key("bell", model)

    @property
    def ended_zset(self) -> str:
        return self._key("ended")

    @property
    def dead_stream(self) -> str:
        return self._key("dead")

    @property
    def counters_hash(self) -> str:
        return self._key("counters")

    @property
    def done_channel(self) -> str:
        return self._key("done")

    @property
    def news_channel(self) -> str:
        return self._key("news")

    @property
    def cancels_channel(self) -> str:
        return self._key("cancels")

    # --- workers ------------------------------------------------------------------------------------

    @property
    def stats_hash(self) -> str:
        return self._key("stats")

    @property
    def models_hash(self) -> str:
        return self._key("models")

    @property
    def reloads_hash(self) -> str:
        return self._key("reloads")

    @property
    def workers_zset(self) -> str:
        return self._key("workers")

    def worker(self, worker_id: str) -> str:
        return self._key("worker", worker_id)
