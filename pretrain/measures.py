"""What frozen features are worth, in numbers: rank correlations with time, linear read-outs. Pure NumPy.

Legend: N rows (frames or pictures), D features, K targets or classes, T states of one episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
RIDGES = tuple(10.0**power for power in range(-1, 6))
FOLDS = 5
NEIGHBOURS = 20


def ranks(values_N: Floats) -> Floats:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse.reshape(-1)]


def spearman(a_N: Floats, b_N: Floats) -> float:
    """Spearman's rank correlation in -1..1; 0 where one side does not vary."""
    one, other = ranks(a_N), ranks(b_N)
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale else 0.0


def pair_correlation(features_TD: Floats) -> float:
    """Spearman(|f_t - f_u|, |t - u|) over all pairs of one episode: 1 where distance tells how far apart in time."""
    first, second = np.triu_indices(len(features_TD), 1)
    distance = distances(features_TD, features_TD)[first, second]
    return spearman(distance, (second - first).astype(np.float64))


def goal_correlation(features_TD: Floats) -> float:
    """-Spearman(|f_t - f_T|, t): 1 where the distance to the last frame falls all the way."""
    distance = distances(features_TD, features_TD[-1:])[:-1, 0]
    return -spearman(distance, np.arange(len(distance), dtype=np.float64))


def distances(a_ND: Floats, b_MD: Floats) -> Floats:
    """Euclidean distances (N, M). Centred first, so that a large common offset costs no digits."""
    center_D = b_MD.mean(0)
    a, b = (a_ND - center_D).astype(np.float64), (b_MD - center_D).astype(np.float64)
    squares: Floats = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


@dataclass(frozen=True)
class Scaler:
    """Standardises as the rows it was fitted on; what did not vary there is only centred."""

    mean_D: Floats
    std_D: Floats

    @classmethod
    def fit(cls, features_ND: Floats) -> Scaler:
        std_D = features_ND.std(0)
        return cls(features_ND.mean(0), np.where(std_D > 1e-8, std_D, 1.0))

    def __call__(self, features_ND: Floats) -> Floats:
        return (features_ND - self.mean_D) / self.std_D


def ridge(features_ND: Floats, targets_NK: Floats, strength: float) -> tuple[Floats, Floats]:
    """(weights (D, K), offsets (K,)) of ridge regression on centred data; `strength` is the added diagonal."""
    mean_D, mean_K = features_ND.mean(0), targets_NK.mean(0)
    centred = features_ND - mean_D
    gram = centred.T @ centred + strength * np.eye(centred.shape[1])
    weights_DK = np.linalg.solve(gram, centred.T @ (targets_NK - mean_K))
    return weights_DK, mean_K - mean_D @ weights_DK


def r2(truth_NK: Floats, guess_NK: Floats) -> Floats:
    """Coefficient of determination of each target (K,); 0 for a target that does not vary."""
    total_K = ((truth_NK - truth_NK.mean(0)) ** 2).sum(0)
    missed_K = ((truth_NK - guess_NK) ** 2).sum(0)
    return np.where(total_K > 1e-12, 1 - missed_K / np.maximum(total_K, 1e-12), 0.0)


def ridge_r2(train_ND: Floats, targets_NK: Floats, groups_N: NDArray[np.int64], test: tuple[Floats, Floats]) -> Floats:
    """R2 (K,) on `test` (features, targets) of a ridge regression fitted on the training rows.

    Features are standardised. The strength is the one of RIDGES with the best mean R2 in cross-validation over the
    training groups (episodes), five folds of whole groups; with a single group, the middle one.
    """
    scaler = Scaler.fit(train_ND.astype(np.float64))
    features = scaler(train_ND.astype(np.float64))
    known, folds_N = np.unique(groups_N, return_inverse=True)
    strength = RIDGES[len(RIDGES) // 2]
    if len(known) > 1:
        folds = min(FOLDS, len(known))
        found = [_validated(features, targets_NK, folds_N.reshape(-1) % folds == fold) for fold in range(folds)]
        strength = RIDGES[int(np.mean(found, axis=0).argmax())]
    weights, offsets = ridge(features, targets_NK, strength)
    return r2(test[1], scaler(test[0].astype(np.float64)) @ weights + offsets)


def _validated(features_ND: Floats, targets_NK: Floats, checked_N: NDArray[np.bool_]) -> list[float]:
    """Mean R2 on the checked rows for each strength, fitted on the others."""
    fits = [ridge(features_ND[~checked_N], targets_NK[~checked_N], strength) for strength in RIDGES]
    return [float(r2(targets_NK[checked_N], features_ND[checked_N] @ w + o).mean()) for w, o in fits]


def linear_top1(
    train_ND: Floats, labels_N: NDArray[np.int64], test_MD: Floats, truth_M: NDArray[np.int64]
) -> float:  # fmt: skip
    """Top-1 of multinomial logistic regression on standardised features (L-BFGS, weight decay 1e-3)."""
    import torch

    scaler = Scaler.fit(train_ND)
    features, labels = torch.from_numpy(scaler(train_ND)).float(), torch.from_numpy(labels_N)
    weights = torch.zeros(int(labels_N.max()) + 1, features.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = features @ weights[:, :-1].T + weights[:, -1]
        penalty = 0.5e-3 * weights[:, :-1].square().sum()
        loss: torch.Tensor = torch.nn.functional.cross_entropy(logits, labels) + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    matrix = weights.detach().numpy()
    answers = (scaler(test_MD) @ matrix[:, :-1].T + matrix[:, -1]).argmax(1)
    return float((answers == truth_M).mean())


def knn_top1(
    train_ND: Floats, labels_N: NDArray[np.int64], test_MD: Floats, truth_M: NDArray[np.int64], k: int = NEIGHBOURS
) -> float:
    """Top-1 of the vote of the k nearest by cosine, weighted by exp(cosine / 0.07) (Wu et al. 2018)."""
    scaler = Scaler.fit(train_ND)
    train, test = _unit(scaler(train_ND)), _unit(scaler(test_MD))
    cosines = test @ train.T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    weights = np.exp((np.take_along_axis(cosines, nearest, 1) - 1) / 0.07)
    votes = np.zeros((len(test), int(labels_N.max()) + 1))
    for place in range(nearest.shape[1]):
        np.add.at(votes, (np.arange(len(test)), labels_N[nearest[:, place]]), weights[:, place])
    return float((votes.argmax(1) == truth_M).mean())


def _unit(rows_ND: Floats) -> Floats:
    return rows_ND / np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class Pca:
    """Principal components of the rows it was fitted on."""

    mean_D: Floats
    axes_DK: Floats

    @classmethod
    def fit(cls, rows_ND: Floats, count: int) -> Pca:
        mean_D = rows_ND.mean(0)
        centred = (rows_ND - mean_D).astype(np.float64)
        _, axes = np.linalg.eigh(centred.T @ centred)
        return cls(mean_D, axes[:, ::-1][:, :count])

    def __call__(self, rows_ND: Floats) -> Floats:
        return (rows_ND - self.mean_D) @ self.axes_DK


def mean_over(episodes: Sequence[Floats], measure: object) -> float:
    """The mean of a measure of one episode over all that have more than two states."""
    assert callable(measure)
    return float(np.mean([measure(features_TD) for features_TD in episodes if len(features_TD) > 2]))
