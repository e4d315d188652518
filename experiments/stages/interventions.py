"""Interventions on the teacher's depth: swaps, deletions, repetitions, and hybrids with every Raptor."""

import pathlib

import numpy as np
from ml_collections import ConfigDict

from brh_jax import interventions as causal
from brh_jax.errors import UserError
from brh_jax.models.encoder import pooled_width
from brh_jax.probes import classification
from brh_jax.statistics import summarize
from brh_jax.train.parallel import to_host
from experiments.context import Context

# All are of the last state after the final norm, and larger the worse. `error` needs labelled images.
MEASURES = ("change", "distance", "token_change", "token_distance", "error")


def run(context: Context, folder: pathlib.Path) -> dict:
    """Effects by kind of intervention; those of every plan on every image are left in `arrays.npz`."""
    config = context.config
    section = config.interventions
    if not section.num_images:
        print("interventions: config.interventions.num_images is 0, nothing to do", flush=True)
        return {}
    models, partitions = context.encoders(), context.partitions()
    teacher = models.pop("teacher")
    finest = max(partitions.values(), key=lambda partition: partition.k)
    swaps = _swaps(finest, section, config.seed)
    plans = {"unchanged": [causal.unchanged(teacher.depth)]}
    for name, (part, group) in swaps.items():
        plans[name] = [causal.replace(teacher.depth, swap.places, swap.layers, part) for swap in group]
    for part in section.parts:
        for name, make in (("delete", causal.delete), ("repeat", causal.repeat)):
            plans[f"{name} {part}"] = [make(teacher.depth, layer, part) for layer in range(teacher.depth)]
    hybrids = {name: _hybrids(raptor.config.partition) for name, raptor in models.items()}

    source = context.source(section.images or config.data.eval)
    head, origin = _head(context, teacher, source)
    measured, labels = _measure(context, teacher, models, plans, hybrids, source, head)
    arrays = {f"{name}/{measure}": values for name, found in measured.items() for measure, values in found.items()}
    arrays |= {f"{name}/places": np.array([s.places for s in group]) for name, (_, group) in swaps.items()}
    arrays |= {f"{name}/layers": np.array([s.layers for s in group]) for name, (_, group) in swaps.items()}
    context.save_arrays(folder / "arrays.npz", labels=labels, **arrays)

    summary = {
        "images": source.name,
        "num_images": len(labels),
        "num_plans": sum(map(len, plans.values())) + sum(map(len, hybrids.values())),
        "head": origin,
        "unchanged": _bands(measured["unchanged"], config.seed),
        "swaps": {name: _swap_summary(group, measured[name], partitions, config) for name, (_, group) in swaps.items()},
        "layers": {name: _bands(measured[name], config.seed) for name in plans if name.startswith(("delete", "repeat"))},
        "hybrids": {
            name: _hybrid_summary(models[name].config.partition, _bands(measured[name], config.seed)) for name in hybrids
        },
        "skipped": source.skipped,
    }
    _tell(summary, finest)
    return summary


def _swaps(partition, section, seed) -> dict:
    """Name -> (part of the layers, swaps); none of several layers where the depth is too small for them."""
    single = causal.layer_swaps(partition, 1, most=section.num_swaps, seed=seed)
    found = {}
    for number in section.num_layers if "layer" in section.parts else ():
        if number <= partition.depth:
            group = causal.layer_swaps(partition, number, most=section.num_swaps, seed=seed) if number > 1 else single
            found[f"{number} layer{'s' * (number > 1)}"] = ("layer", group)
    found |= {part: (part, single) for part in section.parts if part != "layer"}
    return {name: (part, group) for name, (part, group) in found.items() if group}


def _hybrids(partition) -> list:
    """The Raptor alone; for each phase its block in the teacher; for each phase the teacher in the Raptor."""
    depth, labels = partition.depth, partition.labels

    def plan(of_raptor):
        places = [layer for layer in range(depth) if of_raptor(labels[layer])]
        return causal.replace(depth, places, [depth + layer for layer in places])

    phases = range(partition.k)
    return [
        plan(lambda phase: True),
        *(plan(lambda phase, this=this: phase == this) for this in phases),
        *(plan(lambda phase, this=this: phase != this) for this in phases),
    ]


def _measure(context: Context, teacher, raptors, plans, hybrids, source, head):
    """Name of the group -> measure -> `[plans, images]`, and the labels."""
    groups = {name: len(group) for name, group in plans.items()}
    flat = [plan for group in plans.values() for plan in group]
    found, labels = {name: [] for name in (*plans, *hybrids)}, []
    label = f"interventions, {len(flat) + sum(map(len, hybrids.values()))} plans"
    # A classifier sees images as it was trained on them, whatever views of few images the states are measured on.
    augment = "" if head is None else "center_crop"
    for batch in context.measuring_batches(source, teacher.preprocessing, context.config.interventions, label, augment):
        start, valid = teacher.embed(teacher.normalize_pixels(batch["image"])), batch["valid"]
        truth = batch["label"][valid]
        effects = _by_measure(causal.apply_plans(teacher, start, flat, head=head), valid, truth)
        for measure, values in effects.items():
            pieces = np.split(values, np.cumsum(list(groups.values()))[:-1])
            for name, piece in zip(groups, pieces, strict=True):
                found[name].append({measure: piece})
        for name, group in hybrids.items():
            effects = causal.apply_plans(teacher, start, group, guest=raptors[name], head=head)
            found[name].append(_by_measure(effects, valid, truth))
        labels.append(truth)
    return {name: _joined(pieces) for name, pieces in found.items()}, np.concatenate(labels)


def _joined(pieces) -> dict:
    """The batches' `[plans, images]` of each measure side by side."""
    names = dict.fromkeys(measure for piece in pieces for measure in piece)
    return {m: np.concatenate([piece[m] for piece in pieces if m in piece], axis=1) for m in names}


def _by_measure(effects, valid, labels) -> dict:
    effects = causal.Effects(*(None if v is None else to_host(v)[:, valid] for v in effects))
    found = (1 - effects.cosine, effects.distance, 1 - effects.token_cosine, effects.token_distance)
    if effects.predicted is not None:
        found += ((effects.predicted != labels).astype(np.float32),)
    return dict(zip(MEASURES, found, strict=False))


def _head(context: Context, teacher, source):
    """A classifier of the images on the teacher's features, and what it is: the teacher's own, the probe's, or class means."""
    if len(source.classes) < 2:
        return None, ""
    num_features = pooled_width(teacher.dim, teacher.layout)
    if teacher.head is not None and teacher.head["kernel"].shape == (num_features, len(source.classes)):
        return teacher.head, "the teacher's classifier"
    path = context.workdir / "probes" / "teacher" / "head.npz"
    if path.exists():
        probe = np.load(path)
        if tuple(probe["classes"]) == source.classes:
            return {"kernel": probe["kernel"], "bias": probe["bias"]}, "the linear probe"
    train = context.source(context.config.data.train)
    if train.classes != source.classes:
        print(f"interventions: no classifier of {source.name} is there, so accuracies are left out", flush=True)
        return None, ""
    section = ConfigDict({"num_images": context.config.eval.num_images, "batch_size": context.config.eval.batch_size})
    batches = context.measuring_batches(train, teacher.preprocessing, section, "class means", "center_crop")
    return _class_means(*classification.extract_features(teacher, batches), len(source.classes)), "the nearest class mean"


def _class_means(features, labels, num_classes: int) -> dict:
    """The nearest class mean as a linear classifier: the least |x - m|² is the largest m·x - |m|² / 2.

    Raises:
        UserError: a class without images.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if not counts.all():
        raise UserError(
            f"class {int(np.argmin(counts))} has none of the {len(labels)} images that class means are taken of: raise "
            "config.eval.num_images, or give a probe (config.probe.train)"
        )
    means = np.stack([features[labels == c].mean(0) for c in range(num_classes)])
    return {"kernel": means.T, "bias": -np.square(means).sum(1) / 2}


def _bands(found: dict, seed: int) -> dict:
    """measure -> mean and bootstrap band over images of each plan."""
    return {measure: _band(values, seed) for measure, values in found.items()}


def _band(values, seed) -> dict:
    band = summarize(values, seed=seed)
    return {name: (np.round(getattr(band, name), 6) + 0.0).tolist() for name in ("mean", "low", "high")}


def _swap_summary(group, found, partitions, config) -> dict:
    single = len(group[0].places) == 1
    depth = next(iter(partitions.values())).depth
    matrices = {measure: _matrix(group, values, depth) for measure, values in found.items()} if single else {}
    return {
        "num_swaps": len(group),
        "num_layers": len(group[0].places),
        "matrix": matrices,
        "partitions": {f"k{k}": _kinds_summary(group, found, partition, config) for k, partition in partitions.items()},
    }


def _kinds_summary(group, found, partition, config) -> dict:
    """Means by distance and the tests of one partition; swaps that are neither within its phases nor across are left out."""
    kinds = np.array([s.is_inter(partition) for s in group])
    distance = np.array([s.distance for s in group])
    curves = {
        name: [p for d in np.unique(distance) if (p := _at(found, (kinds == inter) & (distance == d), d, config.seed))]
        for name, inter in (("intra", False), ("inter", True))
    }
    known = kinds != None  # noqa: E711 - of every element
    options = {"num_permutations": config.interventions.num_permutations, "seed": config.seed}
    strata = {"distance": distance}
    if single := len(group[0].places) == 1:
        strata["place_and_distance"] = np.column_stack([[s.places[0] for s in group], distance])
    tests = {measure: {} for measure in found}
    for measure, values in found.items():
        for name, stratum in strata.items():
            contrast = causal.matched_contrast(values[known], kinds[known], stratum[known], **options)
            tests[measure][name] = contrast and contrast._asdict()
        if single and len(group) == partition.depth * (partition.depth - 1):
            moved = causal.boundary_test(values, group, partition, seed=config.seed)
            tests[measure]["boundaries"] = moved and moved._asdict()
    return {"text": str(partition), **curves, "tests": tests}


def _at(found, rows, distance, seed) -> dict | None:
    """The mean over the swaps of one kind and distance, with its band over images."""
    if not rows.any():
        return None
    measures = {measure: _band(values[rows].mean(0), seed) for measure, values in found.items()}
    return {"distance": int(distance), "num_swaps": int(rows.sum()), "measures": measures}


def _matrix(group, values, depth: int) -> list:
    """[place, layer] -> mean effect; None where it was not measured."""
    matrix = [[None] * depth for _ in range(depth)]
    for swap, value in zip(group, values.mean(1), strict=True):
        matrix[swap.places[0]][swap.layers[0]] = round(float(value), 6)
    return matrix


def _hybrid_summary(partition, bands) -> dict:
    """What `_hybrids` lists, by phase."""
    texts = str(partition).split(" | ")

    def at(row):
        return {measure: {name: values[row] for name, values in band.items()} for measure, band in bands.items()}

    k = partition.k
    return {
        "raptor": at(0),
        "phases": [{"layers": texts[p], "raptor_in_teacher": at(1 + p), "teacher_in_raptor": at(1 + k + p)} for p in range(k)],
    }


def _tell(summary, partition) -> None:
    for name, group in summary["swaps"].items():
        tests = group["partitions"][f"k{partition.k}"]["tests"]
        measure = "error" if "error" in tests else "change"
        found = tests[measure]["distance"]
        if found is None:
            print(f"interventions: {name}: no distance at which swaps both within and across phases exist", flush=True)
            continue
        band = f"{found['low']:+.3f} to {found['high']:+.3f}"
        print(
            f"interventions: swaps of {name}: {measure} {found['intra']:.3f} within phases, {found['inter']:.3f} across; "
            f"at equal distance {found['difference']:+.3f} ({band}), p {found['p_value']:.4f}",
            flush=True,
        )
