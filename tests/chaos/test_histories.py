"""10,000 random histories of each state machine, of which `make test` runs a hundred. Minutes."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from machines import machines

HISTORIES = 10_000

pytestmark = pytest.mark.timeout(7200)


@pytest.mark.parametrize("machine", machines(), ids=lambda machine: machine.__name__)
def test_ten_thousand_histories_break_no_promise(machine: type[RuleBasedStateMachine]) -> None:
    chosen = settings(
        max_examples=HISTORIES,
        stateful_step_count=60,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=chosen)
