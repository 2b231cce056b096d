"""A plain-Python model of the queue's waiting line, for test_state_machine to compare with."""

from dataclasses import dataclass


@dataclass
class Job:
    """A job in the model."""

    name: str
    priority: str
    caller: str
    sequence: int
    work: int
    state: str = "queued"
    attempt: int = 0
    token: int = 0
    cancel: bool = False
    error: bool = False
    holder: str = ""
    lapsed: bool = False
    saved: bool = False


class Line:
    """One priority class: callers by the work they were served, then first come, first served."""

    def __init__(self) -> None:
        self.now = 0
        #: Also of callers without waiting jobs, until the class has caught up with them.
        self.served: dict[str, int] = {}

    def join(self, caller: str, waiting: set[str]) -> None:
        if caller not in waiting:
            self.served = {c: at for c, at in self.served.items() if at > self.now or c in waiting}
            self.served.setdefault(caller, self.now)

    def first(self, waiting: set[str]) -> str:
        return min(waiting, key=lambda caller: (self.served[caller], caller))

    def serve(self, caller: str, work: int) -> None:
        self.now = max(self.now, self.served[caller])
        self.served[caller] += work
