"""Cost of the dynamics of a real ViT: directions, ranks and basins beside the forward pass, Jacobians beside torch.func.

python -m benchmarks dynamics --weights=weights.onnx --images=photos/test
python -m benchmarks dynamics --tiny         # random weights of a small model, random images: whether it runs
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time

import numpy as np


def main(argv=None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks dynamics", description=__doc__.split("\n")[0])
    parser.add_argument("--weights", default="hf:facebook/dinov2-small", help="anything that brh_jax.load takes")
    parser.add_argument("--images", default="", help="folder of photographs, one folder per class; random pixels without")
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="of the crops, in pixels")
    parser.add_argument("--dense-size", type=int, default=56, help="image size at which the whole Jacobian is formed")
    parser.add_argument("--layer", type=int, default=5, help="of the Jacobians, from 0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small random model")
    arguments = parser.parse_args(argv)
    import brh_jax
    from brh_jax.errors import UserError

    try:
        if arguments.tiny:
            encoder = _tiny()
            arguments.num_images, arguments.batch_size, arguments.size, arguments.dense_size = 8, 4, 28, 28
            arguments.layer, arguments.repeats = 1, 1
        else:
            encoder = brh_jax.load(arguments.weights)
        encoder = encoder.at_size(arguments.size)
        batches = _crops(encoder, arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{encoder.name}, {arguments.num_images} images of {arguments.size} px, medians of {arguments.repeats}, {_machine()}")
    # Jacobians first: what memory they take shows in the peak of the process only then.
    for rows in (_jacobians(encoder, batches[0], arguments), _measures(encoder, batches, arguments.repeats)):
        for what, seconds, remark in rows:
            print(f"{what:<44}  {seconds:>9.3f} s  {remark}", flush=True)
    return 0


def _tiny():
    import jax

    from brh_jax.data.transforms import Preprocessing
    from brh_jax.models import Encoder, ViT, ViTConfig

    config = ViTConfig(dim=48, depth=3, num_heads=4, mlp_dim=192, patch_size=14, position_grid=(2, 2), layer_scale=True)
    params = ViT(config).init(jax.random.key(0), np.zeros((1, 28, 28, 3), np.float32))["params"]
    return Encoder(config, params, Preprocessing((28, 28), None, (0.5,) * 3, (0.5,) * 3), name="a small random ViT")


def _crops(encoder, arguments) -> list[np.ndarray]:
    """Preprocessed batches in memory, so that reading images is not measured."""
    if not arguments.images:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (arguments.num_images, arguments.size, arguments.size, 3), dtype=np.uint8)
        parts = np.split(pixels, range(arguments.batch_size, arguments.num_images, arguments.batch_size))
        return [encoder.normalize_pixels(part) for part in parts]
    from brh_jax.data.pipeline import measuring_batches
    from brh_jax.data.sources import open_source
    from brh_jax.data.transforms import RandomResizedCrop

    source = open_source(f"folder:{arguments.images}")
    crop = RandomResizedCrop((arguments.size, arguments.size))
    found = measuring_batches(source, crop, arguments.batch_size, num_images=arguments.num_images)
    return [encoder.normalize_pixels(batch["image"][batch["valid"]]) for batch in found]


def _measures(encoder, batches, repeats):
    """The forward pass, and each group of measures on the trajectories that it leaves, in one pass over the images."""
    import jax

    from brh_jax import dynamics

    layout, count = encoder.layout, sum(map(len, batches))
    measures = {
        "directions": lambda states: dynamics.direction_measures([states], layout),
        "update ranks over all tokens of all images": lambda states: dynamics.update_grams([states], layout),
        "update ranks over the tokens of each image": lambda states: dynamics.update_rank_per_image(states, layout),
        "angular basins of 4 classes": lambda states: dynamics.image_directions([states], layout),
    }

    def go_through(batches):
        spent = dict.fromkeys(("forward pass", *measures), 0.0)
        kept = {name: [] for name in measures}

        def timed(name, function):
            begun = time.perf_counter()
            result = jax.block_until_ready(function())
            spent[name] += time.perf_counter() - begun
            return result

        for batch in batches:
            states = timed("forward pass", lambda batch=batch: encoder.trajectory(batch))
            for name, measure in measures.items():
                kept[name].append(timed(name, lambda measure=measure, states=states: measure(states)))
        grams, means = kept["update ranks over all tokens of all images"], kept["angular basins of 4 classes"]
        timed(
            "update ranks over all tokens of all images",
            lambda: dynamics.gram_rank(jax.tree.map(lambda *parts: sum(parts), *grams)),
        )
        joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *means)
        labels = np.arange(joined.patches.shape[1]) % 4
        timed("angular basins of 4 classes", lambda: dynamics.angular_basins(joined, labels, layout))
        return spent

    go_through([batches[0], batches[-1]])  # compiled, for the last batch too, which may be smaller
    passes = [go_through(batches) for _ in range(repeats)]
    median = {name: statistics.median(one[name] for one in passes) for name in passes[0]}
    forward = median.pop("forward pass")
    yield "forward pass", forward, f"{count / forward:.1f} images/s"
    median["directions + ranks + basins"] = sum(median.values())
    for name, seconds in median.items():
        yield name, seconds, f"{seconds / forward:.2f} of the forward pass"


def _jacobians(encoder, batch, arguments):
    import jax

    from brh_jax import dynamics

    layer, system = arguments.layer, encoder.system()
    state = encoder.trajectory(batch[:1])[layer]
    side = state.shape[1] * state.shape[2]
    num_values = min(32, side)

    def leading():
        return jax.block_until_ready(dynamics.jacobian_singular_values(system, state, layer, num_values))

    before = _peak()
    found = leading()
    seconds = statistics.median(_timed(leading) for _ in range(arguments.repeats))
    residual = float((found.residual / found.values).max())
    remark = f"Jacobian of side {side:,}; largest relative residual {residual:.0e}; peak memory {before:.2f} -> {_peak():.2f} GB"
    yield f"top {num_values} singular values, matrix-free", seconds, remark

    def block():
        return jax.block_until_ready(dynamics.jacobian_block(system, state, layer, "cls", "cls"))

    ours = block()
    seconds = statistics.median(_timed(block) for _ in range(arguments.repeats))
    yield "cls -> cls block", seconds, ""
    yield from _torch_block(encoder, state, layer, np.asarray(ours[0]), seconds, arguments.repeats)

    small = encoder.at_size(arguments.dense_size)
    image = np.asarray(batch[:1, : arguments.dense_size, : arguments.dense_size])
    state, system = small.trajectory(image)[layer], small.system()
    side = state.shape[1] * state.shape[2]

    form = jax.jit(jax.jacfwd(lambda x: system.step(x[None], layer)[0]))

    def whole():
        jacobian = form(state[0])
        return np.linalg.svd(np.asarray(jacobian).reshape(side, side), compute_uv=False)[:num_values]

    def leading():
        return jax.block_until_ready(dynamics.jacobian_singular_values(system, state, layer, min(num_values, side)))

    found, expected = leading(), whole()
    dense = statistics.median(_timed(whole) for _ in range(min(2, arguments.repeats)))
    seconds = statistics.median(_timed(leading) for _ in range(arguments.repeats))
    difference = float(np.abs(np.asarray(found.values[0]) / expected - 1).max())
    yield f"dense Jacobian and its SVD, {arguments.dense_size} px", dense, f"side {side:,}; peak memory {_peak():.2f} GB"
    yield f"matrix-free, {arguments.dense_size} px", seconds, f"{dense / seconds:.0f}x faster; values differ by {difference:.0e}"


def _torch_block(encoder, state, layer, ours, our_seconds, repeats):
    """The same block by torch.func on the exported weights; nothing where torch or transformers is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return
    from weights_convert import export

    with tempfile.TemporaryDirectory() as folder:
        model = transformers.AutoModel.from_pretrained(export.write(encoder, folder)).eval()
    reference = model.encoder.layer[layer]
    whole = torch.from_numpy(np.array(state[0]))

    def step(cls):
        out = reference(torch.cat([cls[None], whole[1:]])[None])
        return (out if torch.is_tensor(out) else out[0])[0, 0]

    def block():
        return torch.func.jacrev(step, chunk_size=64)(whole[0]).detach().numpy()

    theirs = block()
    seconds = statistics.median(_timed(block) for _ in range(repeats))
    difference = np.abs(theirs - ours).max() / np.abs(theirs).max()
    remark = f"ours is {seconds / our_seconds:.1f}x faster; entries differ by {difference:.0e} of the largest"
    yield "cls -> cls block, torch.func.jacrev", seconds, remark


def _timed(function) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def _peak() -> float:
    """Largest resident memory of this process so far, in GB: it tells of what is measured first."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _machine() -> str:
    import jax

    return f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {time.strftime('%Y-%m-%d')}"


if __name__ == "__main__":
    sys.exit(main())
