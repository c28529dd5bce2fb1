"""PPO in one file, in the manner of CleanRL, with AdaDEM as the entropy bonus.

Run: python examples/ppo_adadem_cleanrl.py [environment steps]
Needs: pip install "dembench[minigrid]" (for Gymnasium)

All that differs from PPO with the entropy: the loss is made before the loop (1), takes the raw logits where the
entropy was (2), keeps the entropy's sign, and the true entropy is logged beside it (3). The learning rate falls on a
line and the value loss is clipped, as in CleanRL. AdaDEM's table moves with each minibatch of each epoch.
"""

import sys
from collections import deque

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from dembench import AdaDEM

SEED, ENVS, STEPS, EPOCHS, MINIBATCHES = 1, 4, 128, 4, 4
LEARNING_RATE, GAMMA, LAMBDA, CLIP, BONUS, VALUE, MOST_GRADIENT = 2.5e-4, 0.99, 0.95, 0.2, 0.01, 0.5, 0.5


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    made = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(made.weight, gain)
    nn.init.zeros_(made.bias)
    return made


def network(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    return nn.Sequential(layer(inputs, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, outputs, gain))


def advantages_of(rewards, values, ended, last_value):
    """Generalised advantage estimation; (steps, envs) each, ``ended[t]`` where an episode ended with step t."""
    found, running = torch.zeros_like(rewards), torch.zeros_like(last_value)
    following = torch.cat([values[1:], last_value[None]])
    for t in reversed(range(len(rewards))):
        error = rewards[t] + GAMMA * following[t] * ~ended[t] - values[t]
        running = found[t] = error + GAMMA * LAMBDA * ~ended[t] * running
    return found


def main(total_steps: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    envs = gym.vector.SyncVectorEnv(
        [lambda: gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1")) for _ in range(ENVS)],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    inputs, actions_count = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    actor, critic = network(inputs, actions_count, 0.01), network(inputs, 1, 1.0)
    bonus = AdaDEM(actions_count)  # (1)
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, eps=1e-5)
    returns = deque([0.0], maxlen=20)

    observation, updates = torch.as_tensor(envs.reset(seed=SEED)[0]), max(1, total_steps // (ENVS * STEPS))
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - update / updates)
        seen, acted, log_probs, rewards, values, ended = ([] for _ in range(6))
        for _ in range(STEPS):
            with torch.no_grad():
                policy = torch.distributions.Categorical(logits=actor(observation))
                action = policy.sample()
                seen.append(observation)
                acted.append(action)
                log_probs.append(policy.log_prob(action))
                values.append(critic(observation).squeeze(1))
            following, reward, terminated, truncated, info = envs.step(action.numpy())
            observation = torch.as_tensor(following)
            rewards.append(torch.as_tensor(reward, dtype=torch.float32))
            ended.append(torch.as_tensor(np.logical_or(terminated, truncated)))
            if "episode" in info.get("final_info", {}):
                returns.extend(info["final_info"]["episode"]["r"][info["_final_info"]])
        with torch.no_grad():
            last = critic(observation).squeeze(1)
        gains = advantages_of(torch.stack(rewards), torch.stack(values), torch.stack(ended), last)
        batch = [torch.stack(part).flatten(0, 1) for part in (seen, acted, log_probs, values)]
        batch += [gains.flatten(), gains.flatten() + batch[-1]]

        for _ in range(EPOCHS):
            for rows in torch.randperm(ENVS * STEPS).chunk(MINIBATCHES):
                x, action, old_log_prob, old_value, gain, target = (part[rows] for part in batch)
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                logits = actor(x)
                ratio = (logits.log_softmax(1).gather(1, action[:, None]).squeeze(1) - old_log_prob).exp()
                policy_loss = -torch.min(gain * ratio, gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                value = critic(x).squeeze(1)
                clipped = old_value + (value - old_value).clamp(-CLIP, CLIP)
                value_loss = 0.5 * torch.max((value - target).square(), (clipped - target).square()).mean()
                bonus_value = bonus(logits).mean()  # (2) was Categorical(logits=logits).entropy().mean()
                loss = policy_loss - BONUS * bonus_value + VALUE * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, MOST_GRADIENT)
                optimizer.step()

        entropy = torch.distributions.Categorical(logits=logits.detach()).entropy().mean()  # (3)
        steps = (update + 1) * ENVS * STEPS
        print(f"step {steps}: return {np.mean(returns):.1f}, AdaDEM {bonus_value:+.4f}, entropy {entropy:.4f} nats")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30_000)
