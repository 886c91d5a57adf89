"""Scenarios: the arithmetic of steps, and names that can be read back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciss.errors import CissError
from ciss.scenarios import SETUPS, Scenario, parse_base_name, parse_scenario


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Any scenario that fits its number of classes."""
    increment = draw(st.integers(1, 40))
    steps = draw(st.integers(1, 12))
    base = draw(st.integers(1, 120))
    order = draw(st.sampled_from(["", "a", "b", "j"]))
    setup = draw(st.sampled_from(SETUPS))
    if draw(st.booleans()) and draw(st.booleans()):
        return Scenario(base, 0, base, order, setup)
    return Scenario(base, increment, base + steps * increment, order, setup)


@given(scenarios())
def test_the_steps_partition_the_classes(scenario: Scenario) -> None:
    steps = [scenario.new_classes(step) for step in range(scenario.n_steps)]
    assert [label for step in steps for label in step] == list(range(1, scenario.n_classes + 1))
    assert len(steps[0]) == scenario.base
    assert {len(step) for step in steps[1:]} <= {scenario.increment}
    outputs = scenario.classes_per_step
    assert outputs == (1 + len(steps[0]), *map(len, steps[1:]))
    assert sum(outputs) == 1 + scenario.n_classes


@given(scenarios())
def test_what_was_seen_is_all_that_was_new_so_far(scenario: Scenario) -> None:
    for step in range(scenario.n_steps):
        new = [label for s in range(step + 1) for label in scenario.new_classes(s)]
        assert list(scenario.seen_classes(step)) == new


@given(scenarios())
def test_a_name_can_be_read_back(scenario: Scenario) -> None:
    spelled = scenario.name.removesuffix(f"-{scenario.setup}")
    parsed = parse_scenario(spelled, scenario.n_classes, scenario.setup)
    assert parsed == scenario
    assert parsed.name == scenario.name


@given(scenarios())
def test_a_base_name_says_what_step_0_depends_on(scenario: Scenario) -> None:
    again = parse_base_name(scenario.base_name, scenario.n_classes)
    assert again.new_classes(0) == scenario.new_classes(0)
    assert again.order == scenario.order
    assert again.base_name == scenario.base_name
    if scenario.increment:
        assert again.setup == scenario.setup
    assert scenario.track(0) == scenario.base_name
    for step in range(1, scenario.n_steps):
        assert scenario.track(step) == scenario.name


@given(scenarios(), scenarios())
def test_names_are_equal_only_for_what_is_equal(one: Scenario, other: Scenario) -> None:
    if one.n_classes != other.n_classes:
        return
    fields = [(s.base, s.increment, s.order, s.increment and s.setup) for s in (one, other)]
    assert (one.name == other.name) == (fields[0] == fields[1])
    assert one.name != other.base_name or one.increment == 0


@given(scenarios(), st.integers(-3, 20))
def test_a_step_that_does_not_exist(scenario: Scenario, step: int) -> None:
    if 0 <= step < scenario.n_steps:
        assert len(scenario.new_classes(step)) > 0
        return
    with pytest.raises(CissError, match=re.escape(f"step {step} does not exist")):
        scenario.new_classes(step)


@pytest.mark.parametrize(
    ("name", "n_classes", "outputs"),
    [
        ("15-1", 20, (16, 1, 1, 1, 1, 1)),
        ("15-5", 20, (16, 5)),
        ("19-1", 20, (20, 1)),
        ("10-1", 20, (11, *[1] * 10)),
        ("5-3", 20, (6, 3, 3, 3, 3, 3)),
        ("100-50", 150, (101, 50)),
        ("100-10b", 150, (101, 10, 10, 10, 10, 10)),
        ("50-50", 150, (51, 50, 50)),
        ("14-1", 19, (15, 1, 1, 1, 1, 1)),
        ("offline", 20, (21,)),
        ("offlinea", 20, (21,)),
    ],
)
def test_published_scenarios(name: str, n_classes: int, outputs: tuple[int, ...]) -> None:
    assert parse_scenario(name, n_classes).classes_per_step == outputs


def test_setups_coincide_where_nothing_comes_later() -> None:
    assert parse_scenario("offline", 20, "disjoint").name == "offline"
    assert parse_scenario("15-1", 20, "disjoint").base_name == "15-disjoint"
    assert parse_scenario("15-1", 20).base_name == parse_scenario("15-5", 20).base_name == "15"


@pytest.mark.parametrize(
    "name",
    ["", "15", "15-", "-1", "15-1-1", "15_1", "15-1A", "15-1ab", "a15-1", "15.0-1", " 15-1", "٣-١"],
)
def test_a_name_of_another_form(name: str) -> None:
    with pytest.raises(CissError, match="15-1"):
        parse_scenario(name, 20)


@pytest.mark.parametrize("name", ["15-3", "20-1", "21-1", "0-1", "15-0", "15-6", "00-5"])
def test_a_scenario_that_does_not_fit(name: str) -> None:
    with pytest.raises(CissError, match=f"scenario '{name}' does not fit 20 classes"):
        parse_scenario(name, 20)


def test_an_unknown_setup() -> None:
    with pytest.raises(CissError, match="'sequential' is unknown; choose one of overlapped"):
        parse_scenario("15-1", 20, "sequential")


@pytest.mark.parametrize(
    "name", ["", "0", "21", "fifteen", "15-1", "15-next", "15-overlapped", "015"]
)
def test_a_base_name_that_is_none(name: str) -> None:
    with pytest.raises(CissError):
        parse_base_name(name, 20)
