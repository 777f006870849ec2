"""Progress without a terminal is plain lines."""

from odelt_eqx import progress
from odelt_eqx.progress import Progress


def test_plain_lines_have_the_count_the_rate_the_time_left_and_the_figures(capfd, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress("train", 10, done=4) as bar:
        bar.show(loss=0.25)
        bar.advance(3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: 7/10 [")
    assert "loss 0.25" in lines[0]
    assert "it/s" in lines[0] or "s/it" in lines[0]
    assert "\r" not in lines[0]


def test_a_stage_is_named_when_it_begins(capfd, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with Progress("evaluate", 10) as bar:
        bar.stage("sampling")
        bar.advance(10)
        bar.stage("comparing")
    first, *_, last = capfd.readouterr().err.splitlines()
    assert first.startswith("evaluate, sampling: 0/10 [")
    assert last.startswith("evaluate, comparing: 10/10 [")
