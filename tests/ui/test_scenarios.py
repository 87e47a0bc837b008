"""The scenarios as data: names that can be used, moments that exist."""

from __future__ import annotations

import pytest

from quire.ui.scenarios import MOMENTS, SCENARIOS, scenario


@pytest.mark.parametrize("one", SCENARIOS, ids=lambda one: one.name)
def test_a_scenario_is_a_story_about_requests(one) -> None:
    assert scenario(one.name) is one and one.name.isidentifier()
    assert one.calls and all(call.path.startswith("/v1/") for call in one.calls)
    assert one.narration and {moment for moment, _ in one.narration} <= set(MOMENTS)
    assert one.contrast is None or one.contrast[0].isidentifier()


def test_another_name_is_an_error_that_says_which_there_are() -> None:
    with pytest.raises(KeyError, match="there are prefix"):
        scenario("nonsense")
