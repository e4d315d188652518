"""Blocks measured as they train, on a fixed set of images that they are not trained on."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from brh_jax.distill.evaluation import Classes, TrajectoryFit, evaluate
from brh_jax.models.encoder import Encoder
from brh_jax.models.raptor import RaptorConfig
from brh_jax.train.loop import Run
from brh_jax.train.metrics import MetricsFile


class Validation:
    """Blocks rolled out from the teacher's first states, and compared with its trajectories.

    The images are read once, and stay on the devices as pixels; the teacher sees them each time, since its states would take
    dozens of times the room.

    Args:
        teacher: on the mesh.
        batches: gives the images, as `evaluate` takes them.
        times: how often within a training, evenly spread over its steps, its end included; 0 for never.
        head, labelled: a classifier, as `evaluate` takes it.
    """

    def __init__(
        self,
        teacher: Encoder,
        batches: Callable[[], Iterable[dict]],
        *,
        times: int,
        head: dict[str, Any] | None = None,
        labelled: bool = True,
    ):
        self._teacher, self._images, self._times = teacher, batches, times
        self._classifier: dict[str, Any] = {"head": head, "labelled": labelled}

    @functools.cached_property
    def _batches(self) -> list[dict]:
        """Read when they are first needed."""
        return list(self._images())

    def measure(self, config: RaptorConfig, blocks: Any) -> TrajectoryFit:
        """How well the blocks of a Raptor reproduce the teacher."""
        teacher, raptor = self._teacher, self._teacher.replace(config=config, params={"blocks": blocks})

        def states(pixels):
            return teacher.trajectory(teacher.normalize_pixels(pixels))

        fits = evaluate(states, {"raptor": raptor.rollout}, teacher.features, self._batches, teacher.layout, **self._classifier)
        return fits["raptor"]

    def visits(self, config: RaptorConfig, run: Run, num_steps: int, batch_size: int) -> dict[int, Callable[[Any], None]]:
        """Step of a training -> what measures its blocks then: a line, and a row of `validation/metrics.jsonl` in its folder."""
        steps = {-(-num_steps * number // self._times) for number in range(1, self._times + 1)}
        return {step: functools.partial(self._visit, config, run, num_steps, batch_size, step) for step in sorted(steps)}

    def _visit(self, config: RaptorConfig, run: Run, num_steps: int, batch_size: int, step: int, blocks: Any) -> None:
        fit = self.measure(config, blocks)
        print(f"{run.label:<24} {step:>{len(str(num_steps))}}/{num_steps}  {_line(fit)}", flush=True)
        file = MetricsFile(run.folder / "validation" / "metrics.jsonl", step - 1, tensorboard=run.loop.tensorboard)
        file.write(step, {"images": step * batch_size, **figures(fit)})
        file.close()


def figures(fit: TrajectoryFit) -> dict[str, float]:
    """A row: R² by token type, mean over layers and of the last, mean e over the state's norm, and what a classifier says."""
    found: dict[str, float] = {}
    for token, values in fit.r2._asdict().items():
        if len(values):
            found |= {f"r2_{token}": float(values.mean()), f"r2_{token}_last": float(values[-1])}
    return found | {"relative_error": float(np.mean(fit.relative_error_all))} | _said(fit.classes)


def _said(classes: Classes | None) -> dict[str, float]:
    if classes is None:
        return {}
    found = {"same_class": classes.agreement, "accuracy": classes.accuracy, "teacher_accuracy": classes.true_accuracy}
    return {name: value for name, value in found.items() if value is not None}


def _line(fit: TrajectoryFit) -> str:
    """A fit in one line, as it is printed on the way."""
    r2 = ", ".join(f"{token} {v.mean():.3f} (last {v[-1]:.3f})" for token, v in fit.r2._asdict().items() if len(v))
    line = f"on {fit.num_images} images: R² {r2}; e / norm {fit.relative_error_all.mean():.3f}"
    if (classes := fit.classes) is not None:
        line += f"; same class {100 * classes.agreement:.1f} %"
        if classes.accuracy is not None and classes.true_accuracy is not None:
            line += f", accuracy {100 * classes.accuracy:.1f} % (teacher {100 * classes.true_accuracy:.1f} %)"
    return line
