"""PPO-Clip of Stable-Baselines3 with the paper's network, and its two inner loops with fewer calls.

A network of 2,805 numbers is computed in a few microseconds, but PyTorch needs some for each call: most of the time
of the library's loops goes into calls. So the walker is driven here by NumPy, and the gradient of PPO's loss is written
out. The numbers are those of the library, up to rounding; tests hold both against each other.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of a picture library of Matplotlib's, which Stable-Baselines3 imports
    from stable_baselines3 import PPO
    from stable_baselines3.common.policies import ActorCriticPolicy
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from fop_torch.studies.bipedal.walker import Walker

#: Units of each of the two hidden layers.
WIDTH = 40


class Shared(BaseFeaturesExtractor):
    """The hidden layers, which policy and value share: two of `WIDTH` units, tanh.

    Args:
        observation_space: Of the environment.
    """

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, WIDTH)
        inputs = observation_space.shape[0]
        self.layers = nn.Sequential(nn.Linear(inputs, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, observations: Tensor) -> Tensor:
        """`[n, 24]` to `[n, 40]`."""
        return self.layers(observations)


class Policy(ActorCriticPolicy):
    """A Gaussian around actions that tanh bounds to [-1, 1], with one deviation for each action whatever the state."""

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Any:
        return self.action_dist.proba_distribution(torch.tanh(self.action_net(latent_pi)), self.log_std)

    def outputs(self, observations: Tensor) -> Tensor:
        """Mean actions and value: `[n, 24]` to `[n, 5]`."""
        hidden = self.features_extractor(observations)
        return torch.cat([torch.tanh(self.action_net(hidden)), self.value_net(hidden)], 1)


def policy_options(optimizer: Callable[..., Optimizer]) -> dict[str, Any]:
    """What makes the paper's network of the library's policy.

    Args:
        optimizer: What makes the optimizer of the parameters and `lr`.
    """
    return {
        "features_extractor_class": Shared, "net_arch": [], "optimizer_class": optimizer, "optimizer_kwargs": {},
    }  # fmt: skip


def layers(policy: nn.Module) -> list[nn.Linear]:
    """The four layers in the order in which records count them: hidden 1, hidden 2, actions, value."""
    first, _, second, _ = policy.features_extractor.layers  # type: ignore[union-attr,misc]
    return [first, second, policy.action_net, policy.value_net]  # type: ignore[list-item]


class Episode(NamedTuple):
    """What became of one: sum of rewards, steps, share of the way gone, and whether it ended in a fall."""

    gained: float
    steps: int
    share: float
    fell: bool


class Lean(PPO):
    """The library's PPO for one `Walker`, with the inner loops rewritten.

    Args:
        walker: The environment.
        optimizer: See `policy_options`.
        **options: Of `PPO`.

    Attributes:
        before_step: Called with the number of the optimizer's step, 0, 1, 2, …, when the clipped gradients are there.
        after_step: Called with the number of steps done.
        steps: Of the optimizer, done.
        finished: The episodes that ended in the last call of `collect`.
    """

    def __init__(self, walker: Walker, optimizer: Callable[..., Optimizer], **options: Any) -> None:
        super().__init__(Policy, walker, device="cpu", policy_kwargs=policy_options(optimizer), **options)
        self.walker = walker
        self.before_step: Callable[[int], None] | None = None
        self.after_step: Callable[[int], None] | None = None
        self.steps = 0
        self.finished: list[Episode] = []
        self.summed = 0.0  # rewards of the present episode
        self.flat, self.flat_grad = _in_one_piece(list(self.policy.parameters()))
        own = layers(self.policy)
        self._weights = [(each.weight.detach().numpy(), each.bias.detach().numpy()) for each in own]
        self._grads = [(each.weight.grad.numpy(), each.bias.grad.numpy()) for each in own]  # type: ignore[union-attr]
        self._log_std = self.policy.log_std.detach().numpy()
        self._log_std_grad = self.policy.log_std.grad.numpy()  # type: ignore[union-attr]

    def act(self, observation: np.ndarray) -> np.ndarray:
        """The policy's mean action, `[24]` to `[4]`.

        Raises:
            FloatingPointError: If it is not a number.
        """
        (W1, b1), (W2, b2), (Wa, ba), _ = self._weights
        hidden = np.tanh(W2 @ np.tanh(W1 @ observation + b1) + b2)
        action = np.tanh(Wa @ hidden + ba)
        if not math.isfinite(action.sum()):
            raise FloatingPointError(f"the policy's action is {action.tolist()}")
        return action

    def value(self, observations: np.ndarray) -> np.ndarray:
        """The value of each observation, `[n, 24]` to `[n]`."""
        (W1, b1), (W2, b2), _, (Wv, bv) = self._weights
        hidden = np.tanh(np.tanh(observations @ W1.T + b1) @ W2.T + b2)
        return hidden @ Wv[0] + bv[0]

    def collect(self) -> None:
        """Fill the library's buffer with `n_steps` steps, and let it estimate the advantages.

        An episode that the limit ends is worth what the value network says of its last state.

        Raises:
            FloatingPointError: If an action is not a number.
        """
        buffer, walker = self.rollout_buffer, self.walker
        buffer.reset()
        noise = torch.randn(self.n_steps, 4).numpy() * np.exp(self._log_std)
        observation = walker.observed
        starts = walker.steps == 0
        self.finished = []
        for t in range(self.n_steps):
            mean = self.act(observation)
            action = mean + noise[t]
            buffer.observations[t, 0], buffer.actions[t, 0] = observation, action
            buffer.episode_starts[t, 0] = starts
            observation, reward, ended, late, _ = walker.step(np.clip(action, -1, 1))
            self.summed += reward
            starts = ended or late
            if starts:
                self.finished.append(Episode(self.summed, walker.steps, walker.share, walker.game_over))
                self.summed = 0.0
                if late:
                    reward += self.gamma * float(self.value(observation[None])[0])
                observation, _ = walker.reset()
            buffer.rewards[t, 0] = reward
        self.num_timesteps += self.n_steps
        # The policy was the same all the time.
        buffer.values[:, 0] = self.value(buffer.observations[:, 0])
        buffer.log_probs[:, 0] = -0.5 * np.square(noise / np.exp(self._log_std)).sum(1) - self._log_std.sum()
        buffer.log_probs[:, 0] -= 2 * np.log(2 * np.pi)
        buffer.pos, buffer.full = self.n_steps, True
        last = torch.tensor(self.value(observation[None]))
        buffer.compute_returns_and_advantage(last, dones=np.array([starts]))

    def train(self) -> None:
        """One PPO step: the library's passes over the buffer, in the library's order.

        Raises:
            FloatingPointError: If a parameter is no number after it.
        """
        buffer = self.rollout_buffer
        for _ in range(self.n_epochs):
            # As the buffer's own `get`.
            order = np.random.permutation(buffer.buffer_size)  # noqa: NPY002
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                self._gradient(
                    buffer.observations[chosen, 0], buffer.actions[chosen, 0], buffer.log_probs[chosen, 0],
                    buffer.advantages[chosen, 0], buffer.returns[chosen, 0],
                )  # fmt: skip
                self._clip()
                if self.before_step is not None:
                    self.before_step(self.steps)
                self.policy.optimizer.step()
                self.steps += 1
                if self.after_step is not None:
                    self.after_step(self.steps)
        if not np.isfinite(self.flat).all():
            raise FloatingPointError(f"a parameter is not finite after {self.steps} steps")

    def _gradient(
        self, x: np.ndarray, actions: np.ndarray, log_probs: np.ndarray, advantages: np.ndarray, returns: np.ndarray
    ) -> None:
        """Write the gradient of PPO's loss into the parameters' `grad`.

        Args:
            x: Observations `[n, 24]`.
            actions: `[n, 4]`.
            log_probs: Of the actions when they were drawn, `[n]`.
            advantages: `[n]`.
            returns: `[n]`.
        """
        (W1, b1), (W2, b2), (Wa, ba), (Wv, bv) = self._weights
        n, clip = len(x), self.clip_range(1.0)  # type: ignore[operator]
        h1 = np.tanh(x @ W1.T + b1)
        h2 = np.tanh(h1 @ W2.T + b2)
        mean = np.tanh(h2 @ Wa.T + ba)
        value = h2 @ Wv[0] + bv[0]
        deviation = np.exp(self._log_std)
        z = (actions - mean) / deviation
        squares = z * z
        ratio = np.exp(-0.5 * squares.sum(1) - (self._log_std.sum() + 2 * np.log(2 * np.pi)) - log_probs)
        if n > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + 1e-8)
        # The smaller of the two products follows the ratio unless it is clipped where that makes it smaller.
        follows = np.where(advantages > 0, ratio <= 1 + clip, ratio >= 1 - clip)
        by_log_prob = (-1 / n) * advantages * ratio * follows
        by_mean = by_log_prob[:, None] * z / deviation
        by_value = (2 * self.vf_coef / n) * (value - returns)
        d3 = by_mean * (1 - mean * mean)
        d2 = (d3 @ Wa + by_value[:, None] * Wv) * (1 - h2 * h2)
        d1 = (d2 @ W2) * (1 - h1 * h1)
        wrote = ((d1, x), (d2, h1), (d3, h2), (by_value[:, None], h2))
        for (by_W, by_b), (d, inputs) in zip(self._grads, wrote, strict=True):
            by_W[:] = d.T @ inputs
            by_b[:] = d.sum(0)
        self._log_std_grad[:] = by_log_prob @ (squares - 1)

    def _clip(self) -> None:
        """Shorten the gradient of all parameters together to `max_grad_norm`, as `clip_grad_norm_` does."""
        grad = self.flat_grad
        size = float(np.sqrt(grad @ grad))
        if size > self.max_grad_norm:
            grad *= self.max_grad_norm / (size + 1e-6)


def _in_one_piece(parameters: list[nn.Parameter]) -> tuple[np.ndarray, np.ndarray]:
    """Let the parameters, and their gradients, lie behind each other in memory.

    Returns:
        Both as NumPy sees them, flat.
    """
    count = sum(p.numel() for p in parameters)
    values, grads = torch.empty(count), torch.zeros(count)
    start = 0
    for p in parameters:
        end = start + p.numel()
        values[start:end] = p.detach().flatten()
        p.data = values[start:end].view(p.shape)
        p.grad = grads[start:end].view(p.shape)
        start = end
    return values.numpy(), grads.numpy()
