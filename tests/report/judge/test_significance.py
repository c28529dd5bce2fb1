"""Ranks and tests against the worked examples of Demsar (2006), brute force over signs, and SciPy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from dembench.report.judge.significance import critical_difference, friedman, holm, ranks, signed_ranks

# Demsar (2006), table 6: AUC of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 data sets. Two pairs that print alike have ranks
# of their own there (voting), so the last digit is told apart here.
AUC = np.array([
    [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
    [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
    [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
    [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
    [0.972, 0.981, 0.9751, 0.975], [0.957, 0.978, 0.946, 0.970],
])  # fmt: skip
# table 5a: critical values of Nemenyi's test, which the paper prints cut or rounded to three decimals
Q05 = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
Q10 = {2: 1.645, 3: 2.052, 4: 2.291, 5: 2.459, 6: 2.589, 7: 2.693, 8: 2.780, 9: 2.855, 10: 2.920}


def test_mean_ranks_and_critical_difference_of_the_paper():
    found = friedman(AUC)
    assert found.mean == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    assert found.rows == 14
    assert found.difference == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, 0.10) == pytest.approx(1.12, abs=5e-3)
    assert found.groups() == [(3, 1, 2, 0)]  # at 5% even best and worst are not apart


def test_friedman_is_the_papers_statistic_up_to_the_correction_for_ties():
    found, n, k = friedman(AUC), *AUC.shape
    plain = 12 * n / (k * (k + 1)) * (np.square(found.mean).sum() - k * (k + 1) ** 2 / 4)
    assert plain == pytest.approx(9.28, abs=5e-3)
    assert (n - 1) * plain / (n * (k - 1) - plain) == pytest.approx(3.69, abs=5e-3)
    _, counts = np.unique(AUC[0], return_counts=True)
    ties = sum(
        (np.unique(row, return_counts=True)[1] ** 3 - np.unique(row, return_counts=True)[1]).sum() for row in AUC
    )
    corrected = plain / (1 - ties / (n * (k**3 - k)))
    assert found.friedman == pytest.approx(corrected)
    assert found.p == pytest.approx(stats.chi2.sf(corrected, k - 1))
    assert found.iman_davenport == pytest.approx((n - 1) * corrected / (n * (k - 1) - corrected))


@pytest.mark.parametrize(("level", "table"), [(0.05, Q05), (0.10, Q10)])
def test_critical_values_are_those_of_the_published_table(level, table):
    for k, q in table.items():
        assert critical_difference(k, 1, level) / np.sqrt(k * (k + 1) / 6) == pytest.approx(q, abs=1.1e-3)


def test_groups_at_ten_per_cent_are_those_of_the_papers_figure():
    """Figure 1a: C4.5 is worse than C4.5+m and C4.5+m+cf; C4.5+cf belongs to both groups."""
    from dataclasses import replace

    found = replace(friedman(AUC), difference=critical_difference(4, 14, 0.10))
    assert found.groups() == [(3, 1, 2), (2, 0)]


def test_no_friedman_test_of_too_little():
    assert friedman(AUC[:2]).p is None
    assert friedman(AUC[:, :2]).p is None
    assert friedman(np.ones((5, 3))).p is None
    assert friedman(np.ones((5, 3))).mean == (2, 2, 2)
    assert friedman(AUC[:2]).groups() == []


def test_ranks_share_ties():
    assert ranks(np.array([[3.0, 1.0, 3.0], [0.0, 0.5, 1.0]])).tolist() == [[1.5, 3, 1.5], [3, 2, 1]]


def test_wilcoxon_of_the_paper():
    """Table 2 compares C4.5 and C4.5+m: R+ 93, R- 12, two zeros split between the signs."""
    difference = np.round(AUC[:, 1] - AUC[:, 0], 3)
    found = signed_ranks(difference)
    order = stats.rankdata(np.abs(difference))
    split = order[difference == 0].sum() / 2
    assert order[difference > 0].sum() + split == pytest.approx(93)
    assert order[difference < 0].sum() + split == pytest.approx(12)
    assert (found.n, found.ties) == (14, 2)
    assert 0.005 < found.p < 0.02  # the paper: T = 12 is below 21, the critical value at 5%


@pytest.mark.parametrize("values", [(0.4, 1.2, -0.3, 2.0, 1.1, 0.9), (1, 2, 2, -1, 3, 3, 4), (0, 1, 2, 3, 4, 5, 6, -1)])
def test_wilcoxon_is_exact_over_all_signs(values):
    """P(a rank sum as far from its mean), over every assignment of signs; zeros carry half a rank each way."""
    values = np.array(values, dtype=float)
    order = stats.rankdata(np.abs(values))
    zeros = order[values == 0].sum() / 2

    def rank_sum(signs):
        return order[(signs > 0) & (values != 0)].sum() + zeros

    centre = order.sum() / 2
    far = abs(rank_sum(np.sign(values)) - centre)
    signs = (np.array(pattern) for pattern in product((-1, 1), repeat=len(values)))
    p = np.mean([abs(rank_sum(pattern) - centre) >= far - 1e-9 for pattern in signs])
    assert signed_ranks(values).p == pytest.approx(p)


@pytest.mark.parametrize("n", range(1, 9))
def test_no_test_where_no_outcome_could_be_significant(n):
    found = signed_ranks(np.arange(1, n + 1))
    assert found.smallest == pytest.approx(min(1, 2 / 2**n))
    assert (found.p is None) == (n < 6)
    if found.p is not None:
        assert found.p == pytest.approx(found.smallest)


def test_zeros_are_no_evidence():
    assert signed_ranks([0.0] * 10).p is None
    assert signed_ranks([0.0] * 10 + [1.0] * 5).p is None
    assert signed_ranks([]).p is None


def test_holm_is_the_papers_step_down():
    """Section 3.2.2: p 0.016, 0.019 and 0.607 against 0.017, 0.025 and 0.05; the first two are rejected."""
    adjusted = holm([0.607, None, 0.016, 0.019])
    assert adjusted == pytest.approx([0.607, None, 0.048, 0.048])
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, rng.integers(1, 8))
        order = np.argsort(p)
        rejected = np.zeros(len(p), dtype=bool)
        for done, i in enumerate(order):  # the definition: stop at the first that is not below its share
            if p[i] > 0.05 / (len(p) - done):
                break
            rejected[i] = True
        assert [value <= 0.05 for value in holm(list(p))] == rejected.tolist()
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
