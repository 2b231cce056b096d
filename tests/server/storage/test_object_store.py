"""The store of finished images on a real folder: names, whole writes, true reasons, expired hours."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path

import pytest

from server.errors import SettingError, StorageUnavailable
from server.settings import Settings
from server.storage.backends import MARK, Place
from server.storage.object_names import expires_at, object_name
from server.storage.object_store import ObjectStore
from server.storage.reasons import remedy

pytestmark = pytest.mark.anyio
HOUR = 3600.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "results of all"
    path.mkdir()
    return path


@pytest.fixture
def store(folder: Path) -> ObjectStore:
    return ObjectStore(folder.as_uri(), "name space/1")


def test_a_name_never_ends_before_what_it_names() -> None:
    for at in (0.0, 1.0, HOUR - 1, HOUR, 1_800_000_000.5):
        name = object_name("n", "job_1", 3, 0, "png", at)
        ends = expires_at(name)
        assert ends is not None and at < ends <= at + HOUR, name
    assert name == "n/2027-01-15T09/job_1/3-0.png"
    assert expires_at("n/probe/w") is None and expires_at("n") is None


async def test_objects_are_written_whole_read_and_deleted(store: ObjectStore, folder: Path) -> None:
    name = object_name(store.namespace, "job_1", 1, 0, "png", 1e9)
    assert await store.get(name) is None and not await store.exists(name)
    await store.put(name, b"first")
    await store.put(name, b"second")  # repeated after a lost reply
    assert await store.get(name) == b"second" and await store.exists(name)
    assert {path for path in folder.rglob("*") if path.is_file()} == {folder / MARK, folder / name}
    await store.delete(name, name)
    assert await store.get(name) is None and store.trouble == ""


async def test_only_hours_that_have_passed_are_swept(store: ObjectStore, folder: Path) -> None:
    now = 1_800_000_000.0
    names = [object_name(store.namespace, f"job_{i}", 1, 0, "png", now + i * HOUR) for i in (-3, -3.1, 0, 1)]
    for name in names:
        await store.put(name, b"x")
    await store.probe("w1")
    other = ObjectStore(folder.as_uri(), "another service")
    foreign = object_name(other.namespace, "job_1", 1, 0, "png", 0)
    await other.put(foreign, b"x")
    [hour, next_hour] = await store.expired(now)
    both = await asyncio.gather(*(ObjectStore(folder.as_uri(), store.namespace).delete_hour(hour) for _ in range(2)))
    assert max(both) == 1 and await store.delete_hour(next_hour) == 1
    assert await store.expired(now) == []
    assert [await store.exists(name) for name in names] == [False, False, True, True]
    assert await other.exists(foreign) and not (folder / hour).exists()


async def test_a_lost_folder_is_no_missing_image_and_is_not_made_again(store: ObjectStore, folder: Path) -> None:
    """A share that is not mounted must neither end as a 410 nor fill the disk below it."""
    await store.put("n/a", b"x")
    moved = folder.rename(folder.with_name("moved"))
    for call in (store.get("n/a"), store.put("n/b", b"y"), store.expired(0), store.delete("n/a"), store.probe("w")):
        with pytest.raises(StorageUnavailable, match="has lost its folder"):
            await call
    assert store.trouble and remedy(store.trouble).startswith("Create or mount") and not folder.exists()
    moved.rename(folder)
    assert await store.get("n/a") == b"x"
    await store.probe("w")
    assert store.trouble == ""


async def test_another_folder_of_the_name_is_not_the_store(store: ObjectStore, folder: Path) -> None:
    """Below a share that is not mounted any more there is an empty folder, and a write in the moment of the loss makes
    one: both were taken for the store, whose images were gone and whose new ones filled the wrong disk."""
    await store.put("n/a", b"x")
    moved = folder.rename(folder.with_name("moved"))
    folder.mkdir()
    for call in (store.get("n/a"), store.put("n/b", b"y"), store.expired(0), store.probe("w")):
        with pytest.raises(StorageUnavailable, match="has lost its folder"):
            await call
    assert list(folder.iterdir()) == [] and "restart" in remedy(store.trouble)
    another = ObjectStore(folder.as_uri(), store.namespace)  # that of `fluid doctor`, or of a worker that was restarted
    await another.probe("doctor")
    with pytest.raises(StorageUnavailable, match="has lost its folder"):
        await store.get("n/a")
    shutil.rmtree(folder)
    copy = Path(shutil.copytree(moved, folder))  # another number, as after mounting a share again
    assert await store.get("n/a") == b"x"
    await store.probe("w")
    (copy / MARK).unlink()  # by a job that deletes old files
    assert await store.get("n/a") == b"x" and store.trouble == ""


async def test_a_mount_that_hangs_holds_up_nothing_else(
    store: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was looked at on the event loop, where no timeout ends a call of the kernel's."""
    await store.put("n/a", b"x")
    monkeypatch.setattr("server.storage.object_store.TIMEOUT_S", 0.2)
    mounted = threading.Event()
    monkeypatch.setattr(Place, "is_there", lambda self: mounted.wait(60))
    reading = asyncio.create_task(store.get("n/a"))
    with pytest.raises(StorageUnavailable, match=r"does not answer within 0\.2 s"):
        await reading
    mounted.set()
    monkeypatch.setattr("server.storage.object_store.TIMEOUT_S", 20.0)
    assert await store.get("n/a") == b"x"


async def test_the_probe_is_as_large_as_what_failed(
    store: ObjectStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for a probe and not for an image, a worker generated one image again and again without end."""
    sizes: list[int] = []

    def sync(folder: Path, name: str) -> None:
        sizes.append((folder / name).stat().st_size)
        if sizes[-1] > 5000:
            raise OSError("No space left on device (os error 28)")

    monkeypatch.setattr("server.storage.object_store.sync_file", sync)
    with pytest.raises(StorageUnavailable, match="is full"):
        await store.put("n/a", bytes(9000))
    with pytest.raises(StorageUnavailable, match="is full"):
        await store.probe("w")
    monkeypatch.setattr("server.storage.object_store.sync_file", lambda folder, name: sizes.append(0))
    await store.probe("w")
    monkeypatch.setattr("server.storage.object_store.sync_file", sync)
    await store.probe("w")
    assert sizes == [9000, 9000, 0, 4096] and store.trouble == ""


async def test_an_unreachable_bucket_quotes_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCESS_KEY_ID": "AKPLANTED", "SECRET_ACCESS_KEY": "planted", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = ObjectStore("s3://bucket/prefix", "n")
    with pytest.raises(StorageUnavailable) as caught:
        await store.put("n/a", b"x")
    assert caught.value.reason == store.trouble == "does not answer" and caught.value.__cause__ is None
    assert "planted" not in f"{caught.value!r} {store.trouble}".lower()


@pytest.mark.parametrize(
    "value", ["s3://", "s3://AK:SECRET@bucket/x", "s3://b/?key=1", "file://host/x", "file:///", "x"]
)
def test_a_wrong_place_is_refused_with_the_remedy(value: str) -> None:
    with pytest.raises(SettingError, match="must be redis, s3://bucket/prefix or file:///folder") as caught:
        Settings.from_env({"FLUID_RESULTS": value})
    assert "SECRET" not in str(caught.value).replace("AWS_SECRET_ACCESS_KEY", "")
