"""Reinforcement learning: `python -m treepie.examples.reinforce --plot returns.png`.

A cart is pushed left or right so that the pole on it stays upright. The policy network returns the logit of a
push to the right; the policy gradient (Williams 1992) makes pushes that led to more reward more likely.
"""

import argparse
import sys
from typing import Any

import numpy as np

import treepie as tp

POLES, LIMIT, DISCOUNT = 32, 200, 0.99  # cart-poles at the same time, steps of an episode


class CartPoles:
    """Cart-poles (Barto, Sutton & Anderson 1983), with the constants of Gymnasium's CartPole-v0."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        """Start n of them, nearly upright. state: position, velocity, angle and angular velocity, (n, 4)."""
        self.state = rng.uniform(-0.05, 0.05, (n, 4)).astype(np.float32)
        self.upright = np.ones(n, bool)

    def step(self, right: np.ndarray) -> None:
        """Push each cart to the right or left for 0.02 s; poles that fall or leave the track are done."""
        _, v, angle, spin = self.state.T
        force = np.where(right, 10.0, -10.0)
        push = (force + 0.05 * spin**2 * np.sin(angle)) / 1.1
        torque = 9.8 * np.sin(angle) - np.cos(angle) * push
        turn = torque / (0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1))
        change = np.stack([v, push - 0.05 * turn * np.cos(angle) / 1.1, spin, turn], axis=1)
        self.state = (self.state + 0.02 * change).astype(np.float32)
        self.upright &= (np.abs(self.state[:, 0]) < 2.4) & (np.abs(self.state[:, 2]) < np.radians(12))


def play(trainer: tp.Trainer, st: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the states (LIMIT, POLES, 4), pushes and rewards (LIMIT, POLES) of an episode of each pole."""
    poles = CartPoles(POLES, rng)
    states, pushes, rewards = [], [], []
    for _ in range(LIMIT):
        logits = trainer.predict(st, poles.state).numpy()[:, 0]
        right = rng.logistic(size=POLES) < logits  # with probability sigmoid(logit)
        states.append(poles.state)
        pushes.append(right)
        rewards.append(poles.upright.copy())  # 1 for each step that begins upright
        poles.step(right)
    return np.array(states), np.array(pushes), np.array(rewards)


def advantages(rewards: np.ndarray) -> np.ndarray:
    """Return the discounted sums of later rewards, standardized; 0 after the end of an episode."""
    sums, total = np.zeros(rewards.shape, np.float32), np.zeros(POLES, np.float32)
    for t in reversed(range(LIMIT)):
        sums[t] = total = rewards[t] + DISCOUNT * total
    usual, spread = sums[rewards].mean(), sums[rewards].std() + 1e-6
    return np.where(rewards, (sums - usual) / spread, 0)


def main() -> None:
    """Play and learn until poles stay up; exit with 1 if the average return is below 180 in the end."""
    parser = argparse.ArgumentParser("python -m treepie.examples.reinforce", description=main.__doc__)
    parser.add_argument("--updates", type=int, default=200, help="at most (default: 200)")
    parser.add_argument("--plot", metavar="FILE", help="draw the average return of each update's episodes")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    policy = tp.layer.sequential([tp.layer.linear(4, 64), tp.layer.tanh(), tp.layer.linear(64, 1)])
    trainer = tp.Trainer(policy, tp.optim.adam(1e-2))
    st = trainer.init(tp.rng.key(0))
    returns: list[float] = []
    while len(returns) < arguments.updates and np.mean(returns[-10:] or 0) < 195:
        states, pushes, rewards = play(trainer, st, rng)
        advantage, right = advantages(rewards).reshape(-1, 1), pushes.reshape(-1, 1)

        def loss(logits: tp.Tensor, advantage: Any = advantage, right: Any = right) -> Any:
            minus_log_probability = tp.fn.softplus(logits) - right * logits
            return (advantage * minus_log_probability).mean()

        _, st = trainer.step(st, states.reshape(-1, 4), loss=loss)
        returns.append(float(rewards.sum(axis=0).mean()))
        if len(returns) % 10 == 0:
            print(f"update {len(returns)}: average return {np.mean(returns[-10:]):.1f} of {LIMIT}")

    if arguments.plot:
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
        axes.plot(range(1, len(returns) + 1), returns)
        axes.set(xlabel="update", ylabel=f"average return of {POLES} episodes", ylim=(0, LIMIT * 1.05))
        figure.savefig(arguments.plot)
    if np.mean(returns[-10:]) < 180:
        sys.exit("the policy was not learned")


if __name__ == "__main__":
    main()
