import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from brh_jax.errors import UserError
from brh_jax.probes import heads
from brh_jax.probes.feature_probe import knn_predict, logistic_predict


def test_knn_is_a_weighted_vote_by_brute_force():
    rng = np.random.default_rng(0)
    features, labels, queries = rng.normal(size=(40, 6)), rng.integers(0, 4, 40), rng.normal(size=(17, 6))
    found = knn_predict(features, labels, queries, 4, (1, 5, 20), temperature=0.07, chunk=8)
    for k in (1, 5, 20):
        for i, query in enumerate(queries):
            cosine = features @ query / np.linalg.norm(features, axis=1) / np.linalg.norm(query)
            votes = np.zeros(4)
            for j in np.argsort(-cosine)[:k]:
                votes[labels[j]] += np.exp(cosine[j] / 0.07)
            assert found[k][i] == votes.argmax()
    with pytest.raises(UserError, match=r"k-NN with \(50,\) neighbours of 40 training images: expected 1 to 40"):
        knn_predict(features, labels, queries, 4, (50,))


def test_knn_of_features_of_any_size():
    """Lengths of features of 1e30 overflow float32, which once made all of them zero and the vote a matter of order."""
    rng = np.random.default_rng(0)
    features, queries = (rng.normal(size=(n, 6)).astype(np.float32) for n in (40, 17))
    labels = rng.integers(0, 4, 40)
    plain, large = (knn_predict(scale * features, labels, scale * queries, 4, (5,))[5] for scale in (1, np.float32(2**100)))
    np.testing.assert_array_equal(large, plain)


def test_logistic_regression_chooses_its_penalty_on_held_out_images():
    data = load_iris()
    rows = np.random.default_rng(0).permutation(150)
    train, test = rows[:100], rows[100:]
    features, labels = data.data, data.target
    predicted, strength, scores = logistic_predict(features[train], labels[train], features[test], strengths=(1e-6, 1.0))
    assert strength == 1.0 and scores[1.0] > scores[1e-6]
    scaler = StandardScaler().fit(features[train])
    plain = LogisticRegression(max_iter=1000).fit(scaler.transform(features[train]), labels[train])
    np.testing.assert_array_equal(predicted, plain.predict(scaler.transform(features[test])))
    assert logistic_predict(features, labels, features, strengths=(1.0,))[2] == {}
    with pytest.raises(UserError, match="two classes or more"):
        logistic_predict(features[:10], labels[:10], features)


def test_choosing_holds_a_part_of_the_training_set_out():
    asked = []

    def score(candidate, rest, held):
        asked.append((sorted(rest), sorted(held)))
        return -abs(candidate - 3)

    assert heads.choose((1, 2, 4), 20, 0.25, 0, score) == (2, {1: -2.0, 2: -1.0, 4: -1.0})
    assert len(asked) == 3 and all(part == asked[0] for part in asked)
    rest, held = asked[0]
    assert len(held) == 5 and sorted(rest + held) == list(range(20))
    assert heads.choose((7,), 20, 0.25, 0, None) == (7, {})
    with pytest.raises(UserError, match="held_out is 0.01: of 20 images that leaves 0"):
        heads.split_rows(20, 0.01, 0)


def test_bootstrap_interval_of_a_share_is_about_the_binomial_one():
    hits = (np.arange(400) < 120).astype(float)
    low, high = heads.bootstrap_interval(np.stack([hits, np.ones(400)], 1), lambda total: total[0] / total[1])
    half = 1.96 * np.sqrt(0.3 * 0.7 / 400)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.006)
