"""Leading singular values of a layer's Jacobian: matrix-free, ours and torch.func under scipy, and from the whole matrix.

Beside them the Lyapunov exponents of all layers, which have no peer.

Random weights have other spectra than trained ones, and Krylov methods need more or fewer steps for them: give real weights.

python -m benchmarks jacobian --weights=weights.onnx --dense-size=56
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, models
from brh_jax.dynamics.jacobian import jacobian_block, jacobian_singular_values
from brh_jax.dynamics.lyapunov import lyapunov_exponents

EXPONENTS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = measure.parser("jacobian", __doc__, repeats=3)
    models.add_options(parser)
    parser.add_argument("--layer", type=int, default=5, help="from 0")
    parser.add_argument("--num-values", type=int, default=32)
    parser.add_argument(
        "--dense-size", type=int, default=56, help="image size at which the whole Jacobian is formed; 0 for never"
    )
    parser.add_argument("--dense-by", default="jax,torch", help="who forms it")
    arguments = parser.parse_args(argv)
    if arguments.tiny:
        arguments.layer, arguments.num_values, arguments.dense_size, arguments.repeats = 1, 8, 28, 1
    report = measure.Report("jacobian", arguments)
    encoder = models.from_options(arguments)
    try:
        layer = _torch_layer(encoder, arguments.layer)
    except measure.Skipped as reason:
        layer = None
        report.skip("torch.func", reason)
    sizes = dict.fromkeys((arguments.size, arguments.dense_size))
    for size in filter(None, sizes):
        at_size = encoder.at_size(size)
        pixels = models.random_pixels(1, size)
        state = at_size.trajectory(at_size.normalize_pixels(pixels))[arguments.layer]
        _values(report, at_size.system(), state, layer, arguments, dense=size == arguments.dense_size, what=f"{size} px")
        if size == arguments.size:
            _blocks(report, at_size.system(), state, layer, arguments, f"{size} px")
            _exponents(report, at_size, pixels, arguments, f"{size} px")
    return report.finish()


def _values(report, system, state, layer, arguments, *, dense: bool, what: str):
    count, index = arguments.num_values, arguments.layer
    side = state.shape[1] * state.shape[2]
    name = f"{what}: {count} values, never formed, brh_jax"
    found, steps = _converged(system, state, index, count)
    values, worst = np.asarray(found.values[0]), float((found.residual[0] / found.values[0]).max())
    sides = {name: measure.ours(lambda: jacobian_singular_values(system, state, index, count, num_steps=steps))}
    if layer:
        one = f"{what}: {count} values, never formed, torch.func and scipy's svds"
        report.agree(f"{what}: values and those of torch.func and svds", values, _by_torch(layer, state, count), 1e-4)
        sides[one] = measure.theirs(lambda: _by_torch(layer, state, count))
    # What is held at once is kept apart: the matrix takes more memory than all else.
    times = measure.in_turns(sides, arguments.repeats, already_warm=sides)
    for label, seconds in times.items():
        remark = (
            f"side {side:,}, {steps} steps, largest relative residual {worst:.0e}; peak so far {measure.peak_gb():.2f} GB"
            if label == name
            else ""
        )
        report.row(label, seconds, against=None if label == name else times[name], remark=remark)
    if not dense:
        return
    formed = {}
    if "jax" in arguments.dense_by:
        formed[f"{what}: the whole Jacobian and its SVD, jax"] = measure.ours(_whole_in_jax(system, state, index, count))
    if layer and "torch" in arguments.dense_by:
        formed[f"{what}: the whole Jacobian and its SVD, torch.func"] = measure.theirs(
            lambda: _whole_in_torch(layer, state, count)
        )
    for label, run in formed.items():
        report.agree(f"{label}: values and ours", values, run.run(), 1e-4)
    for label, seconds in measure.in_turns(formed, min(2, arguments.repeats), already_warm=formed).items():
        report.row(label, seconds, against=times[name], remark=f"side {side:,}; peak so far {measure.peak_gb():.2f} GB")


def _converged(system, state, index, count):
    """(singular values, dimension of the Krylov space): the usual one, doubled until the residuals say that it is enough."""
    side = state.shape[1] * state.shape[2]
    steps = min(3 * count + 32, side)
    while True:
        found = jacobian_singular_values(system, state, index, count, num_steps=steps)
        if steps == side or float((found.residual / found.values).max()) < 1e-3:  # the error is about its square
            return found, steps
        steps = min(2 * steps, side)


def _blocks(report, system, state, layer, arguments, what):
    def block():
        return jacobian_block(system, state, arguments.layer, "cls", "cls")

    name = f"{what}: cls -> cls block, brh_jax"
    sides = {name: measure.ours(block)}
    if layer:
        import torch

        whole = _to_torch(state[0])

        def theirs():
            return torch.func.jacrev(lambda cls: layer(torch.cat([cls[None], whole[1:]]))[0], chunk_size=64)(whole[0])

        report.agree(f"{what}: cls -> cls block and torch.func.jacrev's", block()[0], theirs().detach().cpu(), 1e-4)
        sides[f"{what}: cls -> cls block, torch.func.jacrev"] = measure.theirs(theirs)
    times = measure.in_turns(sides, arguments.repeats)
    for label, seconds in times.items():
        report.row(label, seconds, against=None if label == name else times[name])


def _exponents(report, encoder, pixels, arguments, what):
    system, state = encoder.system(), encoder.embed(encoder.normalize_pixels(pixels))
    side = measure.ours(lambda: lyapunov_exponents(system, state, EXPONENTS).exponents)
    name = f"{what}: {EXPONENTS} Lyapunov exponents over {encoder.depth} layers, brh_jax"
    report.row(name, measure.in_turns({name: side}, arguments.repeats)[name], images=1)


def _whole_in_jax(system, state, index, count):
    """Column by column in chunks, as `torch.func.jacrev` does it with `chunk_size`: memory is the matrix's."""
    side = state[0].size

    @jax.jit
    def form(state):
        push = jax.linearize(lambda x: system.step(x[None], index)[0], state)[1]

        def column(i):
            return push(jnp.zeros(side).at[i].set(1).reshape(state.shape)).ravel()

        return jax.lax.map(column, jnp.arange(side), batch_size=64)

    return lambda: np.linalg.svd(np.asarray(form(state[0])), compute_uv=False)[:count]


def _whole_in_torch(layer, state, count):
    import torch

    side = state[0].size
    jacobian = torch.func.jacrev(layer, chunk_size=64)(_to_torch(state[0])).detach()
    return torch.linalg.svdvals(jacobian.reshape(side, side))[:count].cpu().numpy()


def _by_torch(layer, state, count):
    """scipy's Lanczos on J^T J. J v by `torch.func.jvp`, faster than its `linearize`; J^T u by one `vjp` for all of them."""
    import scipy.sparse.linalg
    import torch

    point = _to_torch(state[0])
    _, pull = torch.func.vjp(layer, point)

    def push(vector):
        return torch.func.jvp(layer, (point,), (vector,))[1]

    def product(function):
        def apply(vector):
            given = torch.from_numpy(np.ascontiguousarray(vector, np.float32)).reshape(point.shape).to(point.device)
            result = function(given)
            return (result[0] if isinstance(result, tuple) else result).detach().reshape(-1).cpu().numpy()

        return apply

    side = point.numel()
    jacobian = scipy.sparse.linalg.LinearOperator((side, side), product(push), product(pull), dtype=np.float32)
    rng = np.random.default_rng(0)
    # The tolerance is that of float32 products; by default it would be below.
    values = scipy.sparse.linalg.svds(
        jacobian, count, return_singular_vectors=False, tol=1e-6, v0=rng.normal(size=side).astype(np.float32)
    )
    return np.sort(values)[::-1].copy()


def _torch_layer(encoder, index):
    """One layer of the same model in torch, `[tokens, dim] -> [tokens, dim]`."""
    model = models.in_transformers(encoder)
    model.set_attn_implementation("eager")  # the fused one has no derivative in forward mode
    block = (model.layers if hasattr(model, "layers") else model.encoder.layer)[index]

    def layer(state):
        out = block(state[None])
        return (out if not isinstance(out, tuple) else out[0])[0]

    return layer


def _to_torch(array):
    import torch

    return torch.from_numpy(np.array(array)).to(measure.torch_device())
