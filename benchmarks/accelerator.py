"""Every figure of an accelerator that is asked for here, most valuable first, in so many minutes.

Parity with PyTorch at the highest precision; the forward pass and the Raptor's step in bfloat16 beside eager PyTorch and
torch.compile, for ViT-B and ViT-S at 64 and 256 images, with cuDNN's attention and without; peak memory; Jacobians, Lyapunov
exponents and ranks; and in the minutes that remain a real distillation of --source on --images.

Each is a benchmark of its own, in a process of its own. DIR/results.jsonl gets a line as soon as one ends, DIR/table.md is made
from these lines. Nothing is begun that would not end in time. The same command again skips what is there, not what failed.

python -m benchmarks accelerator --minutes=25 --out=DIR
python -m benchmarks accelerator --minutes=25 --out=DIR --source=vit_tiny --images=photos --eval=labelled
"""

import argparse
import contextlib
import itertools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from benchmarks import measure
from brh_jax.command import Parser
from brh_jax.errors import UserError, did_you_mean, expect

PATIENCE = 4  # times what it is expected to take, then it is stopped
SPARE = 30  # seconds that starting and ending a distillation may take beside its own minutes


class Item(NamedTuple):
    """A benchmark to run.

    Attributes:
        command: name and options; what its result is known by.
        seconds: that it is expected to take, a guess for a large GPU.
        highest: whether jax multiplies matrices at its highest precision, as PyTorch does in float32.
        rest: whether it takes all the time that is left, `seconds` or more.
    """

    command: str
    seconds: float
    highest: bool = False
    rest: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is not there yet; returns the exit status."""
    begun = monotonic()
    parser = Parser("benchmarks accelerator", __doc__)
    parser.add_argument("--minutes", type=float, default=25.0, help="for all of it")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets results.jsonl and table.md")
    parser.add_argument("--source", action="append", default=[], help="weights, anything that brh_jax.load takes; may come again")
    parser.add_argument("--arch", default="vits14", help="of the random weights that stand for --source where there is none")
    parser.add_argument("--images", default="", help="folder to distil on; nothing is distilled without it and --source")
    parser.add_argument("--eval", default="", help="folder to measure the Raptor on, labelled or not; part of --images without")
    parser.add_argument("--k", type=int, default=2, help="phases of the distillation")
    parser.add_argument("--batch-size", type=int, default=64, help="of the distillation")
    parser.add_argument("--only", default="", help="names of benchmarks, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="so small that it only shows whether it runs, on CPUs too")
    arguments = parser.parse_args(argv)
    expect(arguments.minutes > 0, "minutes", arguments.minutes, "a positive number")
    items = plan(arguments)
    if not arguments.tiny:
        _need_accelerator()
    folder = pathlib.Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    results = _read(folder / "results.jsonl")
    _go(items, results, folder, begun + 60 * arguments.minutes)
    failed = sum("failed" in results.get(item.command, {}) for item in items)
    there = sum(item.command in results for item in items) - failed
    print(f"{there} of {len(items)} are there, {failed} failed: {folder / 'table.md'}", flush=True)
    return 1 if failed else 0


def plan(arguments: argparse.Namespace) -> list[Item]:
    """What there is to do, most valuable first.

    Raises:
        UserError: `only` names something else.
    """
    tiny = " --tiny" if arguments.tiny else ""
    weights = [f"--weights={shlex.quote(source)}" for source in arguments.source] or [f"--arch={arguments.arch}"]
    items = [Item(f"parity {given}{tiny}", 60) for given in weights]
    items += _speed_and_memory(tiny)
    items.append(Item(f"jacobian {weights[0]} --dense-size=0{tiny}", 100, highest=True))
    items.append(Item(f"ranks {weights[0]}{tiny}", 60, highest=True))
    if tiny or (arguments.source and arguments.images):
        options = f"--images={shlex.quote(arguments.images)} --k={arguments.k} --batch-size={arguments.batch_size}"
        options += f" --dtype=bfloat16{tiny}" + (f" --eval={shlex.quote(arguments.eval)}" if arguments.eval else "")
        items += [Item(f"fidelity {given} {options}", 150, rest=True) for given in weights]
    names = list(dict.fromkeys(item.command.split()[0] for item in items))
    wanted = arguments.only.split(",") if arguments.only else names
    if unknown := sorted(set(wanted) - set(names)):
        needed = "" if "fidelity" in names else ", and fidelity where there are --source and --images"
        raise UserError(f"--only names {unknown[0]!r}: {did_you_mean(unknown[0], names)}there are {', '.join(names)}{needed}")
    return [item for item in items if item.command.split()[0] in wanted]


def _speed_and_memory(tiny: str) -> list[Item]:
    """Runs in bfloat16, beside PyTorch. Tiny ones are of one shape, without torch.compile, which is slow with any."""
    archs, batches, compiled = (["vits14"], [4], "") if tiny else (["vitb14", "vits14"], [64, 256], " --compile")
    speed, memory = list[Item](), list[Item]()
    for batch, arch in itertools.product(batches, archs):
        shape = f"--batch-size={batch} --dtype=bfloat16{tiny}"
        speed.append(Item(f"teacher --arch={arch} {shape} --plain-attention", 80))
        speed.append(Item(f"raptor_step --parts=speed --arch={arch}_reg {shape} --plain-attention{compiled}", 150))
        memory.append(Item(f"raptor_step --parts=memory --arch={arch}_reg {shape}", 90))
    return speed + memory


def _need_accelerator() -> None:
    """Asks another process: one that has seen a device may keep it from those to come. Raises UserError where there is none."""
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    done = subprocess.run(asked, capture_output=True, text=True)
    found = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
    if done.returncode or found == "cpu":
        raise UserError(
            f"jax finds no accelerator here ({found}): install JAX for it, pip install 'jax[cuda13]' for NVIDIA GPUs; "
            "--tiny shows on a CPU that everything runs"
        )


def _go(items: list[Item], results: dict[str, dict], folder: pathlib.Path, deadline: float) -> None:
    """Runs what has no result, and keeps each at once."""
    _keep(items, results, folder)
    for number, item in enumerate(items):
        if item.command in results and "failed" not in results[item.command]:
            continue
        left, expected = deadline - monotonic(), item.seconds * pace(results)
        if left < expected:
            print(f"not begun, about {expected:.0f} s with {left:.0f} s left: {item.command}", flush=True)
            continue
        limit = left if item.rest else min(left, PATIENCE * expected)
        command = item.command
        if item.rest:
            after = sum(one.command not in results for one in items[number + 1 :])
            limit = left / (1 + after)
            command += f" --minutes={max(limit - SPARE, 1) / 60:.2f}"
        print(f"\n{command}", flush=True)
        begun = monotonic()
        found = run(command, limit, highest=item.highest)
        taken = monotonic() - begun
        if "failed" in found:
            print(f"failed: {found['failed']}", flush=True)
        expectation = {} if item.rest else {"expected": item.seconds}
        results[item.command] = {"command": item.command, "taken": taken} | expectation | found
        _keep(items, results, folder)


def pace(results: dict[str, dict]) -> float:
    """How much longer things take here than expected, by those that have ended."""
    ended = [row for row in results.values() if "failed" not in row and "expected" in row]
    return sum(row["taken"] for row in ended) / sum(row["expected"] for row in ended) if ended else 1.0


def run(command: str, limit: float, *, highest: bool) -> dict:
    """What a benchmark writes with --json, run for `limit` seconds at most; `failed` and the reason where it gives nothing."""
    name, *options = shlex.split(command)
    with tempfile.TemporaryDirectory(prefix="brh_jax_accelerator_") as scratch:
        file = pathlib.Path(scratch, "found.json")
        words, environment = measure.as_process(name, *options, f"--json={file}")
        if highest:
            environment["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        # A session of its own: what it has started itself ends with it.
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            _, said = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return {"failed": f"stopped, as it had not ended after {limit:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode or not file.is_file():
            lines = said.strip().splitlines() or [f"it ended with status {process.returncode}"]
            return {"failed": lines[-1], "said": lines[-30:]}
        return json.loads(file.read_text())


def _read(file: pathlib.Path) -> dict[str, dict]:
    """What an earlier run left, by command."""
    lines = file.read_text().splitlines() if file.is_file() else []
    try:
        return {row["command"]: row for row in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error!r}): take the line out, or give another --out") from None


def _keep(items: list[Item], results: dict[str, dict], folder: pathlib.Path) -> None:
    """Both files, each whole or as it was."""
    waiting = [item.command for item in items if item.command not in results]
    lines = "".join(json.dumps(row) + "\n" for row in results.values())
    for name, text in {"results.jsonl": lines, "table.md": table(list(results.values()), waiting)}.items():
        whole = folder / f".{name}.tmp"
        whole.write_text(text)
        os.replace(whole, folder / name)


def table(results: list[dict], waiting: list[str]) -> str:
    """The lines as a page, in the form of docs/benchmarks.md."""
    machines = dict.fromkeys(row["machine"] for row in results if "machine" in row)
    lines = [*(f"{machine}." for machine in machines), ""]
    lines += [
        "Medians over turns; the share is that of the ceiling, a large product of matrices in the same precision; "
        "the ratio is the peer's time over ours, above 1 ours is faster.",
        "",
        "| | command | ours | peer | ratio |",
        "|---|---|---|---|---|",
    ]
    notes = []
    for result in results:
        command = f"`{result['command']}`"
        if "failed" in result:
            lines.append(_line("failed", command, result["failed"], "", ""))
        for row in result.get("rows", []):
            ours, peer, ratio = _cells(row)
            lines.append(_line(row["what"], command, ours, peer, ratio))
            command = ""
        notes += [f"- `{result['command']}`: {note}" for note in result.get("notes", [])]
    lines += ["", *notes]
    if waiting:
        lines += ["", "Not run yet:", "", *(f"- `{command}`" for command in waiting)]
    return "\n".join(lines).strip() + "\n"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.strip().replace("|", "\\|") for cell in cells) + " |"


def _cells(row: dict) -> tuple[str, str, str]:
    """A row of a report as (ours, peer, ratio)."""
    said = []
    if "seconds" in row:
        said.append(f"{row['seconds']:.4g} s")
    if "per_second" in row:
        said.append(f"{row['per_second']:,.4g} images/s")
    if "of_ceiling" in row:
        said.append(f"{row['of_ceiling']:.0%}")
    if "peak_gb" in row:
        said.append(f"{row['peak_gb']:.2f} GB")
    text = "; ".join(filter(None, [", ".join(said), row.get("remark", "")]))
    ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
    peer = "skipped" in row or "PyTorch" in row["what"] or ("seconds" in row and "ratio" in row)
    return ("", text, ratio) if peer else (text, "", ratio)
