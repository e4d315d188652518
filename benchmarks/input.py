"""JPEG files to batches of uint8 crops: the grain pipeline, and a PyTorch DataLoader with the same transforms in PIL.

python -m benchmarks input --workers=0,2
"""

import functools
import gc
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import measure
from brh_jax.data.pipeline import TrainingBatches, measuring_batches
from brh_jax.data.sources import ImageFolder
from brh_jax.data.transforms import CenterCrop, RandomResizedCrop
from brh_jax.preprocessing import Preprocessing


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("input", __doc__)
    parser.add_argument("--num-images", type=int, default=1024, help="files that are generated")
    parser.add_argument("--pixels", type=int, default=256, help="side of the files")
    parser.add_argument("--size", type=int, default=224, help="of the crops, in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--batches", type=int, default=24, help="timed in each turn; read-ahead of earlier ones is a part of them"
    )
    parser.add_argument("--workers", default="0,2", help="processes that decode, equal on both sides; 0: ours decodes in threads")
    parser.add_argument("--threads-ahead", type=int, default=0, help="threads of ours where it has no workers; 0 for one a core")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.num_images, arguments.batch_size, arguments.batches, arguments.repeats = 32, 4, 4, 1
    report = measure.Report("input", arguments)
    with tempfile.TemporaryDirectory() as folder:
        _write_files(pathlib.Path(folder), arguments)
        _compare(report, ImageFolder(folder), arguments)
    return report.finish()


def _compare(report, source, arguments):
    size, batch = arguments.size, arguments.batch_size
    try:
        torch = measure.load_torch()
    except measure.Skipped as reason:
        torch = None
        report.skip("DataLoader", reason)
    if torch:
        crop = CenterCrop(Preprocessing((size, size), round(size * 256 / 224)))
        mine = _sorted(b["image"] for b in measuring_batches(source, crop, batch))  # they come in random order
        peer = _loader(source.paths, functools.partial(center_crop, size=size), batch, 0, shuffle=False)
        report.agree("pixels of centre crops", mine, _sorted(b.numpy() for b in peer), 0)
    for workers in (int(n) for n in arguments.workers.split(",")):
        threads = 1 if workers else arguments.threads_ahead or measure.cores()
        where = f"{workers} workers" if workers else "no workers"
        names = f"brh_jax, {where}, {threads} threads{' each' * bool(workers)}", f"DataLoader, {where}"
        options = {"threads": threads, "workers": workers}
        sides = {
            names[0]: lambda options=options: TrainingBatches(source, RandomResizedCrop((size, size)), batch, seed=0, **options)
        }
        if torch:
            sides[names[1]] = lambda workers=workers: _endless(
                _loader(source.paths, functools.partial(random_resized_crop, size=size), batch, workers, shuffle=True)
            )
        rates = {name: [] for name in sides}
        starts = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name, make in sides.items():
                started, seconds = _turn(make, arguments.batches)
                starts[name].append(started)
                rates[name].append(seconds)
        for name, found in rates.items():
            remark = f"{np.median(starts[name]):.2f} s to the first batch"
            images = arguments.batches * batch
            report.row(name, found, images=images, against=None if name == names[0] else rates[names[0]], remark=remark)


def _sorted(batches):
    return np.stack(sorted((image for batch in batches for image in batch), key=lambda image: image.tobytes()))


def _turn(make, count):
    """(seconds to the first batch, seconds of the `count` after it) of a pipeline made for this turn, alone on the machine."""
    begun = time.perf_counter()
    batches = iter(make())
    next(batches)
    first = time.perf_counter()
    for _ in range(count):
        next(batches)
    done = time.perf_counter()
    del batches
    gc.collect()  # ends its processes and threads
    return first - begun, done - first


def _write_files(folder, arguments):
    """Photographs as far as a decoder minds: smooth colours with some noise."""
    rng = np.random.default_rng(0)
    side = arguments.pixels
    for index in range(arguments.num_images):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        noise = rng.integers(-12, 13, (side, side, 3))
        pixels = np.clip(np.asarray(coarse, np.int16) + noise, 0, 255).astype(np.uint8)
        path = folder / f"{index % 8}" / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


class _Files:
    """A map-style data set of torch."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        import torch

        with Image.open(self.paths[index]) as image:
            pixels = self.transform(image.convert("RGB"))
        return torch.from_numpy(np.array(pixels))


def _loader(paths, transform, batch, workers, *, shuffle):
    from torch.utils.data import DataLoader

    # torch's default here, fork, may deadlock beside jax's threads.
    options = {"multiprocessing_context": "forkserver", "persistent_workers": True} if workers else {}
    return DataLoader(_Files(paths, transform), batch, shuffle=shuffle, num_workers=workers, drop_last=shuffle, **options)


def _endless(loader):
    while True:
        yield from loader


def center_crop(image: Image.Image, size: int) -> Any:
    """torchvision's Resize of the shorter side to 256 : 224 of the crop, bicubic, and CenterCrop, in PIL."""
    short = round(size * 256 / 224)
    width, height = image.size
    width, height = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(image: Image.Image, size: int) -> Any:
    """torchvision's RandomResizedCrop (0.08 - 1, bicubic) and RandomHorizontalFlip, in PIL."""
    import torch

    width, height = image.size
    for _ in range(10):
        area = width * height * float(torch.empty(1).uniform_(0.08, 1))
        aspect = float(torch.exp(torch.empty(1).uniform_(float(np.log(3 / 4)), float(np.log(4 / 3)))))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            left = int(torch.randint(width - w + 1, (1,)))
            top = int(torch.randint(height - h + 1, (1,)))
            break
    else:
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    image = image.crop((left, top, left + w, top + h)).resize((size, size), Image.Resampling.BICUBIC)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if float(torch.rand(1)) < 0.5 else image
