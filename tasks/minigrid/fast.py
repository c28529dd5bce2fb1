"""The policy of ``tasks.minigrid.policy`` for flat observations, in fewer and larger operations.

Both networks of the zoo's MlpPolicy (tanh, 64 and 64) are one parameter, so that the optimiser and the clipping of
gradients see one tensor, and forward and backward pass are written out. It starts from the same weights as the stock
policy with the same seed and makes the same steps but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.nn import functional as F

from dembench.core import EM
from dembench.tasks.minigrid.policy import Bonus, give_bonus

HIDDEN = 64


class Weights(NamedTuple):
    """Views of the one parameter; index 0 of an axis of 2 is the actor, 1 the critic."""

    w1: Tensor  # (2 H, inputs)
    b1: Tensor  # (2 H,)
    w2: Tensor  # (2, H, H)
    b2: Tensor  # (2, 1, H)
    action: Tensor  # (C, H)
    action_bias: Tensor  # (C,)
    value: Tensor  # (1, H)
    value_bias: Tensor  # (1,)


def _shapes(inputs: int, actions: int) -> list[tuple[int, ...]]:
    h = HIDDEN
    return [(2 * h, inputs), (2 * h,), (2, h, h), (2, 1, h), (actions, h), (actions,), (1, h), (1,)]


class _Networks(torch.autograd.Function):
    """Logits (N, C) and values (N, 1) of observations (N, inputs); the gradient is that of the parameter alone."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, x: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
        h1, h2, logits, values = _forward(x, w)
        ctx.save_for_backward(x, h1, h2)
        ctx.weights, ctx.size = w, theta.shape
        return logits, values

    @staticmethod
    def backward(ctx: Any, g_logits: Tensor, g_values: Tensor) -> tuple[Tensor, None, None]:
        x, h1, h2 = ctx.saved_tensors
        w: Weights = ctx.weights
        grad = torch.empty(ctx.size, dtype=x.dtype, device=x.device)
        g = views(grad, [part.shape for part in w])
        torch.mm(g_logits.t(), h2[0], out=g.action)
        torch.sum(g_logits, 0, out=g.action_bias)
        torch.mm(g_values.t(), h2[1], out=g.value)
        torch.sum(g_values, 0, out=g.value_bias)
        d2 = torch.empty_like(h2)
        torch.mm(g_logits, w.action, out=d2[0])
        torch.mm(g_values, w.value, out=d2[1])
        d2 = torch.ops.aten.tanh_backward(d2, h2)
        torch.bmm(d2.transpose(1, 2), _halves(h1), out=g.w2)
        torch.sum(d2, 1, keepdim=True, out=g.b2)
        d1 = torch.ops.aten.tanh_backward(_joined(torch.bmm(d2, w.w2)), h1)
        torch.mm(d1.t(), x, out=g.w1)
        torch.sum(d1, 0, out=g.b1)
        return grad, None, None


def _forward(x: Tensor, w: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h1 = torch.addmm(w.b1, x, w.w1.t()).tanh_()
    h2 = torch.baddbmm(w.b2, _halves(h1), w.w2.transpose(1, 2)).tanh_()
    return h1, h2, torch.addmm(w.action_bias, h2[0], w.action.t()), torch.addmm(w.value_bias, h2[1], w.value.t())


def _halves(h: Tensor) -> Tensor:
    """(N, 2 H) to (2, N, H)."""
    return h.view(-1, 2, HIDDEN).transpose(0, 1)


def _joined(h: Tensor) -> Tensor:
    """(2, N, H) to (N, 2 H)."""
    return h.transpose(0, 1).reshape(-1, 2 * HIDDEN)


def views(theta: Tensor, shapes: Sequence[Sequence[int]]) -> Weights:
    """The parts of a flat tensor, in the order of ``Weights``."""
    parts = theta.split([torch.Size(shape).numel() for shape in shapes])
    return Weights(*(part.view(shape) for part, shape in zip(parts, shapes, strict=True)))


class FastPolicy(ActorCriticPolicy):
    """``EntropyBonusPolicy`` for Discrete actions, flat float32 observations and the zoo's networks.

    Args:
        observation_space: Box (inputs,).
        action_space, lr_schedule, bonus: as ``EntropyBonusPolicy`` takes them; the entropy is ``core.EM`` here.
        width: inputs of the stock policy; its first layers are drawn in this width, so that the same random numbers
            are used, and cut to ``columns``.
        columns: which of the stock policy's inputs these are, ascending; None is all.
        optimizer_class, optimizer_kwargs: Adam is taken in its fused form, with epsilon 1e-5 as in stable-baselines3.
        use_sde: has to be False.
    Raises: ValueError for other actions than ``Discrete``.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Discrete,
        lr_schedule: Callable[[float], float],
        *,
        bonus: Bonus | None = None,
        width: int | None = None,
        columns: Sequence[int] | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ):
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(f"the fast policy needs Discrete actions, got {action_space}")
        inputs = int(observation_space.shape[0])
        full = spaces.Box(-1, 1, (inputs if width is None else width,))
        super().__init__(full, action_space, lr_schedule, use_sde=use_sde)
        self.observation_space = observation_space
        self.width, self.columns = width, columns
        if optimizer_class is torch.optim.Adam:
            optimizer_kwargs = {"eps": 1e-5, "fused": True, **(optimizer_kwargs or {})}
        self.optimizer_class, self.optimizer_kwargs = optimizer_class, optimizer_kwargs or {}
        self._collapse(range(inputs) if columns is None else columns)
        give_bonus(self, EM() if bonus is None else bonus)
        self.optimizer = optimizer_class([self.theta], lr=lr_schedule(1), **self.optimizer_kwargs)

    def _collapse(self, columns: Sequence[int]) -> None:
        """Puts the weights of the modules that the stock policy has made into one parameter, in their place."""
        actor, critic = self.mlp_extractor.policy_net, self.mlp_extractor.value_net
        chosen = torch.as_tensor(columns)
        parts = [
            torch.cat([net[0].weight[:, chosen] for net in (actor, critic)]),
            torch.cat([net[0].bias for net in (actor, critic)]),
            torch.stack([net[2].weight for net in (actor, critic)]),
            torch.stack([net[2].bias for net in (actor, critic)]),
            *(self.action_net.weight, self.action_net.bias, self.value_net.weight, self.value_net.bias),
        ]
        del self.mlp_extractor, self.action_net, self.value_net
        self.theta = nn.Parameter(torch.cat([part.detach().flatten() for part in parts]))
        self._shapes = _shapes(len(chosen), int(self.action_space.n))
        self._views: tuple[int, Weights] | None = None

    @property
    def weights(self) -> Weights:
        """The parameter's parts, without a graph."""
        place = self.theta.data_ptr()
        if self._views is None or self._views[0] != place:
            self._views = place, views(self.theta.detach(), self._shapes)
        return self._views[1]

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (N,), values (N, 1) and log-probabilities (N,), for use without gradients."""
        _, _, logits, values = _forward(obs, self.weights)
        log_p = logits.log_softmax(1)
        chosen = _choose(log_p, deterministic)
        return chosen.squeeze(1), values, log_p.gather(1, chosen).squeeze(1)

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (N, 1), log-probabilities (N,) and the bonus (N,)."""
        logits, values = _Networks.apply(self.theta, obs, self.weights)
        log_p, self.action_dist.logits = F.log_softmax(logits, 1), logits
        if self.action_dist.once:
            self.bonus.eval()
        return values, log_p.gather(1, actions.unsqueeze(1)).squeeze(1), self.bonus(logits)

    def predict_values(self, obs: Tensor) -> Tensor:
        return _forward(obs, self.weights)[3]

    def action_logits(self, obs: Tensor) -> Tensor:
        """Raw logits (N, C) of the actions, without a graph."""
        return _forward(obs, self.weights)[2]

    def get_distribution(self, obs: Tensor) -> Any:
        return self.action_dist.proba_distribution(self.action_logits(obs))

    def _predict(self, observation: Tensor, deterministic: bool = False) -> Tensor:
        return _choose(self.action_logits(observation).log_softmax(1), deterministic).squeeze(1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ("observation_space", "action_space", "bonus", "width", "columns", "optimizer_class")
        kept = {name: getattr(self, name) for name in names}
        return {**kept, "lr_schedule": self._dummy_schedule, "optimizer_kwargs": self.optimizer_kwargs}


def _choose(log_p: Tensor, deterministic: bool) -> Tensor:
    """Actions (N, 1), drawn as torch's Categorical draws them."""
    return log_p.argmax(1, keepdim=True) if deterministic else torch.multinomial(log_p.exp(), 1, True)
