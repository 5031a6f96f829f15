"""The audit record: its columns, and where its segments lie.

Workers write Parquet segments of these columns, pipelines read them. A record speaks of one audited
request: scores at every exit and predictions at every exit of the *reference run* (the dense
policy's compute signature, full depth), what was served, and what the stable and candidate
policies answer. Inputs are kept only under `audits.inputs: sampled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

SCHEMA_VERSION = 1
ColumnType = Literal["string", "float64", "float32", "int32", "int64", "bool", "list<float32>",
                     "list<int32>"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a segment."""

    name: str
    type: ColumnType
    help: str
    nullable: bool = False


COLUMNS: tuple[Column, ...] = (
    Column("id", "string", "Server-made id, hex; the audit was chosen by its keyed hash."),
    Column("time", "float64", "Unix seconds at which the request was answered."),
    Column("session", "string", "blake2b-8 hex of the session key; the id when there is none."),
    Column(
        "first_in_session",
        "bool",
        "First audit of this session that this worker remembers; evidence goes by `session`.",
    ),
    Column("u", "float64", "Keyed hash of the id in [0, 1)."),
    Column("propensity", "float64", "q: audited iff u < q."),
    Column("epoch", "int64", "Assignment epoch that was served."),
    Column("model_digest", "string", "Model artifact."),
    Column("tokens", "int32", "Input length in tokens."),
    Column("arm", "string", "Arm that served."),
    Column("digest", "string", "Policy that served."),
    Column("exit", "int32", "Exit that answered; the number of exits for full depth."),
    Column("layers", "int32", "Layers run for the answer."),
    Column("prediction", "int32", "Class that was answered."),
    Column("latency", "float32", "Seconds."),
    Column("scores", "list<float32>", "Learned score at each exit, reference run."),
    Column("predictions", "list<int32>", "Class at each exit and, last, at full depth."),
    Column("stable_digest", "string", "Stable policy at the time."),
    Column("stable_prediction", "int32", "What it answers."),
    Column("stable_exit", "int32", "At which exit."),
    Column("candidate_digest", "string", "Candidate at the time.", nullable=True),
    Column("candidate_prediction", "int32", "What it answers.", nullable=True),
    Column("candidate_exit", "int32", "At which exit.", nullable=True),
    Column("text", "string", "The input, if inputs are kept.", nullable=True),
    Column("tenant", "string", "Whose request, if known; deletion goes by it.", nullable=True),
)

TENANT_HEADER = "x-tenant-id"

_MOST_DIGITS = 20
"""Of a number in a segment's name, with what stands before it: more fit no float or column."""
META_NAMESPACE = "trimwheel.namespace"
META_MODEL = "trimwheel.model"
"""Keys in a segment's metadata: whose records it holds. Segments of 0.1.0 have neither; one that
names another model than the folder it lies in is refused."""
META_LOSSES = "trimwheel.losses"
"""Key in a merged segment's metadata: JSON of [Unix time, lost audits] of each of its sources."""


def segment_folder(root: str, namespace: str, model: str) -> str:
    """Folder of a model's segments below the records address."""
    return f"{root.rstrip('/')}/{namespace}/{model}"


def segment_day(started: float) -> str:
    """Folder of a segment below its model's: the UTC day of its first record.

    A month of segments is too much to list every few seconds.
    """
    return datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d")


def segment_name(pod: str, started: float, sequence: int, records: int, lost: int) -> str:
    """File name of a segment.

    `started` is the Unix time of its first record; `lost` counts audits that this worker chose but
    could not record since its previous segment: missing data must travel with the data.
    """
    return f"{round(started * 1000):015d}-{pod}-{sequence:06d}-n{records}-lost{lost}.parquet"


def parse_segment_name(name: str) -> tuple[float, str, int, int, int]:
    """(started, pod, sequence, records, lost) of a file name; ValueError on another name."""
    stem = name.rsplit("/", 1)[-1]
    if not stem.endswith(".parquet"):
        raise ValueError(f"segment name: must end with .parquet, but got {stem!r}")
    started, rest = stem.removesuffix(".parquet").split("-", 1)
    pod, sequence, count, lost = rest.rsplit("-", 3)
    if any(len(part) > _MOST_DIGITS for part in (started, sequence, count, lost)):
        raise ValueError(f"segment name: numbers must be short, but got {stem[:40]!r}")
    return (
        int(started) / 1000,
        pod,
        int(sequence),
        int(count.removeprefix("n")),
        int(lost.removeprefix("lost")),
    )
