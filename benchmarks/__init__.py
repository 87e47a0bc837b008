"""Programs that measure quire and print a table: ``python -m benchmarks.NAME [--json PATH]``.

Peers are measured in the same run, in turn with quire, and figures are medians. Nothing here is a test: a test that
depends on the clock is flaky, and flaky is broken.
"""
