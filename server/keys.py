"""The names of every Redis key, and the Lua scripts that touch more than one of them atomically."""

from dataclasses import dataclass
from importlib import resources

SCRIPTS = ("enqueue", "start", "pulse", "finish", "give_back", "cancel", "leave")
GROUP = "workers"


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys share one hash tag, so that a Redis Cluster keeps them on one node."""

    namespace: str

    def _key(self, *parts: str) -> str:
        return ":".join((f"{{{self.namespace}}}", *parts))

    @property
    def jobs_stream(self) -> str:
        return self._key("jobs")

    @property
    def dead_stream(self) -> str:
        return self._key("dead")

    @property
    def counters_hash(self) -> str:
        return self._key("counters")

    @property
    def stats_hash(self) -> str:
        return self._key("stats")

    @property
    def models_hash(self) -> str:
        return self._key("models")

    @property
    def workers_zset(self) -> str:
        return self._key("workers")

    @property
    def done_channel(self) -> str:
        return self._key("done")

    def job_hash(self, job_id: str) -> str:
        return self._key("job", job_id)

    def tombstone(self, job_id: str) -> str:
        return self._key("tomb", job_id)

    def result_bytes(self, job_id: str, token: int, index: int) -> str:
        """The token is in the name: a worker that lost its lease cannot overwrite the visible picture."""
        return self._key("result", job_id, str(token), str(index))

    def worker(self, worker_id: str) -> str:
        return self._key("worker", worker_id)

    def for_job(self, job_id: str) -> list[str]:
        """KEYS of every script about one job, in the order that common.lua names them."""
        return [
            self.jobs_stream,
            self.counters_hash,
            self.dead_stream,
            self.job_hash(job_id),
            self.tombstone(job_id),
        ]


def load_script(name: str) -> str:
    folder = resources.files("server") / "lua"
    return (folder / "common.lua").read_text() + "\n" + (folder / f"{name}.lua").read_text()
