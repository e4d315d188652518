"""Every benchmark at a tiny size, so that it does not rot; that ours and the peers agree is checked by the benchmarks."""

import itertools
import json

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import accelerator, measure, operations, parity

TINY = "a tiny ViT with random weights"
# What must stand in the table, for each: rows of ours and of the peer.
ROWS = {
    "teacher --plain-attention": ["tiny, brh_jax", "tiny, brh_jax, plain attention", "tiny, PyTorch eager, SDPA"],
    "raptor_step --parts=speed --plain-attention": [
        "brh_jax, teacher inside",
        "brh_jax, plain attention, teacher inside",
        "PyTorch, states from memory",
        "PyTorch, teacher inside",
    ],
    "raptor_step --parts=memory": ["peak memory, PyTorch / ours"],
    "raptor_step --parts=compile": ["the step compiles, 3 layers"],
    "raptor_step --parts=operations": ["backward: products", "forward: products", "teacher: products"],
    "stage1": ["side by side, first quarter of the steps", "2 separate runs, first quarter of the steps"],
    "similarity": ["forward pass / forward pass and similarity"],
    "partition": ["k = 3, phases.max_cut", "k = 3, brute force"],
    "jacobian": [
        "28 px: 8 values, never formed, brh_jax",
        "28 px: 8 values, never formed, torch.func and scipy's svds",
        "28 px: the whole Jacobian and its SVD, torch.func",
        "28 px: cls -> cls block, torch.func.jacrev",
        "28 px: 8 Lyapunov exponents over 3 layers, brh_jax",
    ],
    "ranks": ["brh_jax, all 3 layers, all tokens", "scikit-learn, TruncatedSVD of all components, 2 layers, patches"],
    "dynamics": ["forward pass", "all of them"],
    "dmd": ["brh_jax.dynamics.dmd, rank 4", "PyDMD, rank 4"],
    "input": ["brh_jax, no workers, 1 threads", "DataLoader, no workers", "DataLoader, 1 workers"],
    "convert": ["weights_convert.convert", "transformers, from_pretrained"],
    "parity": [f"{TINY}: 8 images, highest precision", f"{TINY}: 8 images, jax's default precision"],
    "fidelity": [f"{TINY}, k = 2: after {count} images" for count in (8, 16, 24, 32)],
}
MORE = {"input": ["--workers=0,1", "--threads-ahead=1"]}


def test_every_benchmark_is_tested():
    assert {command.split()[0] for command in ROWS} | {"accelerator"} == set(benchmarks.NAMES)


def test_an_operation_is_counted_without_those_inside_it():
    """A loop of 10 ns with two operations in it, one of which has a part; then one of its own."""
    events = [(0, -10, "loop"), (1, -4, "dot"), (2, -1, "part"), (6, -3, "add"), (12, -5, "dot")]
    assert sorted(operations._alone(events)) == [("add", 3e-9), ("dot", 3e-9), ("dot", 5e-9), ("loop", 3e-9), ("part", 1e-9)]


def test_operations_are_told_apart_by_their_names():
    named = {
        "jit(update)/transpose(jvp(Blocks))/while/body/checkpoint/rematted_computation/mlp/erf": "backward, recomputed",
        "jit(update)/transpose(jvp(Blocks))/while/body/checkpoint/mlp/dot_general": "backward",
        "jit(update)/ViT/ViT.rollout/while/body/attn/dot_general": "teacher",
        "jit(update)/jvp(Blocks.rollout)/while/body/attn/dot_general": "forward",
        "jit(update)/add": "optimiser, loss and the rest",
    }
    assert {name: operations.purpose(name) for name in named} == named
    assert operations.kind("ynn_fusion.3", "") == operations.kind("fusion.1", "jit(f)/dot_general") == "products"
    assert operations.kind("wrapped_reduce-window", "") == operations.kind("fusion.2", "jit(f)/reduce_sum") == "sums"
    assert operations.kind("while.9", "jit(f)/while") == "loops"
    assert operations.kind("multiply_fusion", "jit(f)/mul") == "element by element"


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


@pytest.mark.slow
def test_states_without_torch(tmp_path, capsys, monkeypatch):
    def missing(*others, **where):
        raise measure.Skipped("torch is not installed")

    monkeypatch.setattr(measure, "load_torch", missing)
    assert parity.main(["--tiny", f"--json={tmp_path}/found.json"]) == 0
    skipped, ours = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert skipped["skipped"] == "torch is not installed"
    assert "differs from ours at the highest precision" in ours["remark"] and ours["difference"] < 1e-4


@pytest.mark.long
def test_accelerator_tiny(tmp_path, capfd, monkeypatch):
    """All of it runs, each in its process, and once more there is nothing left to do; the parts are tested above, in this one."""
    command = ["accelerator", "--tiny", f"--out={tmp_path}"]
    assert benchmarks.main(command) == 0
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["command"].split()[0] for row in results] == [
        *("parity", "teacher", "raptor_step", "raptor_step", "jacobian", "ranks", "fidelity")
    ]
    assert all(row["rows"] and row["taken"] > 0 and row["machine"] for row in results)
    page = (tmp_path / "table.md").read_text()
    for row in ("tiny, PyTorch eager, SDPA", f"{TINY}, k = 2: after 32 images", "peak memory, PyTorch / ours"):
        assert f"| {row} |" in page
    monkeypatch.setattr(accelerator, "run", None)
    assert benchmarks.main(command) == 0
    assert "7 of 7 are there" in capfd.readouterr().out
    assert (tmp_path / "table.md").read_text() == page


@pytest.fixture
def ran(monkeypatch):
    """Commands in the order in which they were run; each gives what `answers` has for its first word, or a row."""
    commands, answers, now = [], {}, [0.0]

    def run(command, limit, *, highest):
        name = command.split()[0]
        commands.append(command)
        now[0] += answers.get("seconds", 1.0)
        if isinstance(answer := answers.get(name), BaseException):
            raise answer
        return answer or {"machine": "a machine", "rows": [{"what": name, "seconds": 1.5}]}

    monkeypatch.setattr(accelerator, "run", run)
    monkeypatch.setattr(accelerator, "monotonic", lambda: now[0])
    return commands, answers


def accelerated(folder, *options):
    """Runs the plan; gives (exit status, results by first word)."""
    status = benchmarks.main(["accelerator", "--tiny", f"--out={folder}", *options])
    return status, [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_what_an_accelerator_did_is_kept_when_it_is_interrupted(ran, tmp_path):
    commands, answers = ran
    answers["jacobian"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        accelerated(tmp_path)
    assert len(commands) == 5 and len((tmp_path / "results.jsonl").read_text().splitlines()) == 4
    page = (tmp_path / "table.md").read_text()
    assert page.startswith("a machine.") and "| parity | `parity --arch=vits14 --tiny` | 1.5 s |" in page
    assert "Not run yet:" in page and "- `ranks --arch=vits14 --tiny`" in page
    del answers["jacobian"], commands[:]
    status, results = accelerated(tmp_path)
    assert status == 0 and len(results) == 7
    assert [command.split()[0] for command in commands] == ["jacobian", "ranks", "fidelity"]
    assert "Not run yet" not in (tmp_path / "table.md").read_text()


def test_what_failed_on_an_accelerator_is_said_and_tried_again(ran, tmp_path, capsys):
    commands, answers = ran
    answers["ranks"] = {"failed": "RESOURCE_EXHAUSTED: out of | memory"}
    status, results = accelerated(tmp_path)
    assert status == 1 and len(results) == 7
    assert "1 failed" in capsys.readouterr().out
    assert (
        "| failed | `ranks --arch=vits14 --tiny` | RESOURCE_EXHAUSTED: out of \\| memory |" in (tmp_path / "table.md").read_text()
    )
    del answers["ranks"], commands[:]
    status, results = accelerated(tmp_path)
    assert status == 0 and [command.split()[0] for command in commands] == ["ranks"]
    assert not any("failed" in row for row in results)


def test_nothing_is_begun_on_an_accelerator_that_cannot_end(ran, tmp_path, capsys):
    """All take 200 s here. After the forward pass that is 2.9 times what was expected, which goes for those to come."""
    commands, answers = ran
    answers["seconds"] = 200
    status, results = accelerated(tmp_path, "--minutes=10")
    assert status == 0 and [command.split()[0] for command in commands] == ["parity", "teacher", "ranks"]
    assert "not begun, about 429 s with 200 s left: raptor_step" in capsys.readouterr().out
    assert accelerated(tmp_path, "--minutes=0.1")[1] == results


def test_the_minutes_that_remain_on_an_accelerator_are_for_distilling(ran, tmp_path):
    commands, _ = ran
    accelerated(tmp_path, "--minutes=10", "--only=fidelity,parity", "--source=one", "--source=two words", "--images=photos")
    parts = [command.split(" --minutes=") for command in commands]
    assert [part[0].split(" --images")[0] for part in parts] == [
        *("parity --weights=one --tiny", "parity --weights='two words' --tiny"),
        *("fidelity --weights=one", "fidelity --weights='two words'"),
    ]
    # 598 s, half of them less what starting takes; the first took one second.
    assert [float(part[1]) for part in parts[2:]] == [4.48, 9.45]


def test_the_plan_of_an_accelerator(tmp_path, capsys):
    assert benchmarks.main(["accelerator", f"--out={tmp_path}/there"]) == 2
    assert "jax finds no accelerator here (cpu)" in capsys.readouterr().err
    assert not (tmp_path / "there").exists()
    assert benchmarks.main(["accelerator", f"--out={tmp_path}", "--only=parrity"]) == 2
    assert "did you mean parity?" in capsys.readouterr().err


def test_a_process_of_an_accelerators_plan():
    found = accelerator.run("partition --tiny", 300, highest=True)
    assert found["benchmark"] == "partition" and found["rows"]
    assert "did you mean --tiny?" in accelerator.run("partition --tinny", 300, highest=False)["failed"]
    assert accelerator.run("partition --tiny", 0.05, highest=True)["failed"].startswith("stopped, as it had not ended")


def test_cells_of_an_accelerators_table():
    page = accelerator.table(
        [
            {
                "command": "step",
                "machine": "a card",
                "rows": [
                    {"what": "ours", "seconds": 0.01234, "per_second": 5186.2, "of_ceiling": 0.47},
                    {"what": "PyTorch eager", "seconds": 0.014, "ratio": 1.1345, "remark": "as it is"},
                    {"what": "PyTorch torch.compile", "skipped": "not here", "remark": "skipped: not here"},
                    {"what": "peak, brh_jax", "peak_gb": 3.4},
                ],
                "notes": ["a ceiling"],
            }
        ],
        [],
    )
    assert page.splitlines()[6:] == [
        "| ours | `step` | 0.01234 s, 5,186 images/s, 47% |  |  |",
        "| PyTorch eager |  |  | 0.014 s; as it is | 1.13 |",
        "| PyTorch torch.compile |  |  | skipped: not here |  |",
        "| peak, brh_jax |  | 3.40 GB |  |  |",
        "",
        "- `step`: a ceiling",
    ]
