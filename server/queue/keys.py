"""The name of every Redis key, declared once: Python reads it as `keys.NAME`, and so do the Lua scripts.

`scripts.prelude` writes the names that a script uses as a Lua table of the same form. The suffix of a name is its type.
"""

import re
from collections.abc import Callable


class FixedKey:
    """One key of the namespace; `keys.NAME` is its full name."""

    def __init__(self, name: str) -> None:
        self.parts, self.parameters = [name], list[str]()

    def __get__(self, keys: "Keys", owner: type) -> str:
        return ":".join((keys.root, *self.parts))


class KeyTemplate:
    """A family of keys, written as "name:{parameter}:..."; `keys.NAME(values)` is the full name of one."""

    def __init__(self, template: str) -> None:
        self.parts = template.split(":")
        self.parameters = re.findall(r"{(\w+)}", template)

    def __get__(self, keys: "Keys", owner: type) -> Callable[..., str]:
        def fill(*values: str | int) -> str:
            if len(values) != len(self.parameters):
                raise TypeError(f"a key of {self.parts} needs {self.parameters}, not {values}")
            return ":".join((keys.root, self.parts[0], *map(str, values)))

        return fill


class Keys:
    """All keys share one hash tag, so that a Redis Cluster keeps them on one node."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.root = f"{{{namespace}}}"

    # --- jobs ---------------------------------------------------------------------------------------

    probe = FixedKey("probe")  # written to see whether writes succeed
    counters_hash = FixedKey("counters")  # jobs by state, submissions, waiting work by model, virtual times
    job_hash = KeyTemplate("job:{job_id}")  # the record
    jobs_zset = KeyTemplate("jobs:{owner}")  # every job with a record, by sequence
    state_jobs_zset = KeyTemplate("state_jobs:{owner}:{state}")  # those in one state, or running, by sequence
    tombstone = KeyTemplate("tombstone:{job_id}")  # "STATE OWNER" of an ended job; outlives its record by a day
    resume_hash = KeyTemplate("resume:{job_id}")  # finished images and snapshots of a running job
    input_bytes = KeyTemplate("input:{job_id}")  # the source image of an edit, until the job ends
    #: The token is in the name: a worker that lost its lease cannot overwrite the visible image. The record's outputs
    #: name the tokens of the visible ones; all others expire.
    result_bytes = KeyTemplate("result:{job_id}:{token}:{index}")
    preview_bytes = KeyTemplate("preview:{job_id}:{index}:{number}")
    events_stream = KeyTemplate("events:{job_id}")  # only of a job that is followed
    idempotency_hash = KeyTemplate("idempotency:{owner}:{key}")  # the job of an Idempotency-Key
    result_cache = KeyTemplate("result_cache:{owner}:{request}:{checkpoint}")  # a job that succeeded with these
    dead_letters_stream = FixedKey("dead_letters")

    # --- waiting and leases -------------------------------------------------------------------------

    waiting_zset = KeyTemplate("waiting:{model}:{priority}:{caller}")  # waiting jobs of one caller, by sequence
    waiting_since_zset = KeyTemplate("waiting_since:{model}:{priority}")  # waiting jobs, by when they joined the class
    callers_zset = KeyTemplate("callers:{model}:{priority}")  # callers with waiting jobs, by virtual time
    debts_zset = KeyTemplate("debts:{model}:{priority}")  # virtual times of callers with none, while ahead of the class
    wakeup_list = KeyTemplate("wakeup:{model}")  # idle workers block on it
    leases_zset = KeyTemplate("leases:{model}")  # running jobs, by the end of their lease
    last_take = KeyTemplate("last_take:{worker}")  # the token of the last call of take.lua, and the job it got
    deadlines_zset = FixedKey("deadlines")  # unfinished jobs, by deadline, or by the next look at a running one
    ended_zset = FixedKey("ended")  # "ID STATE OWNER BYTES" of ended jobs, by when their record expires
    open_jobs_hash = FixedKey(
        "open_jobs"
    )  # waiting and running jobs, by owner; lines of batches by "OWNER batch MODEL"
    link_secret = FixedKey("link_secret")  # signs links to images
    rate_limit = KeyTemplate("rate_limit:{caller}")  # when the caller's allowance of requests is full again

    # --- channels -----------------------------------------------------------------------------------

    ended_channel = FixedKey("job_ended")
    answers_channel = KeyTemplate("answers:{gateway}")  # ends of the jobs that a gateway waits for, with their records
    updated_channel = FixedKey("job_updated")  # a followed job has a new event
    canceled_channel = FixedKey("job_canceled")  # to the worker that runs it

    # --- webhooks, batches, files -------------------------------------------------------------------

    webhook_owners_zset = FixedKey("webhook_owners")  # owners with webhooks to deliver, by when the next may be due
    webhooks_zset = KeyTemplate("webhooks:{owner}")  # by the time of their next attempt
    webhook_hash = KeyTemplate("webhook:{job_id}")
    webhook_endpoint_hash = KeyTemplate("webhook_endpoint:{owner}:{endpoint}")  # one whose last attempts failed
    batches_zset = FixedKey("batches")  # by the time of their next turn
    batch_hash = KeyTemplate("batch:{batch_id}")
    batch_index = KeyTemplate("batch_index:{batch_id}")  # where each line begins in the batch's file
    batch_errors = KeyTemplate("batch_errors:{batch_id}")
    batch_files_zset = KeyTemplate("batch_files:{batch_id}")  # files that its lines name
    batch_list = KeyTemplate("batch_list:{owner}")
    open_batches_zset = KeyTemplate("open_batches:{owner}")  # unfinished batches, by when they expire
    file_hash = KeyTemplate("file:{file_id}")
    file_bytes = KeyTemplate("file_bytes:{file_id}")
    file_list = KeyTemplate("file_list:{owner}")
    file_object_hash = KeyTemplate("file_object:{file_id}")  # name and size_bytes of content that lies in FLUID_RESULTS
    file_readers_zset = KeyTemplate("file_readers:{file_id}")  # batches that need the content, by when no longer
    #: "ID OWNER BYTES" of files and batches, by when they expire; a fourth part is what of it lies in Redis.
    stored_zset = FixedKey("stored")
    discarded_zset = FixedKey("discarded")  # names of uploads in FLUID_RESULTS, by when they are deleted
    stored_bytes_hash = FixedKey("stored_bytes")  # bytes that jobs, images, files and batches take, by owner

    # --- workers ------------------------------------------------------------------------------------

    stats_hash = FixedKey("stats")
    exemplars_hash = FixedKey("exemplars")  # trace, value and time of a recent observation, by bucket
    models_hash = FixedKey("models")
    replaced_hash = FixedKey("replaced")  # the model that a reload put in the place of another, by the other's id
    served_zset = FixedKey("served")  # FLUID_CHECKPOINT, line feed, id of a model that it meant, by the last heartbeat
    reloads_hash = FixedKey("reloads")
    crashes_hash = FixedKey("crashes")  # background tasks that crash, by process and task
    streams = KeyTemplate("streams:{process}")  # open event streams of a gateway, by owner
    streams_zset = FixedKey("stream_gateways")  # gateways with open event streams, by when they last counted
    workers_zset = FixedKey("workers")
    last_seen_zset = FixedKey("last_seen")  # workers by their last heartbeat, until they stop or are long gone
    worker_model = KeyTemplate("worker_model:{worker_id}")  # outlives a lost worker as long as `last_seen`
    worker = KeyTemplate("worker:{worker_id}")
