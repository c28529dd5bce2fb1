"""AdaDEM as the entropy bonus of PPO in a script of stable-baselines3: the five lines marked # 1 to # 5.

Run: python examples/ppo_adadem_sb3.py [environment steps]
Needs: pip install "dembench[minigrid]"
"""

import sys

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from dembench import AdaDEM  # 1
from dembench.tasks.minigrid import BonusLog, EntropyBonusPolicy  # 2

torch.set_num_threads(1)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
agent = PPO(
    EntropyBonusPolicy,  # 3: was "MlpPolicy"
    env,
    policy_kwargs={"bonus": AdaDEM()},  # 4
    ent_coef=0.01,
    n_steps=256,
    seed=0,
    verbose=1,
    device="cpu",
)
agent.learn(steps, callback=BonusLog())  # 5: the true entropy beside the bonus
