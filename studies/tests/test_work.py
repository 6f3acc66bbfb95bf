"""What one call of a study is given: one limit of time for all that it begins, one head for every result."""

import pytest

from isobatch_studies import work
from isobatch_studies.work import Work


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_limit_of_time_is_one_for_all_that_a_call_begins(clock, monkeypatch):
    given = []
    monkeypatch.setattr(work, "train_all", lambda groups, out, **options: given.append(options["budget"]) or {})
    call = Work(budget=60.0)
    for passed in (0.0, 45.0, 30.0):
        clock[0] += passed
        call.train([])
    assert given == [60.0, 15.0, 0.0]
    monkeypatch.setattr(work, "run_all", lambda *_, **options: given.append(options["ends"]))
    call.results(abs, [], name=str, read=dict)
    assert given[-1] == 160.0


def test_without_a_limit_nothing_ends(clock):
    call = Work()
    clock[0] += 1e9
    assert call.left() is None


def test_what_does_not_fit_is_replaced_and_the_rest_stays(monkeypatch):
    given = {}
    monkeypatch.setattr(work, "run_all", lambda *_, **options: given.update(options))
    Work(workers=3, device="cuda", on_done=print).results(abs, [], name=str, read=dict, workers=1, on_done=None)
    assert (given["workers"], given["on_done"], given["device"]) == (1, None, "cuda")


def test_runs_are_announced_where_somebody_listens():
    heard = []
    Work(on_estimate=lambda seconds, runs: heard.append((seconds, runs))).announce(7)
    Work().announce(7)
    assert heard == [(0.0, 7)]


def test_a_result_says_which_grid_it_is_of():
    head = Work(quick=True, grid="long").head("legw", {"title": "LEGW", "seeds": 3})
    assert head == {"study": "legw", "title": "LEGW", "quick": True, "grid": "long"}
