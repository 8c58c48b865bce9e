"""The table of transitions, exhaustively."""

import itertools

import pytest

from app.jobs.states import ENDED, LEASED, TRANSITIONS, Event, destination, origins
from modelpress.contract.job import State


@pytest.mark.parametrize("state", ENDED)
@pytest.mark.parametrize("event", Event)
def test_an_ended_state_is_never_left(state: State, event: Event) -> None:
    assert (state, event) not in TRANSITIONS


@pytest.mark.parametrize("state", [state for state in State if state not in ENDED])
def test_every_other_state_leads_to_an_end(state: State) -> None:
    reached = {state}
    for _ in State:
        reached |= {after for (before, _), after in TRANSITIONS.items() if before in reached}
    assert reached & set(ENDED)


def test_only_a_leased_job_succeeds_fails_or_stops() -> None:
    for event in (Event.SUCCEED, Event.FAIL, Event.RETRY, Event.RELEASE, Event.STOP):
        assert set(origins(event)) <= set(LEASED)


def test_a_job_that_is_being_cancelled_can_only_be_cancelled() -> None:
    ends = {after for (before, _), after in TRANSITIONS.items() if before is State.CANCELLING}
    assert ends == {State.CANCELLING, State.CANCELLED}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_origins_and_destination_say_what_the_table_says(state: State, event: Event) -> None:
    assert (state in origins(event)) == ((state, event) in TRANSITIONS)
    if state in origins(event) and event is not Event.CANCEL:
        assert destination(event) is TRANSITIONS[state, event]
