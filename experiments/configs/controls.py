"""Is it the max cut, and is it the sharing? Raptors of max-cut, random contiguous and fragmented partitions, on one teacher.

    python -m experiments.sweep --config=configs/controls.py --workdir=runs/controls --jobs=2
    python -m experiments.sweep --config=configs/controls.py:dinov2,arch=vits14,runlocal --workdir=runs/controls_s \\
        --config.teacher.source=weights.onnx --config.data.train=folder:photos/train --config.data.eval=folder:photos/test
    python -m experiments.tables runs/controls

Arguments, separated by commas; those that are not named here go to the base configuration:
    quickstart     the base, a file of experiments/configs: digits and a ViT trained here once, by the run "teacher" (default)
    ks=2+3+4       numbers of phases (default 1 to 6; one phase has nothing to draw, and is in the max cut's runs alone)
    seeds=3        how many of each; a new draw of partitions for each

Hardware: quickstart 9 runs of 5 or 6 Raptors and the teacher's, on 2 CPU cores; has not been timed.
Expect, by the paper, max-cut partitions above random ones for k = 2, 3, 4, often by more than one standard deviation.
"""

import importlib
import pathlib

from ml_collections import ConfigDict

_METHODS = ("max_cut", "random_contiguous", "random_fragmented")


def get_config(arg: str = "") -> ConfigDict:
    """The base configuration, down to what the comparison needs."""
    base, rest, ks, _ = _options(arg)
    config = importlib.import_module(f"experiments.configs.{base}").get_config(rest).unlock()
    config.stages = ("teacher", "phases", "distill")
    config.phases.update({"k": ks, "bootstrap": 0})
    config.eval.baselines = ()
    return config.lock()


def sweep(arg: str = "") -> dict[str, dict]:
    """The runs: a method and a seed each, all numbers of phases."""
    _, _, ks, seeds = _options(arg)
    runs, teacher = {}, {}
    if get_config(arg).teacher.source == "train":
        runs["teacher"] = {"stages": ("teacher",)}
        teacher = {"teacher.source": "{workdir}/teacher/teacher/model"}
    for seed in range(seeds):
        for method in _METHODS:
            chosen = ks if method == "max_cut" else tuple(k for k in ks if k > 1)
            changes = {"phases.method": method, "phases.k": chosen, "phases.seed": seed, "seed": seed}
            if chosen:
                runs[f"{method.replace('_', '-')}-seed{seed}"] = teacher | changes
    return runs


def _options(arg: str) -> tuple[str, str, tuple[int, ...], int]:
    """Base configuration, its own argument, numbers of phases, number of seeds."""
    bases = {path.stem for path in pathlib.Path(__file__).parent.glob("*.py")} - {"__init__", "default", "controls"}
    items = [item for item in arg.split(",") if item]
    base = items.pop(0) if items and items[0] in bases else "quickstart"
    found = {"ks": "1+2+3+4+5+6", "seeds": "3"}
    for item in list(items):
        name, _, value = item.partition("=")
        if name in found:
            found[name] = value
            items.remove(item)
    try:
        ks, seeds = tuple(int(k) for k in found["ks"].split("+")), int(found["seeds"])
    except ValueError:
        ks, seeds = (), 0
    if seeds < 1 or not ks or min(ks) < 1:
        raise ValueError(
            f"configs/controls.py: ks={found['ks']} and seeds={found['seeds']}: expected numbers such as ks=2+3 and seeds=3"
        )
    return base, ",".join(items), ks, seeds
