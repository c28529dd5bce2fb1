"""Reinforcement learning on Minigrid: the entropy bonus of PPO and A2C (stable-baselines3) as any loss of ``core``."""

try:
    from dembench.tasks.minigrid.callbacks import BonusLog, BonusWeight
    from dembench.tasks.minigrid.policy import EntropyBonusPolicy, policy_with
except ImportError as error:
    raise ImportError(f'{error}; the task minigrid needs: pip install "dembench[minigrid]"') from error

__all__ = ["BonusLog", "BonusWeight", "EntropyBonusPolicy", "policy_with"]
