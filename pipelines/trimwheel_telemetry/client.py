"""The one Prometheus client: timeouts, chunks, warnings, and answers that say what is missing.

Used by the operator and the pipelines, always in a thread (it is synchronous). A thin layer over
`prometheus_api_client`, which carries the queries; ours are the parts it leaves open:

* every call has a timeout, towards the server as well;
* parameters travel in the body of a POST, so that a long selector fits, and POST is retried
  (asking twice is harmless here);
* `warnings` of an answer are read, because they mean that data is missing;
* ranges are cut below Prometheus's limit of 11,000 points a series;
* no data, NaN, stale, partial and unreachable are values (`answers`), never exceptions.

Only a query that Prometheus cannot parse raises: that is a defect of ours, not a state of the data.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from urllib3.util.retry import Retry

from trimwheel_api.errors import InvalidInput
from trimwheel_telemetry.answers import (
    Answer,
    Empty,
    NotANumber,
    Ok,
    Partial,
    Sample,
    Series,
    Stale,
    Unreachable,
)

POINTS_LIMIT: Final = 10_000
"""Points a series of one range query; Prometheus refuses more than 11,000."""
RAW_CHUNK_SECONDS: Final = 10_000.0
"""Span of one raw query: at most this many samples a series, scraping at most once a second."""
DEFAULT_TIMEOUT: Final = 5.0
DEFAULT_STALE_AFTER: Final = 60.0


class Prometheus:
    """Queries against one server. Safe to share between threads."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        stale_after: float = DEFAULT_STALE_AFTER,
        retries: int = 1,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`timeout` seconds for each request; data older than `stale_after` seconds is `Stale`."""
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.stale_after = stale_after
        self._session = _FormSession()
        retry = Retry(
            total=retries,
            backoff_factor=0.2,
            status_forcelist=[429, 502, 503, 504],
            allowed_methods={"GET", "POST"},
            raise_on_status=False,
        )
        self._connect = PrometheusConnect(
            url=self.url,
            headers=dict(headers) if headers else None,
            retry=retry,
            session=self._session,
            timeout=timeout,
            method="POST",
        )

    def instant(self, query: str, at: float | None = None) -> Answer:
        """A vector or scalar at one moment (now by default): `samples`.

        Prometheus looks back for the newest sample by itself here, so an instant answer cannot
        be `Stale`; evidence is read with `raw`, which keeps the scrape's own times.
        """
        params = {} if at is None else {"time": f"{at:.3f}"}
        rows = self._ask(lambda: self._connect.custom_query(query, params=self._limits(params)))
        if isinstance(rows, Unreachable):
            return rows
        pairs = [row for row in rows if isinstance(row, dict)] or _scalar(rows)
        samples = [
            Sample(row.get("metric", {}), float(row["value"][0]), float(row["value"][1]))
            for row in pairs
        ]
        kept = tuple(sample for sample in samples if not math.isnan(sample.value))
        gap = _gap(query, len(samples), len(kept), self._session.warnings)
        if isinstance(gap, tuple):
            return Partial(gap, "; ".join(gap), samples=kept)
        return gap or Ok(samples=kept)

    def range(self, query: str, start: float, end: float, step: float) -> Answer:
        """An expression over time: `series` with one point every `step` seconds in [start, end]."""
        if step <= 0 or end < start:
            raise InvalidInput("step", "must be positive, and end at or after start", step)
        rows: list[Any] = []
        warnings: list[str] = []
        for first, last in _chunks(start, end, step):
            params = self._limits({"start": f"{first:.3f}", "end": f"{last:.3f}"})
            found = self._ask(
                lambda params=params: self._connect.custom_query_range(
                    query, _moment(start), _moment(end), step=f"{step:g}", params=params
                )
            )
            if isinstance(found, Unreachable):
                return found
            rows += found
            warnings += self._session.warnings
        return self._series(query, rows, warnings, end, max(self.stale_after, step))

    def raw(self, selector: str, start: float, end: float) -> Answer:
        """The samples themselves, at the times of their scrapes, in (start, end]: `series`.

        `selector` is a plain selector such as `up{job="x"}`. What evidence is built from: no
        extrapolation, no look-back, resets visible.
        """
        rows: list[Any] = []
        warnings: list[str] = []
        first = start
        while first < end:
            last = min(first + RAW_CHUNK_SECONDS, end)
            query = f"{selector}[{math.ceil((last - first) * 1000)}ms]"
            params = self._limits({"time": f"{last:.3f}"})
            found = self._ask(
                lambda query=query, params=params: self._connect.custom_query(query, params=params)
            )
            if isinstance(found, Unreachable):
                return found
            rows += found
            warnings += self._session.warnings
            first = last
        return self._series(selector, rows, warnings, end, self.stale_after)

    def reachable(self) -> bool:
        """Whether the server answers a trivial query."""
        return isinstance(self.instant("vector(1)"), Ok)

    def close(self) -> None:
        """Close pooled connections."""
        self._connect.close()

    def _limits(self, params: dict[str, str]) -> dict[str, str]:
        # Whole milliseconds: Prometheus refuses durations with a fraction.
        return {**params, "timeout": f"{round(self.timeout * 1000)}ms"}

    def _ask(self, call: Any) -> list[Any] | Unreachable:
        """Run one query of the library; every way of getting no data becomes `Unreachable`."""
        self._session.warnings = ()
        try:
            return list(call())
        except PrometheusApiClientException as error:
            if str(error).startswith("HTTP Status Code 400"):
                raise InvalidInput("query", "must be PromQL", str(error)) from error
            return Unreachable(f"{self.url}: {error}")
        except requests.JSONDecodeError as error:
            return Unreachable(f"{self.url} does not answer like a Prometheus: {error}")
        except requests.RequestException as error:
            return Unreachable(f"{self.url}: {_root_cause(error)}")
        except (KeyError, TypeError, ValueError) as error:
            return Unreachable(f"{self.url} does not answer like a Prometheus: {error!r}")

    def _series(
        self,
        query: str,
        rows: Sequence[Any],
        warnings: Sequence[str],
        end: float,
        stale_after: float,
    ) -> Answer:
        series, points = _joined(rows)
        kept = sum(len(line.times) for line in series)
        gap = _gap(query, points, kept, tuple(warnings))
        if isinstance(gap, tuple):
            return Partial(gap, "; ".join(gap), series=series)
        if gap is not None:
            return gap
        age = min(end, time.time()) - max(float(line.times[-1]) for line in series)
        if age > stale_after:
            reason = f"{query}: the newest sample is {age:.0f} s old, more than {stale_after:g} s"
            return Stale(age, reason, series)
        return Ok(series=series)


class _FormSession(requests.Session):
    """Sends the parameters of a POST in its body, and keeps the warnings of the last answer.

    The library puts them into the URL and drops the warnings. `warnings` is one value a thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._local = threading.local()

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(getattr(self._local, "warnings", ()))

    @warnings.setter
    def warnings(self, value: Iterable[str]) -> None:
        self._local.warnings = tuple(value)

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        if str(method).upper() == "POST" and kwargs.get("params"):
            kwargs["data"] = kwargs.pop("params")
        response = super().request(method, url, *args, **kwargs)
        if response.status_code == requests.codes.ok:
            body = response.json()
            self.warnings = body.get("warnings") or () if isinstance(body, dict) else ()
        return response


def _gap(
    query: str, found: int, kept: int, warnings: tuple[str, ...]
) -> Empty | NotANumber | tuple[str, ...] | None:
    """What is wrong with an answer of `found` values of which `kept` are numbers."""
    if warnings:
        return warnings
    if not found:
        return Empty(f"{query}: no series matches")
    if not kept:
        return NotANumber(f"{query}: all {found} values are NaN")
    if kept < found:
        return (f"{query}: {found - kept} of {found} values are NaN",)
    return None


def _joined(rows: Sequence[Any]) -> tuple[tuple[Series, ...], int]:
    """Series of all chunks, joined by labels, without NaN; and how many points there were."""
    merged: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
    for row in rows:
        line = merged.setdefault(tuple(sorted(row["metric"].items())), {})
        line.update((float(moment), float(value)) for moment, value in row["values"])
    points = sum(len(line) for line in merged.values())
    series = []
    for labels, line in merged.items():
        times = np.array(sorted(line))
        values = np.array([line[moment] for moment in times])
        numbers = ~np.isnan(values)
        if numbers.any():
            series.append(Series(dict(labels), times[numbers], values[numbers]))
    return tuple(series), points


def _chunks(start: float, end: float, step: float) -> Iterable[tuple[float, float]]:
    """Spans of at most POINTS_LIMIT points on the grid start, start + step, ... up to end."""
    points = int((end - start) / step + 1e-9) + 1
    for first in range(0, points, POINTS_LIMIT):
        last = min(first + POINTS_LIMIT, points) - 1
        yield start + first * step, start + last * step


def _scalar(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """A scalar result is a bare [time, value] pair."""
    return [{"metric": {}, "value": rows}] if len(rows) == 2 else []


def _moment(unix: float) -> datetime:
    return datetime.fromtimestamp(unix, UTC)


def _root_cause(error: BaseException) -> str:
    """The innermost reason: what requests and urllib3 wrap three times."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    return str(reason or error)
