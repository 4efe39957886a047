"""Index arithmetic against the slowest possible loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vrl3data.sampling import (
    Layout,
    Starts,
    chunk_rows,
    future_states,
    n_step,
    ordered_states,
    random_states,
    stack_rows,
    uniform_future_states,
)

EPISODES = st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=5)


def layout_of(episodes: list[tuple[int, bool, bool]]) -> Layout:
    lengths, finals, ends = zip(*episodes, strict=True)
    return Layout.packed(lengths, finals, ends)


def every_step(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(e, t) for e in range(layout.episodes) for t in range(layout.lengths_E[e])]
    return np.array([e for e, _ in pairs]), np.array([t for _, t in pairs])


@given(EPISODES, st.integers(1, 5), st.integers(1, 3))
def test_stacks_repeat_the_first_frame_and_stay_in_their_episode(episodes, frames, stride):
    layout = layout_of(episodes)
    episode_B, t_B = every_step(layout)
    rows_BK = stack_rows(layout, episode_B, t_B, frames, stride)
    for episode, t, rows in zip(episode_B, t_B, rows_BK, strict=True):
        wanted = [layout.state_starts_E[episode] + max(0, t - stride * back) for back in reversed(range(frames))]
        assert rows.tolist() == wanted


@given(EPISODES, st.integers(1, 6), st.floats(0.1, 1.0))
def test_n_step_returns_equal_a_loop(episodes, n, gamma):
    layout = layout_of(episodes)
    rewards = np.random.default_rng(0).normal(size=layout.steps)
    episode_B, t_B = every_step(layout)
    found = n_step(layout, lambda rows: rewards[rows], (episode_B, t_B), n, gamma)
    for i, (episode, t) in enumerate(zip(episode_B, t_B, strict=True)):
        length, final, ends = episodes[episode]
        last = length if final or ends else length - 1
        steps = min(n, last - t)
        assert found.mask_B[i] == (steps > 0)
        if steps <= 0:
            assert found.returns_B[i] == 0
            assert found.discount_B[i] == 0
            continue
        start = layout.step_starts_E[episode] + t
        assert found.returns_B[i] == pytest.approx(sum(gamma**k * rewards[start + k] for k in range(steps)))
        dead = ends and t + steps == length
        assert found.discount_B[i] == pytest.approx(0.0 if dead else gamma**steps)
        assert found.next_t_B[i] == min(t + steps, length - (not final))


def test_discount_of_three_steps():
    layout = Layout.packed([5, 3], [True, True], [False, True])
    found = n_step(layout, lambda rows: np.ones(rows.shape), (np.array([0, 1]), np.array([0, 0])), 3, 0.99)
    assert found.discount_B.tolist() == [pytest.approx(0.970299), 0.0]


@given(EPISODES, st.integers(1, 4), st.booleans())
def test_windows_are_whole_or_have_something_to_learn_from(episodes, n, whole):
    layout = layout_of(episodes)
    starts = Starts.of(layout, n, whole=whole)
    offered = list(zip(*starts.place(np.arange(starts.total)), strict=True))
    wanted = []
    for episode, t in zip(*every_step(layout), strict=True):
        length, final, ends = episodes[episode]
        left = length - (not (final or ends)) - t
        if left >= (n if whole else 1):
            wanted.append((episode, t))
    assert offered == wanted


def test_draws_are_uniform_over_steps_or_episodes():
    layout, rng = Layout.packed([90, 10], [True, True], [False, False]), np.random.default_rng(0)
    by_step = Starts.of(layout).draw(20_000, rng)[0].mean()
    by_episode = Starts.of(layout, by="episode").draw(20_000, rng)[0].mean()
    assert by_step == pytest.approx(0.1, abs=0.02)
    assert by_episode == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="no episode is long enough"):
        Starts.of(layout, n=200, whole=True).draw(1, rng)


def test_goals_lie_ahead_in_the_same_episode_at_geometric_distance():
    layout, rng = Layout.packed([400, 400], [True, False], [False, False]), np.random.default_rng(0)
    episode_B, t_B = np.zeros(50_000, np.int64), np.zeros(50_000, np.int64)
    goal_B = future_states(layout, episode_B, t_B, 0.9, rng)
    assert goal_B.min() == 1
    assert goal_B.mean() == pytest.approx(10, rel=0.03)
    assert future_states(layout, episode_B + 1, t_B + 398, 0.9, rng).max() == 399
    episode_B, t_B = random_states(layout, 1000, rng)
    assert set(episode_B.tolist()) == {0, 1}
    assert (t_B < layout.states_E[episode_B]).all()


def test_uniform_goals_and_ordered_frames_are_drawn_alike():
    layout, rng = Layout.packed([4, 2], [True, False], [False, False]), np.random.default_rng(0)
    episode_B = np.zeros(60_000, np.int64)
    goal_B = uniform_future_states(layout, episode_B, episode_B + 1, rng)
    assert np.bincount(goal_B)[2:] / 60_000 == pytest.approx(np.full(3, 1 / 3), abs=0.01)
    assert uniform_future_states(layout, episode_B + 1, episode_B + 1, rng).max() == 1  # nothing follows
    t_BM, mask_B = ordered_states(layout, episode_B, 3, rng)
    sets, counts = np.unique(t_BM, axis=0, return_counts=True)
    assert mask_B.all() and len(sets) == 10 and (np.diff(sets, axis=1) > 0).all()
    assert counts / 60_000 == pytest.approx(np.full(10, 0.1), abs=0.01)
    t_BM, mask_B = ordered_states(layout, episode_B + 1, 3, rng)
    assert not mask_B.any() and t_BM.max() == 1


@given(EPISODES, st.integers(1, 6))
def test_chunks_repeat_the_last_step_and_say_so(episodes, length):
    layout = layout_of(episodes)
    rows_BL, real_BL = chunk_rows(layout, *every_step(layout), length)
    for row, (episode, t) in enumerate(zip(*every_step(layout), strict=True)):
        left = episodes[episode][0] - t
        assert real_BL[row].sum() == min(length, left)
        assert rows_BL[row].max() <= layout.step_starts_E[episode] + episodes[episode][0] - 1
