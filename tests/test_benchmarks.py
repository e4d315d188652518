"""Every benchmark at a tiny size, so that it does not rot; that ours and the peers agree is checked by the benchmarks."""

import itertools
import json

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import measure

# What must stand in the table, for each: rows of ours and of the peer.
ROWS = {
    "teacher": ["tiny, brh_jax", "tiny, PyTorch eager, SDPA"],
    "raptor_step --parts=speed": ["brh_jax, teacher inside", "PyTorch, states from memory", "PyTorch, teacher inside"],
    "raptor_step --parts=memory": ["peak memory, PyTorch / ours"],
    "raptor_step --parts=compile": ["the step compiles, 3 layers"],
    "stage1": ["side by side, first quarter of the steps", "2 separate runs, first quarter of the steps"],
    "similarity": ["forward pass / forward pass and similarity"],
    "partition": ["k = 3, phases.max_cut", "k = 3, brute force"],
    "jacobian": [
        "28 px: 8 values, never formed, brh_jax",
        "28 px: 8 values, never formed, torch.func and scipy's svds",
        "28 px: the whole Jacobian and its SVD, torch.func",
        "28 px: cls -> cls block, torch.func.jacrev",
    ],
    "ranks": ["brh_jax, all 3 layers, all tokens", "scikit-learn, TruncatedSVD of all components, 2 layers, patches"],
    "dynamics": ["forward pass", "all of them"],
    "dmd": ["brh_jax.dynamics.dmd, rank 4", "PyDMD, rank 4"],
    "input": ["brh_jax, no workers, 1 threads", "DataLoader, no workers", "DataLoader, 1 workers"],
    "convert": ["weights_convert.convert", "transformers, from_pretrained"],
}
MORE = {"input": ["--workers=0,1", "--threads-ahead=1"]}


def test_every_benchmark_is_tested():
    assert {command.split()[0] for command in ROWS} == set(benchmarks.NAMES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("command", ROWS)
def test_tiny(command, tmp_path, capsys):
    name, *options = command.split()
    assert benchmarks.main([name, *options, *MORE.get(name, []), "--tiny", f"--json={tmp_path}/found.json"]) == 0
    out, found = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert found["benchmark"] == name and found["versions"]["jax"]
    rows = {row["what"]: row for row in found["rows"]}
    for row in ROWS[command]:
        assert row in out
        assert "skipped" not in rows[row]
        assert rows[row].get("seconds", 1) > 0 and rows[row].get("ratio", 1) > 0


def test_turns_alternate_and_short_work_is_repeated():
    called = []
    times = measure.in_turns(
        {name: measure.Side(lambda name=name: called.append(name)) for name in "ab"}, 3, least_seconds=1e-4, pause=0
    )
    turns = "".join(called)
    assert [len(times[name]) for name in "ab"] == [3, 3]
    # Warm-up, then three times each.
    assert "".join(side for side, _ in itertools.groupby(turns)) == "ab" * 4
    assert turns.count("a") > 5
    assert (times["a"] < 1e-3).all()


def test_outputs_that_differ_end_a_benchmark(capsys):
    arguments = measure.parser("nothing", "").parse_args([])
    report = measure.Report("nothing", arguments)
    report.agree("numbers", np.ones(3), np.ones(3) + 1e-8, 1e-6)
    with pytest.raises(measure.Disagreement, match="numbers differ by"):
        report.agree("numbers", np.ones(3), np.full(3, 1.1), 1e-6)
    with pytest.raises(measure.Disagreement):
        report.agree("numbers", np.full(3, np.nan), np.ones(3), 1e-6)


def test_unknown_names(capsys):
    assert benchmarks.main(["nothing"]) == 2
    assert "name one of teacher" in capsys.readouterr().err
