import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brh_jax.dynamics import DepthSystem
from brh_jax.dynamics.influence import jacobian_structure, token_influence
from brh_jax.dynamics.jacobian import jacobian_block, jacobian_eigenvalues, jacobian_singular_values
from brh_jax.tokens import TokenLayout

LAYOUT = TokenLayout(1, 0, (1, 2))
SIZE = 3 * 4
KEY = jax.random.key(7)


def linear(matrix, depth=3, layout=LAYOUT):
    """The system whose every layer is `matrix`, over all tokens at once; compiled once for all matrices."""
    return DepthSystem(jax.tree_util.Partial(multiply, jnp.asarray(matrix)), depth, layout)


def multiply(matrix, state, layer):
    return (state.reshape(len(state), -1) @ matrix.T).reshape(state.shape)


def random_state(batch=2, tokens=3, dim=4, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, tokens, dim))


def orthogonal(seed, size=SIZE):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def rotations(angle, size=SIZE):
    """`size / 2` planes that turn by the same angle."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    basis = orthogonal(5, size)
    return (basis @ np.kron(np.eye(size // 2), turn) @ basis.T).astype(np.float32)


class TestKnownMaps:
    def test_given_singular_values(self):
        expected = np.linspace(3, 0.1, SIZE).astype(np.float32)
        left, right = orthogonal(1), orthogonal(2)
        matrix = (left * expected) @ right.T
        found = jacobian_singular_values(linear(matrix.astype(np.float32)), random_state(), 1, 4)
        assert found.left.shape == found.right.shape == (2, 4, 3, 4)
        np.testing.assert_allclose(found.values, np.tile(expected[:4], (2, 1)), rtol=1e-5)
        for image in range(2):
            np.testing.assert_allclose(np.abs(found.left[image].reshape(4, -1) @ left[:, :4]), np.eye(4), atol=1e-4)
            np.testing.assert_allclose(np.abs(found.right[image].reshape(4, -1) @ right[:, :4]), np.eye(4), atol=1e-4)
        assert np.max(found.residual) < 1e-4

    def test_residual_bounds_the_error_of_too_few_steps(self):
        spectrum = np.linspace(3, 0.1, SIZE)
        matrix = ((orthogonal(1) * spectrum) @ orthogonal(2).T).astype(np.float32)
        found = jacobian_singular_values(linear(matrix), random_state(1), 0, 3, num_steps=5)
        right, left = (np.asarray(v[0]).reshape(3, -1) for v in (found.right, found.left))
        np.testing.assert_allclose(right @ matrix.T, found.values[0, :, None] * left, atol=1e-5)
        actual = np.linalg.norm(left @ matrix - found.values[0, :, None] * right, axis=-1)
        np.testing.assert_allclose(found.residual[0], actual, rtol=1e-3, atol=1e-5)
        assert np.max(actual) > 1e-2
        distance = np.abs(np.asarray(found.values[0])[:, None] - spectrum).min(1)
        assert np.all(distance <= actual + 1e-6)

    def test_eigenvalues_of_a_matrix_that_is_not_normal(self):
        diagonal = np.linspace(2, 0.2, SIZE) * np.where(np.arange(SIZE) % 3, 1, -1)
        matrix = np.diag(diagonal) + np.triu(np.random.default_rng(0).normal(size=(SIZE, SIZE)), 1)
        system = linear(matrix.astype(np.float32))
        found = jacobian_eigenvalues(system, random_state(), 0, 4)
        assert found.values.shape == found.residual.shape == (2, 4)
        np.testing.assert_allclose(found.values, np.tile(diagonal[:4], (2, 1)), rtol=1e-3, atol=1e-3)
        singular = jacobian_singular_values(system, random_state(), 0, 4).values
        np.testing.assert_allclose(singular[0], np.linalg.svd(matrix)[1][:4], rtol=1e-5)

    @pytest.mark.parametrize("number", [1, 3, 5, 11])
    def test_a_pair_that_is_cut_shows_the_one_of_positive_imaginary_part(self, number):
        turn = np.kron(np.diag(np.arange(6.0, 0, -1)), [[0.8, -0.6], [0.6, 0.8]])
        matrix = orthogonal(5) @ turn @ orthogonal(5).T
        found = jacobian_eigenvalues(linear(matrix.astype(np.float32)), random_state(), 0, number).values
        expected = np.repeat(np.arange(6.0, 0, -1), 2) * (0.8 + 0.6j * np.tile([1, -1], 6))
        np.testing.assert_allclose(found, np.tile(expected[:number], (2, 1)), rtol=1e-3)

    def test_a_span_is_the_product_of_its_layers(self):
        system = DepthSystem(lambda state, layer: (layer + 1.0) * state, 4, LAYOUT)
        for stop, factor in ((None, 2), (3, 6), (4, 24)):
            found = jacobian_block(system, random_state(), 1, 0, 0, stop=stop)
            np.testing.assert_allclose(found, np.tile(factor * np.eye(4), (2, 1, 1)))

    def test_a_rotation(self):
        system, state = linear(rotations(0.3)), random_state()
        np.testing.assert_allclose(jacobian_singular_values(system, state, 0, SIZE).values, np.ones((2, SIZE)), rtol=1e-5)
        values = np.asarray(jacobian_eigenvalues(system, state, 0, 4).values)
        np.testing.assert_allclose(values.real, np.full((2, 4), np.cos(0.3)), rtol=1e-4)
        np.testing.assert_allclose(np.sort(values.imag), np.sin(0.3) * np.array([[-1, -1, 1, 1]] * 2), rtol=1e-4)
        parts = jacobian_structure(system, state, 0, num_probes=None)
        expected = np.sqrt(SIZE) * np.array([1, np.cos(0.3), np.sin(0.3), 2 * np.sin(0.15)])
        np.testing.assert_allclose(np.stack(parts[:4]), np.tile(expected[:, None], 2), rtol=1e-5)
        assert parts.standard_error is None

    @pytest.mark.parametrize("values", [np.ones(SIZE), 4 * np.ones(SIZE), np.eye(SIZE)[0], np.zeros(SIZE)])
    def test_exactly_invariant_krylov_spaces(self, values):
        """An identity, a map of rank one and none at all: a bidiagonalisation of these meets a zero vector."""
        system, state = linear(np.diag(values).astype(np.float32)), random_state()
        expected = np.tile(values, (2, 1))
        np.testing.assert_allclose(jacobian_singular_values(system, state, 0, SIZE).values, expected, atol=3e-6)
        np.testing.assert_allclose(jacobian_singular_values(system, state, 0, 4).values, expected[:, :4], atol=3e-6)
        np.testing.assert_allclose(jacobian_eigenvalues(system, state, 0, 4).values, expected[:, :4], atol=3e-5)

    def test_the_sphere_map_at_an_eigenvector(self):
        layout = TokenLayout(1, 0, (0, 0))
        state = jnp.tile(jnp.array([5.0, 0, 0]), (2, 1, 1))
        system = linear(np.diag([2.0, 3, 1]).astype(np.float32), layout=layout)
        for options in ({}, {"token": "cls"}):
            found = jacobian_singular_values(system, state, 0, 3, sphere=True, **options)
            np.testing.assert_allclose(found.values, [[1.5, 0.5, 0]] * 2, atol=1e-6)
        np.testing.assert_allclose(jacobian_eigenvalues(system, state, 0, 2, sphere=True).values, [[1.5, 0.5]] * 2, atol=2e-5)
        for options in ({"num_probes": None}, {"token": "cls"}):
            parts = jacobian_structure(system, state, 0, sphere=True, **options)
            expected = [[np.hypot(1.5, 0.5)] * 2] * 2 + [[0, 0], [np.hypot(0.5, 0.5)] * 2]
            np.testing.assert_allclose(np.stack(parts[:4]), expected, atol=1e-6)


@pytest.fixture(scope="module")
def vit(tiny_encoder, tiny_images):
    """A ViT of 19 tokens of width 16, and the states that enter its layers for two images."""
    return tiny_encoder.system(), tiny_encoder.trajectory(tiny_images[:2])


@pytest.fixture(scope="module", params=["layer", "sphere", "span"])
def dense(request, vit):
    """(the options, the layer, the Jacobians [batch, tokens, dim, tokens, dim] by forward mode)."""
    system, states = vit
    options = {"layer": {}, "sphere": {"sphere": True}, "span": {"stop": 5}}[request.param]
    layer = 2

    def f(x):
        for index in range(layer, options.get("stop", layer + 1)):
            x = system.step(x, index)
        return x

    def of_directions(u, norms):
        y = f(norms * u)
        return y / jnp.linalg.norm(y, axis=-1, keepdims=True)

    def jacobian(x):
        if request.param != "sphere":
            return jax.jacfwd(lambda x: f(x[None])[0])(x)
        norms = jnp.linalg.norm(x, axis=-1, keepdims=True)
        unit = x / norms
        raw = jax.jacfwd(lambda u: of_directions(u[None], norms)[0])(unit)
        tangent = jnp.eye(x.shape[-1]) - unit[:, :, None] * unit[:, None]
        return jnp.einsum("abcd,cde->abce", raw, tangent)

    # One by one: jaxlib 0.10.2 gets jit(vmap(jacfwd(LayerNorm))) wrong on CPUs in every image but the first (see jax#39103).
    return options, layer, np.stack([jax.jit(jacobian)(state) for state in states[layer]])


class TestViT:
    def test_singular_values(self, vit, dense):
        system, states = vit
        options, layer, jacobians = dense
        found = jacobian_singular_values(system, states[layer], layer, 12, **options)
        matrices = jacobians.reshape(2, 304, 304)
        np.testing.assert_allclose(found.values, np.linalg.svd(matrices)[1][:, :12], rtol=1e-4)
        left, right = (np.asarray(v).reshape(2, 12, 304) for v in (found.left, found.right))
        np.testing.assert_allclose(np.einsum("bij,bnj->bni", matrices, right), found.values[..., None] * left, atol=1e-4)
        for vectors in (left, right):
            np.testing.assert_allclose(vectors @ vectors.transpose(0, 2, 1), np.tile(np.eye(12), (2, 1, 1)), atol=1e-4)

    def test_eigenvalues(self, vit, dense):
        system, states = vit
        options, layer, jacobians = dense
        found = jacobian_eigenvalues(system, states[layer], layer, 6, num_steps=120, **options)
        for matrix, values in zip(jacobians.reshape(2, 304, 304), np.asarray(found.values), strict=True):
            expected = np.linalg.eigvals(matrix.astype(np.float64))
            expected = expected[np.lexsort((-expected.imag, -np.abs(expected)))][:6]
            np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
        assert np.max(found.residual) < 1e-3

    def test_blocks(self, vit, dense):
        system, states = vit
        options, layer, jacobians = dense

        def block(source, target):
            return jacobian_block(system, states[layer], layer, source, target, **options)

        def same(found, expected):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

        same(block("cls", 7), jacobians[:, 7, :, 0])
        same(block(7, "cls"), jacobians[:, 0, :, 7])
        same(block("registers", "patches"), jacobians[:, 3:, :, 1:3])
        same(block("patches", 1), jacobians[:, 1, :, 3:])  # in reverse mode

    def test_the_block_of_a_token(self, vit, dense):
        system, states = vit
        options, layer, jacobians = dense
        for token, index in (("cls", 0), (4, 4)):
            found = jacobian_singular_values(system, states[layer], layer, token=token, **options)
            assert found.values.shape == (2, 16)
            expected = jacobians[:, index, :, index]
            np.testing.assert_allclose(found.values, np.linalg.svd(expected)[1], rtol=1e-4, atol=1e-5)
            rebuilt = np.einsum("bni,bn,bnj->bij", found.left, found.values, found.right)
            np.testing.assert_allclose(rebuilt, expected, atol=1e-4)
        assert jacobian_singular_values(system, states[layer], layer, 3, token="cls", **options).left.shape == (2, 3, 16)

    def test_influence(self, vit, dense):
        system, states = vit
        options, layer, jacobians = dense
        expected = np.sqrt((jacobians**2).sum((2, 4)))
        exact = token_influence(system, states[layer], layer, num_probes=None, **options)
        np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-6)
        estimate = token_influence(system, states[layer], layer, num_probes=64, key=KEY, **options)
        error = np.asarray(estimate) / expected - 1
        # At most 1 / sqrt(128) = 0.09 at each entry; the mean over entries is all but unbiased.
        assert 1e-4 < np.sqrt(np.mean(error**2)) < 0.09
        assert np.abs(np.mean(error)) < 0.02

    def test_structure(self, vit, dense):
        system, states = vit
        options, layer, jacobians = dense
        unit = np.asarray(states[layer] / jnp.linalg.norm(states[layer], axis=-1, keepdims=True))
        identity = np.einsum("ac,be->abce", np.eye(19), np.eye(16))[None].repeat(2, 0)
        if "sphere" in options:
            identity -= np.einsum("ac,nab,nae->nabce", np.eye(19), unit, unit)

        def parts(j, identity, axes):
            transposed = j.transpose(0, *range(1 + len(axes) // 2, 1 + len(axes)), *range(1, 1 + len(axes) // 2))
            parts = (j, (j + transposed) / 2, (j - transposed) / 2, j - identity)
            return np.stack([np.sqrt((p**2).sum(axes)) for p in parts])

        expected = parts(jacobians, identity, (1, 2, 3, 4))
        exact = jacobian_structure(system, states[layer], layer, num_probes=None, **options)
        np.testing.assert_allclose(np.stack(exact[:4]), expected, rtol=1e-4)
        estimate = jacobian_structure(system, states[layer], layer, key=KEY, **options)
        error = np.stack(estimate.standard_error[:4])
        assert np.all(np.abs(np.stack(estimate[:4]) - expected) < 4 * error)
        assert np.all(error < 0.1 * expected)
        token = jacobian_structure(system, states[layer], layer, token=5, **options)
        expected = parts(jacobians[:, 5, :, 5], identity[:, 5, :, 5], (1, 2))
        np.testing.assert_allclose(np.stack(token[:4]), expected, rtol=1e-4)

    def test_the_feed_forward_half_moves_no_other_token(self, tiny_encoder, vit):
        halves = tiny_encoder.system(sublayers=True)
        influence = np.asarray(token_influence(halves, vit[1][2], 5, num_probes=4, key=KEY))
        apart = ~np.eye(19, dtype=bool)
        assert influence[:, apart].max() == 0
        assert influence[:, ~apart].min() > 1
        assert np.asarray(token_influence(halves, vit[1][2], 4, num_probes=4, key=KEY))[:, apart].min() > 0


def test_mean_of_the_standard_errors_is_that_of_the_estimates():
    matrix = np.random.default_rng(3).normal(size=(SIZE, SIZE)).astype(np.float32)
    system, state = linear(matrix), random_state(1)
    runs = [jacobian_structure(system, state, 0, num_probes=32, key=key) for key in jax.random.split(KEY, 60)]
    for field in ("norm", "symmetric", "antisymmetric", "from_identity"):
        spread = np.std([getattr(run, field) for run in runs])
        said = np.mean([getattr(run.standard_error, field) for run in runs])
        assert 0.7 < said / spread < 1.4


MEASURES = {
    "singular values": lambda system, state, layer: jacobian_singular_values(system, state, layer, 3),
    "eigenvalues": lambda system, state, layer: jacobian_eigenvalues(system, state, layer, 2),
    "block": lambda system, state, layer: jacobian_block(system, state, layer, layer, "patches"),
    "token": lambda system, state, layer: jacobian_singular_values(system, state, layer, token=layer),
    "influence": lambda system, state, layer: token_influence(system, state, layer, num_probes=2, key=KEY),
    "structure": lambda system, state, layer: jacobian_structure(system, state, layer, num_probes=2, key=KEY),
}


@pytest.fixture(params=MEASURES)
def measure(request):
    return MEASURES[request.param]


def test_compiled_once_per_shape(measure):
    traces = []

    def step(state, layer):
        traces.append(1)
        return (layer + 2.0) * jnp.tanh(state) + jnp.mean(state, 1, keepdims=True)

    system = DepthSystem(step, 3, LAYOUT)
    first = measure(system, random_state(), 0)
    count = len(traces)
    second = measure(system, random_state(seed=1), 1)
    assert count and len(traces) == count
    assert not np.allclose(jax.tree.leaves(first)[0], jax.tree.leaves(second)[0])


def test_sharded_over_images(measure):
    def step(state, layer):
        return (layer + 2.0) * jnp.tanh(state) + jnp.mean(state, 1, keepdims=True)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    state, system = random_state(8), DepthSystem(step, 3, LAYOUT)
    sharded = measure(system, jax.device_put(state, sharding), 1)
    for one, many in zip(jax.tree.leaves(measure(system, state, 1)), jax.tree.leaves(sharded), strict=True):
        # Eigenvalues, which are small, come to the host.
        assert isinstance(many, np.ndarray) or many.sharding.is_equivalent_to(sharding, many.ndim)
        np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_precision_is_that_of_the_state(dtype):
    with jax.enable_x64(True):
        matrix = np.random.default_rng(3).normal(size=(SIZE, SIZE)).astype(dtype)
        system, state = linear(matrix), jnp.asarray(random_state(), dtype)
        tolerance = 1e-12 if dtype == np.float64 else 1e-5
        found = jacobian_singular_values(system, state, 0, 4)
        assert found.values.dtype == found.left.dtype == found.residual.dtype == dtype
        np.testing.assert_allclose(found.values[0], np.linalg.svd(matrix)[1][:4], rtol=tolerance)
        eigenvalues = jacobian_eigenvalues(system, state, 0, SIZE).values[0]
        expected = np.linalg.eigvals(matrix)
        assert eigenvalues.dtype == np.result_type(dtype, np.complex64)
        np.testing.assert_allclose(np.abs(eigenvalues), np.sort(np.abs(expected))[::-1], rtol=20 * tolerance)
        assert token_influence(system, state, 0, key=KEY).dtype == dtype
        assert jacobian_structure(system, state, 0, key=KEY).standard_error.norm.dtype == dtype


@pytest.mark.wrong_types
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": jnp.ones((3, 4))}, r"expected a state \[batch, tokens, dim\]"),
        ({"state": jnp.ones((1, 5, 4))}, "expected 3 tokens"),
        ({"state": jnp.full((1, 3, 4), jnp.nan)}, "not finite"),
        ({"layer": 3}, "layer 3 is out of range"),
        ({"layer": 1, "stop": 1}, "stop 1 does not end a span that starts with layer 1: expected 2 to 3"),
        ({"stop": 4}, "stop 4 does not end a span"),
    ],
)
def test_what_all_of_them_refuse(arguments, message):
    system = linear(np.eye(SIZE, dtype=np.float32))
    arguments = {"state": random_state(), "layer": 0} | arguments
    for function, options in (
        (jacobian_singular_values, {}),
        (jacobian_eigenvalues, {}),
        (jacobian_block, {"source": 0, "target": 0}),
        (token_influence, {"key": KEY}),
        (jacobian_structure, {"key": KEY}),
    ):
        with pytest.raises(ValueError, match=message):
            function(system, **arguments, **options)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (jacobian_singular_values, {"num_values": 13}, "num_values = 13 is out of range: expected 1 to 12"),
        (jacobian_singular_values, {"num_values": 0}, "num_values = 0 is out of range"),
        (jacobian_singular_values, {"num_values": 4, "num_steps": 3}, "num_steps = 3 is out of range: expected 4 to 12"),
        (jacobian_singular_values, {"num_values": 5, "token": 0}, "num_values = 5 is out of range: expected 1 to 4"),
        (jacobian_singular_values, {"token": "patches"}, "'patches' are tokens 1 to 2: name one of them by its index"),
        (jacobian_singular_values, {"token": "registers"}, "the system has no registers"),
        (jacobian_singular_values, {"token": "class"}, "unknown token 'class': expected an index, or one of cls"),
        (jacobian_singular_values, {"token": 3}, "token 3 is out of range.*the system has 3"),
        (jacobian_eigenvalues, {"num_values": 13}, "num_values = 13 is out of range"),
        (jacobian_block, {"source": -1, "target": 0}, "token -1 is out of range"),
        (
            jacobian_block,
            {"source": "cls", "target": "patches", "max_bytes": 100},
            r"'cls' -> 'patches' of 2 images takes 0.0 GB",
        ),
        (token_influence, {}, "need a key"),
        (token_influence, {"num_probes": 0, "key": KEY}, "num_probes = 0: expected at least 1"),
        (jacobian_structure, {}, "need a key"),
        (jacobian_structure, {"num_probes": 1, "key": KEY}, "num_probes = 1: expected at least 2"),
        (jacobian_structure, {"token": "registers"}, "the system has no registers"),
    ],
)
def test_bad_arguments(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(linear(np.eye(SIZE, dtype=np.float32)), random_state(), 0, **arguments)
