"""The tripwire trips on a candidate's fault, and not on anybody else's."""

from __future__ import annotations

import pytest

from trimwheel_workers.tripwire import Tripwire

# C / c: candidate-bearing batch failed / fine; S / s: stable-only batch failed / fine.
CASES = {
    "nothing ever fails": ("cscscsc", False),
    "three failures in a row": ("CCC", True),
    "three of the last five": ("CcCcC", True),
    "three spread over more than five": ("CccCccC", False),
    "isolated failures": ("CccccCccccCcccc", False),
    "stable fails as well": ("SCCC", False),
    "stable failed long ago": ("SsssssCCC", True),
    "stable only": ("SSSSS", False),
}


@pytest.mark.parametrize(("batches", "trips"), CASES.values(), ids=CASES.keys())
def test_it_trips_on_three_bad_batches_of_five(batches: str, trips: bool) -> None:
    wire = Tripwire()
    tripped = False
    for batch in batches:
        if batch in "Cc":
            tripped = tripped or wire.saw_candidate_batch(batch == "C")
        else:
            wire.saw_stable_batch(batch == "S")
    assert tripped is trips
