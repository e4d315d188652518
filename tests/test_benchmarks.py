"""Every benchmark at a tiny size, so that it does not rot."""

import pytest

from benchmarks import __main__ as benchmarks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_dynamics(capsys):
    assert benchmarks.main(["dynamics", "--tiny"]) == 0
    out = capsys.readouterr().out
    assert "directions + ranks + basins" in out and "of the forward pass" in out
    assert "cls -> cls block, torch.func.jacrev" in out and "values differ by" in out


def test_unknown_names(capsys):
    assert benchmarks.main(["nothing"]) == 2
    assert "name one of dynamics" in capsys.readouterr().err
