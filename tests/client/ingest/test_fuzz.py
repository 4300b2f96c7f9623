"""A short run of what `benchmarks/ingest.py --fuzz 600` does for ten minutes."""

from hypothesis import HealthCheck, given, settings
from support.dicom.mutations import Mutation, check, mutations


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(mutations)
def test_no_spoiled_folder_breaks_an_ingest(changes: list[Mutation]) -> None:
    check(changes)
