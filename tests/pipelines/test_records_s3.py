"""Records on S3: what workers write arrives, outages are `Unavailable`, and no bucket is made.

The server is moto's, on loopback: the real protocol through s3fs, without anybody's account.
"""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import fsspec
import moto.backends
import pytest
from moto.server import ThreadedMotoServer
from tests.pipelines.test_merging import merge_all
from tests.workers.test_records_writer import record

from trimwheel_api.errors import Unavailable
from trimwheel_api.records import segment_day, segment_folder, segment_name
from trimwheel_pipelines.ownership import Claim, claim, delete_abandoned
from trimwheel_pipelines.records import RecordReader
from trimwheel_pipelines.retention import purge
from trimwheel_workers.records.segments import deliver, to_parquet

ROOT = "s3://audits/prod"
FOLDER = segment_folder(ROOT, "shop", "intent")
pytestmark = pytest.mark.slow


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """A server with one bucket, found by the variables that a pod would have."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    _forget_clients()
    boto3.client("s3").create_bucket(Bucket="audits")
    yield server
    server.stop()
    _forget_clients()
    moto.backends.get_backend("s3").reset()


def _forget_clients() -> None:
    """fsspec keeps a client for each address, and each test has a server of its own."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def write(sequence: int, started: float, *, lost: int = 0, data: bytes | None = None) -> None:
    name = segment_name("pod-a", started, sequence, 0, lost)
    deliver(FOLDER, name, to_parquet([]) if data is None else data)


def reader() -> RecordReader:
    return RecordReader(ROOT, "shop", "intent")


def test_what_is_written_is_read_once_and_counted(s3: ThreadedMotoServer) -> None:
    write(1, 1000.0, lost=3)
    found = reader()
    assert found.read_new().lost == 3
    write(2, 1001.0, lost=4)
    assert found.read_new().lost == 4
    assert found.read_new().lost == 0
    assert [segment.sequence for segment in found.segments()] == [1, 2]


def test_a_broken_object_is_set_aside_and_retention_removes_all(s3: ThreadedMotoServer) -> None:
    write(1, 1000.0, data=b"garbage")
    found = reader()
    found.read_new()
    assert found.corrupt == 1 and found.segments() == []
    assert len(found.files.aside()) == 1
    assert purge(found, 2000.0) == 1
    assert found.files.aside() == []


def test_a_misspelt_bucket_is_an_error_and_is_not_created(s3: ThreadedMotoServer) -> None:
    with pytest.raises(Unavailable, match="record store s3://adits"):
        deliver("s3://adits/prod/shop/intent", segment_name("a", 1.0, 1, 0, 0), to_parquet([]))
    assert [one["Name"] for one in boto3.client("s3").list_buckets()["Buckets"]] == ["audits"]


def test_a_store_that_goes_away_is_unavailable_to_both_sides(s3: ThreadedMotoServer) -> None:
    write(1, 1000.0)
    found = reader()
    s3.stop()
    with pytest.raises(Unavailable, match="record store s3://audits"):
        found.segments()
    with pytest.raises(Unavailable, match="record store s3://audits"):
        write(2, 1001.0)


def test_segments_are_merged_claimed_and_deleted_with_their_model(s3: ThreadedMotoServer) -> None:
    for number in range(4):
        started = 3600.0 + 10 * number
        name = segment_name("pod-a", started, number, 1, 1)
        deliver(f"{FOLDER}/{segment_day(started)}", name, to_parquet([record(number)]))
    watching = reader()
    assert watching.read_new().lost == 4
    assert merge_all(watching, now=7200.0) == 4
    assert len(watching.read_new()) == 0 and watching.segments()[0].count == 4
    assert reader().read_new().lost == 4 and len(reader().read(0.0)) == 4
    claim(ROOT, "shop", "intent", Claim("u", "ours", 0.0, 60.0))
    assert delete_abandoned(ROOT, "other", set(), 1000.0) == 0
    assert delete_abandoned(ROOT, "ours", {("shop", "intent")}, 1000.0) == 0
    assert delete_abandoned(ROOT, "ours", set(), 1000.0) == 1
    assert reader().segments() == []
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket="audits")
