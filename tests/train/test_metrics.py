import io
import sys

from brh_jax.train.metrics import MetricsFile, Progress, clock, read_metrics


def test_rows_after_the_step_that_a_run_goes_on_from_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in range(1, 6):
        first.write(step, {"loss": float(step)})
    first.close()
    path.write_text(path.read_text() + '{"step": 6, "lo')  # killed while writing
    second = MetricsFile(path, resume_step=3)
    second.write(4, {"loss": 40.0})
    second.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert read_metrics(tmp_path / "nothing.jsonl") == []


def test_progress_says_step_rate_and_time_left(capsys):
    progress = Progress("work", 4, per_step=10, interval=0.0)
    for step in range(1, 5):
        progress.update(step, f"loss {step / 10:.4f}")
    lines = capsys.readouterr().out.splitlines()
    assert "1/4" in lines[0]
    assert "loss 0.1000" in lines[0]
    assert "images/s" in lines[1]
    assert "left" in lines[1]
    assert "took" in lines[-1]


def test_what_is_done_aside_does_not_count_towards_the_rate(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("brh_jax.train.metrics.time.monotonic", lambda: now[0])
    progress = Progress("work", 9, per_step=10)
    progress.update(1)
    now[0] += 1
    with progress.aside():
        now[0] += 100
    now[0] += 1
    assert progress.update(3) == 10  # two steps of ten images in two seconds


def test_clock():
    assert [clock(s) for s in (7, 750, 11_100)] == ["0:07", "12:30", "3:05:00"]


def test_a_notebook_has_one_line_with_a_bar(monkeypatch):
    """Its standard output is of ipykernel's, which says that it is no terminal."""

    class Stream(io.StringIO):
        pass

    Stream.__module__ = "ipykernel.iostream"
    monkeypatch.setattr(sys, "stdout", stream := Stream())
    progress = Progress("work", 4)
    for step in range(1, 5):
        progress.update(step)
    lines = stream.getvalue().split("\r")
    assert [line.split("]")[0].split("[")[1] for line in lines[1:]] == ["#" * n + "." * (20 - n) for n in (5, 10, 15, 20)]
    assert stream.getvalue().count("\n") == 1


def test_steps_that_differ_tell_the_time_gone_by_and_promise_none(capsys):
    progress = Progress("work", 2, unit="", interval=0.0)
    for step in range(3):
        progress.update(step, f"measure {step}")
    first, second, last = capsys.readouterr().out.splitlines()
    assert "0/2" in first and "measure 0" in first and first.endswith("after 0:00") and second.endswith("after 0:00")
    assert last.endswith("took 0:00") and "/s" not in first + second + last and "left" not in second
