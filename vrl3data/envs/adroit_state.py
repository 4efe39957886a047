"""Adroit simulator states and rewards, worked out from recorded observations.

States are never replayed open loop: every step is set from what was observed at that step.
Shapes: T steps, D observation entries, Q joints (all slides or hinges, so positions and velocities have
the same number), 3 coordinates. Units: metres, radians, seconds; world frame; float64 throughout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vrl3data.envs.gl import load_mujoco

if TYPE_CHECKING:
    import mujoco

Array = NDArray[np.float64]
Goals = NDArray[np.bool_]

DT = 0.01  # one recorded step: 5 substeps of 0.002 s


@dataclass(frozen=True)
class States:
    """States of one episode. `object_pos_T3` is where the door's handle, hammer, pen or ball is.

    `error_T` is the largest difference at each step between the observation recomputed from the state
    and the recorded one, in the unit of the entry (metres, radians; directions have none). Entries that
    were copied into the state agree by construction; velocities, the nail's impact force and the
    door-open flag are left out. Recorded positions are one 2 ms substep older than recorded joints, so
    real episodes are off by millimetres. Pen is not: all its checked entries were solved for.
    """

    qpos_TQ: Array
    qvel_TQ: Array
    error_T: Array
    object_pos_T3: Array


def reconstruct(task_name: str, model: mujoco.MjModel, start_Q: Array, obs_TD: Array) -> States:
    """Find the state behind each observation of one episode; `AdroitScene.reconstruct` checks and calls.

    Joints are copied where they are observed and solved for where only their effect is. Never observed:
    the ball's rotation (relocate), which stays zero, and the pen's spin about its own axis, which is
    integrated from its recorded velocity. `start_Q` only says on which branch the angles of hammer and
    pen start, and where the spin does. Velocities are finite differences (the last row repeats
    the one before it; zeros if T is 1) except where the observation records them.
    """
    data = load_mujoco().MjData(model)
    if task_name == "door":
        qpos_TQ = _door_positions(model, data, obs_TD)
    elif task_name == "relocate":
        qpos_TQ = _relocate_positions(model, data, obs_TD)
    elif task_name == "hammer":
        qpos_TQ = _hammer_positions(model, start_Q, obs_TD)
    else:
        qpos_TQ = _pen_positions(model, start_Q, obs_TD)
    error_T = np.zeros(len(obs_TD))
    object_pos_T3 = np.zeros((len(obs_TD), 3))
    for step, obs_D in enumerate(obs_TD):
        _set_joints(model, data, qpos_TQ[step])
        difference_D = observe(task_name, data) - obs_D
        if task_name == "hammer":  # Euler angles: a difference of a full turn is none
            difference_D[39:42] = (difference_D[39:42] + np.pi) % (2 * np.pi) - np.pi
        error_T[step] = np.nanmax(np.abs(difference_D))
        object_pos_T3[step] = _object_position(task_name, data)
    return States(qpos_TQ, _velocities(task_name, qpos_TQ, obs_TD), error_T, object_pos_T3)


def _set_joints(model: mujoco.MjModel, data: mujoco.MjData, qpos_Q: Array) -> None:
    data.qpos[:] = qpos_Q
    load_mujoco().mj_kinematics(model, data)


def _door_positions(model: mujoco.MjModel, data: mujoco.MjData, obs_TD: Array) -> Array:
    """Everything is observed but the arm's slide ARTz: project the palm on the slide's axis to get it."""
    qpos_TQ = np.zeros((len(obs_TD), model.nq))
    qpos_TQ[:, 1:28] = obs_TD[:, 0:27]
    qpos_TQ[:, 29] = obs_TD[:, 27]  # latch
    qpos_TQ[:, 28] = obs_TD[:, 28]  # door hinge
    slide = model.joint("ARTz").id
    for step, obs_D in enumerate(obs_TD):
        _set_joints(model, data, qpos_TQ[step])
        palm_3 = data.site("S_grasp").xpos
        qpos_TQ[step, 0] = (obs_D[29:32] - palm_3) @ data.xaxis[slide]
    return qpos_TQ


def _relocate_positions(model: mujoco.MjModel, data: mujoco.MjData, obs_TD: Array) -> Array:
    """Arm and hand are observed, the ball relative to the palm."""
    qpos_TQ = np.zeros((len(obs_TD), model.nq))
    qpos_TQ[:, :30] = obs_TD[:, :30]
    ball_T3 = np.zeros((len(obs_TD), 3))
    for step, obs_D in enumerate(obs_TD):
        _set_joints(model, data, qpos_TQ[step])
        ball_T3[step] = data.site("S_grasp").xpos - obs_D[30:33]
    qpos_TQ[:, 30:33] = _object_slides(model, ball_T3)
    return qpos_TQ


def _hammer_positions(model: mujoco.MjModel, start_Q: Array, obs_TD: Array) -> Array:
    """Arm, hand and nail are observed; the hammer's rotation is split into its three hinges."""
    qpos_TQ = np.zeros((len(obs_TD), model.nq))
    qpos_TQ[:, :27] = obs_TD[:, :27]
    qpos_TQ[:, 27:30] = _object_slides(model, obs_TD[:, 36:39])
    hinges_T33 = _object_frame(model).T @ rotation_from_xyz(obs_TD[:, 39:42])
    qpos_TQ[:, 30:33] = _follow_branch(xyz_from_rotation(hinges_T33), start_Q[30:33], obs_TD[:, 30:33])
    return qpos_TQ


def _pen_positions(model: mujoco.MjModel, start_Q: Array, obs_TD: Array) -> Array:
    """The hand is observed; the pen's axis gives two hinges, its recorded velocity the third.

    With the hinges' rotation Rx(a) Ry(b) Rz(c), the axis is (sin b, -sin a cos b, cos a cos b): c drops out.
    """
    qpos_TQ = np.zeros((len(obs_TD), model.nq))
    qpos_TQ[:, :24] = obs_TD[:, :24]
    qpos_TQ[:, 24:27] = _object_slides(model, obs_TD[:, 24:27])
    axis_T3 = obs_TD[:, 33:36] @ _object_frame(model)
    tilt_T2 = np.stack(
        [
            np.arctan2(-axis_T3[:, 1], axis_T3[:, 2]),
            np.arctan2(axis_T3[:, 0], np.hypot(axis_T3[:, 1], axis_T3[:, 2])),
        ],
        axis=1,
    )
    qpos_TQ[:, 27:29] = _follow_branch(tilt_T2, start_Q[27:29], obs_TD[:, 30:32])
    spin_T = obs_TD[:, 32]
    qpos_TQ[0, 29] = start_Q[29]
    qpos_TQ[1:, 29] = start_Q[29] + np.cumsum((spin_T[:-1] + spin_T[1:]) / 2) * DT
    return qpos_TQ


def _object_frame(model: mujoco.MjModel) -> Array:
    """Rotation (3, 3) of the object's body in the world before its joints turn it."""
    matrix_9 = np.zeros(9)
    load_mujoco().mju_quat2Mat(matrix_9, model.body("Object").quat)
    return matrix_9.reshape(3, 3)


def _object_slides(model: mujoco.MjModel, pos_T3: Array) -> Array:
    """World positions of the object to the positions of its three slide joints."""
    return (pos_T3 - model.body("Object").pos) @ _object_frame(model)


def rotation_from_xyz(angles_T3: Array) -> Array:
    """Angles of hinges about x, then the turned y, then the turned z to rotations (T, 3, 3)."""
    sin_a, sin_b, sin_c = np.sin(angles_T3).T
    cos_a, cos_b, cos_c = np.cos(angles_T3).T
    rows = [
        [cos_b * cos_c, -cos_b * sin_c, sin_b],
        [cos_a * sin_c + sin_a * sin_b * cos_c, cos_a * cos_c - sin_a * sin_b * sin_c, -sin_a * cos_b],
        [sin_a * sin_c - cos_a * sin_b * cos_c, sin_a * cos_c + cos_a * sin_b * sin_c, cos_a * cos_b],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def xyz_from_rotation(rotation_T33: Array) -> Array:
    """Inverse of `rotation_from_xyz`, on the branch whose second angle is within a quarter turn of zero."""
    m = rotation_T33
    a_T = np.arctan2(-m[..., 1, 2], m[..., 2, 2])
    b_T = np.arctan2(m[..., 0, 2], np.hypot(m[..., 1, 2], m[..., 2, 2]))
    c_T = np.arctan2(-m[..., 0, 1], m[..., 0, 0])
    return np.stack([a_T, b_T, c_T], axis=-1)


def _follow_branch(angles_TJ: Array, start_J: Array, velocity_TJ: Array) -> Array:
    """Make hinge angles continuous: of (a, b, c) and its twin (a + pi, pi - b, c + pi), and all full turns,
    take at each step what is nearest to the step before plus its recorded velocity times DT."""
    turn = 2 * np.pi
    twin_TJ = angles_TJ * np.array([1.0, -1.0, 1.0])[: angles_TJ.shape[1]] + np.pi
    expected_J = start_J
    result_TJ = np.empty_like(angles_TJ)
    for step, pair_2J in enumerate(np.stack([angles_TJ, twin_TJ], axis=1)):
        pair_2J = pair_2J + turn * np.round((expected_J - pair_2J) / turn)
        nearest = np.argmin(np.abs(pair_2J - expected_J).sum(axis=1))
        result_TJ[step] = pair_2J[nearest]
        expected_J = result_TJ[step] + velocity_TJ[step] * DT
    return result_TJ


def _velocities(task_name: str, qpos_TQ: Array, obs_TD: Array) -> Array:
    qvel_TQ = np.zeros_like(qpos_TQ)
    if len(qpos_TQ) > 1:
        qvel_TQ[:-1] = np.diff(qpos_TQ, axis=0) / DT
        qvel_TQ[-1] = qvel_TQ[-2]
    if task_name == "pen":
        qvel_TQ[:, 24:30] = obs_TD[:, 27:33]
    if task_name == "hammer":  # recorded clipped to [-1, 1]
        recorded_T6 = obs_TD[:, 27:33]
        qvel_TQ[:, 27:33] = np.where(np.abs(recorded_T6) < 1, recorded_T6, qvel_TQ[:, 27:33])
    return qvel_TQ


def observe(task_name: str, data: mujoco.MjData) -> Array:
    """The task's observation from joints and positions; NaN for what they do not determine."""
    qpos_Q, palm_3 = data.qpos, data.site("S_grasp").xpos
    unknown_6 = np.full(6, np.nan)
    if task_name == "door":
        handle_3 = data.site("S_handle").xpos
        latch_and_hinge_2 = qpos_Q[[29, 28]]
        parts = [qpos_Q[1:28], latch_and_hinge_2, palm_3, handle_3, palm_3 - handle_3, unknown_6[:1]]
    elif task_name == "hammer":
        euler_3 = xyz_from_rotation(data.body("Object").xmat.reshape(3, 3))
        nail_3 = data.site("S_target").xpos
        parts = [qpos_Q[:27], unknown_6, palm_3, data.body("Object").xpos, euler_3, nail_3, unknown_6[:1]]
    elif task_name == "pen":
        pen_3, axis_3 = data.body("Object").xpos, _direction(data, "object")
        goal_3, goal_axis_3 = data.site("eps_ball").xpos, _direction(data, "target")
        parts = [qpos_Q[:24], pen_3, unknown_6, axis_3, goal_axis_3, pen_3 - goal_3, axis_3 - goal_axis_3]
    else:
        ball_3, goal_3 = data.body("Object").xpos, data.site("target").xpos
        parts = [qpos_Q[:30], palm_3 - ball_3, palm_3 - goal_3, ball_3 - goal_3]
    return np.concatenate(parts)


def _direction(data: mujoco.MjData, name: str) -> Array:
    """Unit vector from bottom to top of the pen (`object`) or of its goal (`target`)."""
    vector_3: Array = data.site(f"{name}_top").xpos - data.site(f"{name}_bottom").xpos
    return vector_3 / float(np.linalg.norm(vector_3))


def _object_position(task_name: str, data: mujoco.MjData) -> Array:
    position_3: Array = data.site("S_handle").xpos if task_name == "door" else data.body("Object").xpos
    return position_3


def vrl3_reward(task_name: str, obs_TD: Array) -> tuple[Array, Goals]:
    """VRL3's "sparse" reward and goal at each observation (its fork of mj_envs, USE_SPARSE_REWARDS)."""
    if task_name == "door":
        hinge_T = obs_TD[:, 28]
        reward_T = -0.1 * (hinge_T - 1.57) ** 2 + _door_bonus(hinge_T)
        return reward_T, hinge_T > 1.4
    if task_name == "hammer":
        distance_T = _nail_distance(obs_TD)
        return -10 * distance_T + _nail_bonus(distance_T), distance_T < 0.01
    if task_name == "pen":
        offset_T, similarity_T = _pen_errors(obs_TD)
        reward_T = np.where((offset_T < 0.075) & (similarity_T > 0.95), 50.0, 0.0)
        return reward_T, similarity_T > 0.95
    distance_T = _length(obs_TD[:, 36:39])
    return _ball_bonus(distance_T), distance_T < 0.1


def gymnasium_door_reward(obs_TD: Array, qvel_TQ: Array) -> tuple[Array, Goals]:
    hinge_T = obs_TD[:, 28]
    reward_T = 0.1 * _length(obs_TD[:, 35:38]) - 0.1 * (hinge_T - 1.57) ** 2
    reward_T += -1e-5 * np.sum(qvel_TQ**2, axis=1) + _door_bonus(hinge_T)
    return reward_T, hinge_T >= 1.35


def gymnasium_hammer_reward(obs_TD: Array, qvel_TQ: Array) -> tuple[Array, Goals]:
    palm_T3, hammer_T3, nail_T3 = obs_TD[:, 33:36], obs_TD[:, 36:39], obs_TD[:, 42:45]
    head_T3 = hammer_T3 + rotation_from_xyz(obs_TD[:, 39:42]) @ np.array([-0.2, 0, -0.04])  # site `tool`
    distance_T = _nail_distance(obs_TD)
    reward_T = 0.1 * _length(palm_T3 - hammer_T3) - _length(head_T3 - nail_T3)
    reward_T += -10 * distance_T - 1e-2 * _length(qvel_TQ)
    reward_T += 2.0 * ((hammer_T3[:, 2] > 0.04) & (head_T3[:, 2] > 0.04)) + _nail_bonus(distance_T)
    return reward_T, distance_T < 0.01


def gymnasium_pen_reward(obs_TD: Array) -> tuple[Array, Goals]:
    distance_T, similarity_T = _pen_errors(obs_TD)
    achieved_T = (distance_T < 0.075) & (similarity_T > 0.95)
    reward_T = similarity_T - distance_T - 5.0 * (obs_TD[:, 26] < 0.075)
    reward_T += 10.0 * ((distance_T < 0.075) & (similarity_T > 0.9)) + 50.0 * achieved_T
    return reward_T, achieved_T


def gymnasium_relocate_reward(obs_TD: Array, ball_T3: Array) -> tuple[Array, Goals]:
    to_ball_T, to_goal_T, distance_T = (_length(obs_TD[:, i : i + 3]) for i in (30, 33, 36))
    lifted_T = ball_T3[:, 2] > 0.04
    reward_T = 0.1 * to_ball_T + lifted_T * (1 - 0.5 * to_goal_T - 0.5 * distance_T)
    return reward_T + _ball_bonus(distance_T), distance_T < 0.1


def _door_bonus(hinge_T: Array) -> Array:
    return 2.0 * (hinge_T > 0.2) + 8.0 * (hinge_T > 1.0) + 10.0 * (hinge_T > 1.35)


def _nail_distance(obs_TD: Array) -> Array:
    """From the nail's head to its goal: 0.091 m (the heights of the two sites) less how far it slid.

    How far is taken from the head's observed position, which is as old as the reward's; the observed
    joint is one substep newer, enough to give the bonus of 75 a step early.
    """
    slide_T, head_T3 = obs_TD[:, 26], obs_TD[:, 42:45]
    slid_T = slide_T[0] + np.sign(slide_T - slide_T[0]) * _length(head_T3 - head_T3[0])
    return np.abs(0.091 - slid_T)


def _nail_bonus(distance_T: Array) -> Array:
    return 25.0 * (distance_T < 0.02) + 75.0 * (distance_T < 0.01)


def _pen_errors(obs_TD: Array) -> tuple[Array, Array]:
    """Distance to the goal in metres, cosine of the angle to its direction."""
    return _length(obs_TD[:, 39:42]), np.sum(obs_TD[:, 33:36] * obs_TD[:, 36:39], axis=1)


def _ball_bonus(distance_T: Array) -> Array:
    return 10.0 * (distance_T < 0.1) + 20.0 * (distance_T < 0.05)


def _length(vector_T3: Array) -> Array:
    length_T: Array = np.linalg.norm(vector_T3, axis=1)
    return length_T
