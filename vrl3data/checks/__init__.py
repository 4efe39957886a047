"""The checks of content: what a learner would stumble over although every byte is as it was written.

Each is one small function in a literal table. Those of `EPISODE` see one episode; those of `DATASET` see what was kept
of all episodes. A name may stand in both. All memory is bounded (`observed.py`).
"""

from __future__ import annotations

CONTENT = {
    "constant": "no entry of an observation or action is the same in the whole dataset",
    "stuck": "no sensor stands still in one episode that moves in the others",
    "bounds": "values lie within the bounds of the schema; tells the share per entry",
    "jumps": "no number jumps far more than in any other episode",
    "scale": "no number is of another size than in all other episodes (another unit or offset)",
    "quantised": "no number has few levels where it is continuous in the other episodes",
    "saturated": "no number rests exactly at its least or greatest value, unlike in the other episodes",
    "interpolated": "no rows lie exactly on a line between others",
    "quaternions": "quaternions have length 1",
    "shifted_actions": "actions move the states, at the same step, in each episode as in the others",
    "action_entries": "each entry of the action moves its part of the body, as far and the same way as elsewhere",
    "velocity": "velocities are those of the positions, in all episodes alike",
    "lengths": "no episode is shorter or longer where nearly all have one length",
    "shifted_frames": "frames change when the states do",
    "frozen_camera": "no camera stands still while the body moves",
    "held_frames": "at most 10 % of frames repeat the one before while the body moves",
    "blank_frames": "no frame is black, white or without a picture",
    "torn_frames": "no frame has lost its lowest rows",
    "brightness": "no episode becomes brighter or darker, unlike the others",
    "camera_moved": "no background changes for good in the middle of an episode",
    "orientation": "no episode, or part of it, is upside down, mirrored or rotated",
    "reversed_frames": "no frames of an episode run backwards",
    "sharpness": "no episode is out of focus or zoomed, unlike the others",
    "channel_order": "no episode has exchanged, inverted or missing colours",
    "swapped_cameras": "no camera shows what another one shows in the other episodes",
    "appearance": "no episode looks far from all others",
    "depth_unit": "depth is in the same unit in all episodes",
    "timestamps": "time goes forward, evenly, without gaps, from 0",
    "ends": "terminated and truncated fit the steps and the next episode",
    "success": "success fits the reward",
    "reward": "the reward is not all zero, nor of another sign or level than in the other episodes",
    "copies": "no episode, camera or action sequence occurs twice",
    "near_copies": "no two episodes differ only by noise or a few steps",
    "leakage": "no episode is in two splits, not even nearly",
    "labels": "labels and class names of pictures fit each other",
    "license": "the licence is known",
    "version": "the format version is one that this release knows in full",
    "stats": "the stored statistics are those of the data",
}
"""name -> what holds if the check finds nothing."""

EPISODE = {
    "quaternions": "vrl3data.checks.numbers:quaternions",
    "frozen_camera": "vrl3data.checks.cameras:frozen_camera",
    "held_frames": "vrl3data.checks.cameras:held_frames",
    "blank_frames": "vrl3data.checks.cameras:blank_frames",
    "torn_frames": "vrl3data.checks.lighting:torn_frames",
    "orientation": "vrl3data.checks.cameras:turned",
    "timestamps": "vrl3data.checks.timing:timestamps",
    "ends": "vrl3data.checks.timing:ends",
}
"""name -> function(Observed) -> findings."""

DATASET = {
    "constant": "vrl3data.checks.numbers:constant",
    "stuck": "vrl3data.checks.numbers:stuck",
    "bounds": "vrl3data.checks.numbers:bounds",
    "jumps": "vrl3data.checks.numbers:jumps",
    "scale": "vrl3data.checks.numbers:scale",
    "quantised": "vrl3data.checks.signals:quantised",
    "saturated": "vrl3data.checks.signals:saturated",
    "interpolated": "vrl3data.checks.signals:interpolated",
    "shifted_actions": "vrl3data.checks.relations:shifted_actions",
    "action_entries": "vrl3data.checks.entries:action_entries",
    "velocity": "vrl3data.checks.habits:velocity",
    "lengths": "vrl3data.checks.habits:lengths",
    "brightness": "vrl3data.checks.lighting:brightness",
    "camera_moved": "vrl3data.checks.lighting:camera_moved",
    "shifted_frames": "vrl3data.checks.relations:shifted_frames",
    "orientation": "vrl3data.checks.appearance:orientation",
    "reversed_frames": "vrl3data.checks.optics:reversed_frames",
    "sharpness": "vrl3data.checks.optics:sharpness",
    "channel_order": "vrl3data.checks.appearance:channel_order",
    "swapped_cameras": "vrl3data.checks.appearance:swapped_cameras",
    "appearance": "vrl3data.checks.appearance:unlike",
    "depth_unit": "vrl3data.checks.appearance:depth_unit",
    "timestamps": "vrl3data.checks.timing:rates",
    "ends": "vrl3data.checks.timing:continued",
    "success": "vrl3data.checks.timing:success",
    "reward": "vrl3data.checks.timing:reward",
    "copies": "vrl3data.checks.copies:copies",
    "near_copies": "vrl3data.checks.copies:near_copies",
    "leakage": "vrl3data.checks.copies:leakage",
}
"""name -> function(Collected) -> findings."""
