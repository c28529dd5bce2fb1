"""AdaDEM as the entropy bonus of PPO in a script of stable-baselines3: the four lines marked # 1 to # 4.

The same lines serve A2C, and RecurrentPPO and MaskablePPO of sb3-contrib.

Run: python examples/ppo_adadem_sb3.py [environment steps]
Needs: pip install "dembench[minigrid]"
"""

import sys

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from dembench import AdaDEM  # 1
from dembench.tasks.minigrid import BonusLog, attach_bonus  # 2

torch.set_num_threads(1)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
agent = PPO("MlpPolicy", env, ent_coef=0.01, n_steps=256, seed=0, verbose=1, device="cpu")
attach_bonus(agent, AdaDEM())  # 3: ent_coef, which is 0 by default, is its weight
agent.learn(steps, callback=BonusLog())  # 4: the true entropy beside the bonus
