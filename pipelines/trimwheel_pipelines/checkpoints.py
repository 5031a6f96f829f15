"""What the watch loop holds of a model, written down so that a restart goes on from there.

Called by `loop`: `save` every few minutes, after segments were merged and at the end, `load` when a
model is first met. Without one the loop reads the model's records since its policy became stable
and the last hours of telemetry, and comes to the same verdict; with one it reads what is new.

A checkpoint lies beside the namespaces' prefixes, not in one: who writes records must not write
what drift was judged from. One that is missing, broken, or of another policy or promise is as none.
Arrays are plain (no pickles), and read within a limit.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from dataclasses import asdict, replace
from typing import Any, Final

import fsspec
import numpy as np

from trimwheel_pipelines.block_sums import BlockSums
from trimwheel_pipelines.covariates import CovariateAlarm
from trimwheel_pipelines.drift import Drift, DriftVerdict
from trimwheel_pipelines.drift_sums import ROW, DriftSums, Rise, Trials, Window
from trimwheel_pipelines.segment_files import answering
from trimwheel_pipelines.sessions import SessionMemory
from trimwheel_pipelines.signals import Telemetry
from trimwheel_pipelines.watching import Watched
from trimwheel_telemetry.change_detection import ChangeDetector
from trimwheel_workers.records.segments import deliver

log = logging.getLogger(__name__)

FORMAT: Final = 2
FOLDER: Final = ".trimwheel/checkpoints"
"""Below the root of records; no namespace can be called so."""
LARGEST: Final = 128 << 20
Arrays = dict[str, Any]
Document = dict[str, Any]


def save(root: str, account: str, uid: str, watched: Watched) -> None:
    """Write a model's checkpoint. Raises Unavailable when the store is away."""
    document, arrays = _state(watched)
    sink = io.BytesIO()
    text = np.frombuffer(json.dumps(document, sort_keys=True).encode(), np.uint8)
    np.savez(sink, document=text, **arrays)
    deliver(_folder(root, account), f"{uid}.npz", sink.getvalue())


def load(root: str, account: str, uid: str, watched: Watched) -> bool:
    """Take a model's checkpoint over into a new watch; whether there was one that fits.

    Raises Unavailable when the store is away.
    """
    try:
        with answering(root):
            system, folder = fsspec.url_to_fs(_folder(root, account))
            with system.open(f"{folder}/{uid}.npz", "rb") as stream:
                data = stream.read(LARGEST + 1)
    except FileNotFoundError:
        return False
    try:
        return _restored(data, watched)
    except Exception as error:
        # Whatever is wrong with it, records say the same again.
        log.warning("The checkpoint of %s cannot be read (%r). Reading records.", uid, error)
        return False


def keep_only(root: str, account: str, uids: set[str]) -> None:
    """Delete checkpoints of models that are gone. Raises Unavailable when the store is away."""
    with answering(root):
        system, folder = fsspec.url_to_fs(_folder(root, account))
        system.invalidate_cache()
    try:
        with answering(root):
            paths = [str(path) for path in system.ls(folder, detail=False)]
    except FileNotFoundError:
        return
    for path in paths:
        if path.rsplit("/", 1)[-1].removesuffix(".npz") not in uids:
            with answering(root):
                system.rm_file(path)


def _folder(root: str, account: str) -> str:
    return f"{root.rstrip('/')}/{FOLDER}/{account.replace('/', '_').replace(':', '_')}"


def _promise(watched: Watched) -> list[Any]:
    """What a checkpoint must be of, to be of any use."""
    watch = watched.watch
    settings = watch.settings if watch else None
    return [
        FORMAT,
        watch.digest if watch else "",
        watch.sums.since if watch else 0.0,
        settings.epsilon if settings else 0.0,
        settings.false_alarm_audits if settings else 0.0,
        settings.covariates.block if settings else 0.0,
    ]


def _state(watched: Watched) -> tuple[Document, Arrays]:
    watch, telemetry = watched.watch, watched.telemetry
    document: Document = {
        "promise": _promise(watched),
        "seen": sorted(watched.reader.seen),
    }
    arrays: Arrays = {}
    if watch is None or telemetry is None:
        return document, arrays
    sums = watch.sums
    document["drift"] = {
        "covariatesSince": sums.covariates_since,
        "trials": _trials_state(sums.trials),
        "sessions": _sessions_state(sums.sessions),
        "window": _window_state(sums.window),
        "harmful": _verdict_state(sums.harmful),
        "harmless": _verdict_state(sums.harmless),
    }
    arrays |= {"recent": sums.recent, "sessions": sums.sessions.known}
    if sums.window is not None:
        arrays["window"] = sums.window.sessions.known
    signals = [sums.score, *telemetry.sums.values()]
    document["signals"] = [[one.name, one.origin] for one in signals]
    arrays |= {f"signal{number}": one.sums for number, one in enumerate(signals)}
    document["telemetry"] = {
        "until": telemetry.until,
        "read": [[*key, moment] for key, moment in telemetry.read.items()],
    }
    return document, arrays


def _restored(data: bytes, watched: Watched) -> bool:
    if len(data) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes inside")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        document = json.loads(arrays["document"].tobytes())
        if document["promise"] != _promise(watched):
            return False
        if watched.watch is not None and watched.telemetry is not None:
            watched.watch.sums = _drift(document, arrays, watched.watch.sums)
            _restore_telemetry(document, arrays, watched.telemetry)
    watched.reader.seen = {(float(t), str(pod), int(n)) for t, pod, n in document["seen"]}
    return True


def _drift(document: Document, arrays: Any, fresh: DriftSums) -> DriftSums:
    state = document["drift"]
    recent = arrays["recent"]
    if recent.dtype != ROW:
        raise ValueError(f"recent audits of type {recent.dtype}")
    return replace(
        fresh,
        covariates_since=float(state["covariatesSince"]),
        trials=_trials(state["trials"]),
        sessions=SessionMemory(**state["sessions"], known=arrays["sessions"]),
        window=_window(state["window"], arrays),
        harmful=_verdict(state["harmful"]),
        harmless=_verdict(state["harmless"]),
        recent=recent,
        score=_signals(document, arrays, fresh.score.block)[0],
    )


def _restore_telemetry(document: Document, arrays: Any, telemetry: Telemetry) -> None:
    state = document["telemetry"]
    signals = _signals(document, arrays, telemetry.block)[1:]
    telemetry.sums = {one.name: one for one in signals}
    telemetry.until = float(state["until"])
    telemetry.read = {(name, pod): float(moment) for name, pod, moment in state["read"]}


def _signals(document: Document, arrays: Any, block: float) -> list[BlockSums]:
    return [
        BlockSums(name, float(origin), block, arrays[f"signal{number}"])
        for number, (name, origin) in enumerate(document["signals"])
    ]


def _trials_state(trials: Trials) -> Document:
    return {
        "epsilon": trials.epsilon,
        "threshold": trials.threshold,
        "watch": trials.watch.to_state(),
        "rises": [asdict(rise) for rise in trials.rises],
        "count": trials.count,
        "events": trials.events,
        "first": trials.first,
        "all_count": trials.all_count,
        "all_events": trials.all_events,
    }


def _trials(state: Document) -> Trials:
    watch = ChangeDetector.from_state(state["watch"])
    rises = [Rise(**rise) for rise in state["rises"]]
    return Trials(**{**state, "watch": watch, "rises": rises})


def _sessions_state(sessions: SessionMemory) -> Document:
    names = ("since", "salt", "limit", "span", "largest")
    return {name: getattr(sessions, name) for name in names}


def _window_state(window: Window | None) -> Document | None:
    if window is None:
        return None
    names = ("since", "bound", "level", "audits", "trials", "events", "log_e", "proven")
    plain = {name: getattr(window, name) for name in names}
    return plain | {"sessions": _sessions_state(window.sessions)}


def _window(state: Document | None, arrays: Any) -> Window | None:
    if state is None:
        return None
    sessions = SessionMemory(**state["sessions"], known=arrays["window"])
    return Window(**{**state, "sessions": sessions})


def _verdict_state(verdict: DriftVerdict | None) -> Document | None:
    return None if verdict is None else asdict(verdict) | {"verdict": verdict.verdict.value}


def _verdict(state: Document | None) -> DriftVerdict | None:
    if state is None:
        return None
    alarms = tuple(CovariateAlarm(**alarm) for alarm in state["alarms"])
    return DriftVerdict(**{**state, "verdict": Drift(state["verdict"]), "alarms": alarms})
