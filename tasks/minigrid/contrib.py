"""MaskablePPO and RecurrentPPO of sb3-contrib, untouched, with PPO's settings; the zoo has none for Minigrid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces
from torch import nn

try:
    import sb3_contrib
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
except ImportError as error:
    raise ImportError(f'{error}; this method needs sb3-contrib: pip install "dembench[minigrid]"') from error

from dembench.tasks.minigrid.methods import PPO


class LiveInputs:
    """A policy that sees some columns of flat observations, the others being 0 in every state.

    Its first layers are drawn in full width and then cut, so that it starts as the full policy with the same seed, and
    makes the same steps but for rounding.

    Args:
        observation_space: Box (inputs,).
        width: inputs of the full policy.
        columns: which of them these are.
        args, kwargs: of the full policy.
    """

    def __init__(self, observation_space: spaces.Box, *args: Any, width: int, columns: Sequence[int], **kwargs: Any):
        super().__init__(spaces.Box(-1, 1, (width,)), *args, **kwargs)
        self.observation_space = observation_space
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.in_features == width:
                module.weight.data, module.in_features = module.weight.data[:, columns], len(columns)
            elif isinstance(module, nn.LSTM):
                module.weight_ih_l0.data, module.input_size = module.weight_ih_l0.data[:, columns], len(columns)


class LiveMaskablePolicy(LiveInputs, MaskableActorCriticPolicy):
    """sb3-contrib's, on live columns."""


class LiveRecurrentPolicy(LiveInputs, RecurrentActorCriticPolicy):
    """sb3-contrib's, on live columns."""


class MaskablePPO(PPO):
    """PPO that only draws actions with something to act on (Huang and Ontanon 2022); see ``masks.useful_actions``."""

    algorithm, masked = sb3_contrib.MaskablePPO, True
    policy, fast_policy = MaskableActorCriticPolicy, LiveMaskablePolicy


class RecurrentPPO(PPO):
    """PPO whose actor and critic see the past through an LSTM each."""

    algorithm = sb3_contrib.RecurrentPPO
    policy, fast_policy = RecurrentActorCriticPolicy, LiveRecurrentPolicy
