"""Which actions of a Minigrid agent have something to act on."""

from __future__ import annotations

import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.world_object import WorldObj
from minigrid.minigrid_env import MiniGridEnv


def useful_actions(env: MiniGridEnv) -> np.ndarray:
    """(actions,) bool, False where an action has nothing to act on and would leave the world as it is.

    Picking up needs an empty hand and something to pick up in front, dropping a full hand. Where the environment's
    step is Minigrid's own, dropping and moving on also need a free cell in front, toggling a door or a box, and "done",
    which does nothing there, is out; other environments give rewards or end for these, so that they stay.
    """
    allowed = np.ones(env.action_space.n, bool)
    ahead = env.grid.get(*env.front_pos)
    able = {
        Actions.pickup: ahead is not None and ahead.can_pickup() and env.carrying is None,
        Actions.drop: env.carrying is not None,
    }
    if type(env).step is MiniGridEnv.step:
        able[Actions.drop] &= ahead is None
        able[Actions.forward] = ahead is None or ahead.can_overlap()
        able[Actions.toggle] = ahead is not None and type(ahead).toggle is not WorldObj.toggle
        able[Actions.done] = False
    for action, possible in able.items():
        if action < len(allowed):
            allowed[action] = possible
    return allowed
