"""A Raptor distilled within minutes by the recipe for few images: how near it is to its teacher after so many images.

R² by token type, mean over layers and of the last layer, on images that it is not trained on: those of --eval, or some held out.
With a classifier of the teacher's how often the two decide alike, and accuracy where --eval has a folder for each of its classes.

python -m benchmarks fidelity --weights=weights.onnx --images=photos --minutes=10
python -m benchmarks fidelity --weights=weights.onnx --images=photos --eval=labelled --minutes=10 --dtype=bfloat16 --batch-size=64
"""

import pathlib
import tempfile
import time
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from benchmarks import measure, models
from brh_jax.data.pipeline import measuring_batches
from brh_jax.data.sources import Selection
from brh_jax.data.transforms import CenterCrop
from brh_jax.distill.recipe import BLOCK
from brh_jax.distill.timed import Training, found_phases, images_source
from brh_jax.distill.validation import Validation
from brh_jax.errors import UserError
from brh_jax.models import RaptorConfig
from brh_jax.partition import Partition
from brh_jax.train.metrics import read_metrics
from brh_jax.train.parallel import make_mesh

MEASURED = 6  # times within the training
SHARE = 0.85  # of the minutes for phases and training; the rest for loading, measuring and what takes longer than thought


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    begun = time.monotonic()
    arguments = _parser().parse_args(argv)
    if arguments.tiny:
        arguments.images, arguments.eval, arguments.partition = "digits:train", "", "2,1"
        arguments.num_images, arguments.steps, arguments.batch_size = 16, 4, 8
    if not arguments.images:
        raise UserError("there are no images to distil on: give --images=FOLDER")
    report = measure.Report("fidelity", arguments)
    teacher = models.from_options(arguments)
    if arguments.dtype != "float32":
        teacher = teacher.replace(dtype=jnp.dtype(arguments.dtype))
    trained_on, measured_on = _sources(arguments)
    with tempfile.TemporaryDirectory(prefix="brh_jax_fidelity_") as folder:
        training = Training(
            teacher,
            RaptorConfig(teacher.config, _partition(teacher, trained_on, arguments), **BLOCK),
            trained_on,
            arguments.batch_size,
            augment=True,
            learning_rate=0.03,
            seed=0,
            folder=pathlib.Path(folder),
            validation=_validation(teacher, measured_on, arguments),
        )
        if arguments.steps:
            training.of(arguments.steps)
        else:
            training.within(begun + 60 * SHARE * arguments.minutes, SHARE * arguments.minutes)
        _rows(report, training)
    minutes = (time.monotonic() - begun) / 60
    report.note(f"phases {training.config.partition}; {len(trained_on)} images trained on, {arguments.batch_size} a step")
    report.note(f"{minutes:.2f} minutes in all, measuring and compiling included, in {arguments.dtype}")
    return report.finish()


def _parser():
    parser = measure.parser("fidelity", __doc__, repeats=1)
    models.add_options(parser)
    parser.add_argument("--images", default="", help="to distil on: a folder, tfds:NAME:SPLIT, idx:PATH, digits:SPLIT")
    parser.add_argument("--eval", default="", help="to measure on, as --images; some of those, held out, without")
    parser.add_argument("--num-images", type=int, default=512, help="to measure on")
    parser.add_argument("--k", type=int, default=2, help="phases, found by bisection")
    parser.add_argument("--partition", default="", help="layers of each phase, 7,3,2 say, instead")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it")
    parser.add_argument("--steps", type=int, default=0, help="so many, whatever they take")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    return parser


def _partition(teacher, images, arguments):
    if arguments.partition:
        return Partition(tuple(int(n) for n in arguments.partition.split(",")))
    return found_phases(teacher, images, arguments.k, arguments.batch_size)


def _sources(arguments):
    """(images to train on, images to measure on)."""
    images = images_source(arguments.images)
    if arguments.eval:
        return images, images_source(arguments.eval)
    held_out = min(arguments.num_images, max(1, len(images) // 5))
    order = np.random.default_rng(0).permutation(len(images))
    return Selection(images, order[held_out:]), Selection(images, order[:held_out])


def _validation(teacher, source, arguments):
    head = teacher.pooled_head
    labelled = head is not None and bool(arguments.eval) and len(source.classes) == len(head["bias"])

    def batches():
        crop = CenterCrop(teacher.preprocessing)
        return measuring_batches(source, crop, max(arguments.batch_size, 8), num_images=arguments.num_images)

    return Validation(teacher.on(make_mesh()), batches, times=MEASURED, head=head, labelled=labelled)


def _rows(report, training):
    """One for each time that the blocks were measured."""
    name = f"{training.teacher.name}, k = {training.config.partition.k}"
    for row in read_metrics(training.folder / "validation" / "metrics.jsonl"):
        said = ", ".join(f"{key} {value:.3f}" for key, value in row.items() if key not in ("step", "images"))
        report.figures(f"{name}: after {row['images']:,} images", row, said)
    rows = read_metrics(training.folder / "metrics.jsonl")
    if rates := [row["images_per_second"] for row in rows if "images_per_second" in row]:
        report.note(f"{np.median(rates):,.4g} images/s as it trains, measuring left out")
