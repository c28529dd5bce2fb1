"""Reinforcement learning on Minigrid; the entropy bonus of on-policy algorithms of stable-baselines3 and sb3-contrib as
any loss of ``core``."""

try:
    from dembench.tasks.minigrid.attach import attach_bonus
    from dembench.tasks.minigrid.callbacks import BonusLog, BonusWeight
    from dembench.tasks.minigrid.policy import EntropyBonusPolicy
except ImportError as error:
    raise ImportError(f'{error}; the task minigrid needs: pip install "dembench[minigrid]"') from error

__all__ = ["BonusLog", "BonusWeight", "EntropyBonusPolicy", "attach_bonus"]
