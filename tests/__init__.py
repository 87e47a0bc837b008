"""The tests mirror the folders of the project. Here they are `tests.…`, so that `tests/reference` is no `reference`."""
