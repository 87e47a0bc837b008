"""The main test of the control plane: any order of events, and every output still equals the request alone."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.reference.control.machine import DraftsAhead, SchedulerMachine


class Synchronous(SchedulerMachine):
    """Each result is delivered before the next plan is made."""

    depths = (0,)


class RunAhead(SchedulerMachine):
    """Plans are made and launched up to two steps before a result is back."""

    depths = (1, 2)


@pytest.mark.timeout(0)
@pytest.mark.parametrize("machine", [Synchronous, RunAhead, DraftsAhead])
def test_every_output_equals_the_request_alone(machine: type[SchedulerMachine], request: pytest.FixtureRequest) -> None:
    thorough = request.config.getoption("--thorough")
    examples = 5000 if thorough else 200  # of each machine: 15,000 and 600 runs in all
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=60, deadline=None))
