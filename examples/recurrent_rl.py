"""A recurrent actor-critic learns a memory task by PPO: the usual loop over time against one call with reset=.

The task is Bakker's T-maze (Reinforcement learning with long short-term memory, 2002), where only the turn at the end
is a decision. A sign at the start of a corridor says on which side of the junction at its end the prize lies. Nothing
later tells one maze from another, so a policy without memory is right half of the time.

Episodes end inside the sequences that PPO trains on, where the state must become zero. Two policies start from the same
weights and learn from the same rollouts: one calls torch.nn.LSTM step by step and multiplies the state by 0 or 1 before
each, as is usual; the other calls FusedLSTM once, with reset=fusedrnn.episode_starts(dones).

    python examples/recurrent_rl.py --corridor 10 --updates 30
"""

import argparse
import statistics
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from experiment import descend, describe, label, options, picture, progress, start
from torch import Tensor, nn
from torch.distributions import Categorical

from fusedrnn import FusedLSTM, episode_starts

SIGN_LEFT, SIGN_RIGHT, CORRIDOR, JUNCTION = range(4)
BATCH = ("seen", "action", "log_p", "value", "reward", "over")
DISCOUNT, SMOOTHING, ENTROPY, EPOCHS = 0.98, 0.95, 0.01, 10  # of PPO


class Mazes:
    """N T-mazes side by side. A new episode begins where one ends."""

    def __init__(self, count: int, corridor: int):
        self.shortest, self.longest = corridor - corridor // 2, corridor + corridor // 2
        self.length, self.prize, self.place = torch.zeros(3, count, dtype=torch.int64)
        self.step(torch.zeros(count))  # mazes of length 0 are over at once, and new ones begin

    def look(self) -> Tensor:
        """[N, 4]: one of sign left, sign right, corridor, junction"""
        seen = torch.where(self.place == self.length, JUNCTION, CORRIDOR)
        return F.one_hot(torch.where(self.place == 0, SIGN_LEFT + self.prize, seen), 4).float()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """actions [N], 0 or 1 for the side to turn to at the junction → rewards [N], which episodes are over [N]"""
        over, count = self.place == self.length, len(self.place)
        reward = over * torch.where(action == self.prize, 1.0, -1.0)
        self.place = torch.where(over, 0, self.place + 1)
        self.length = torch.where(over, torch.randint(self.shortest, self.longest + 1, (count,)), self.length)
        self.prize = torch.where(over, torch.randint(2, (count,)), self.prize)
        return reward, over


class Policy(nn.Module):
    """Actor and critic on one LSTM."""

    def __init__(self, lstm: nn.Module, rate: float):
        super().__init__()
        self.lstm = lstm
        self.actor, self.critic = nn.Linear(lstm.hidden_size, 2), nn.Linear(lstm.hidden_size, 1)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=rate, eps=1e-5)
        self.losses, self.seconds = [], []  # of each gradient step, of each rollout

    def remember(self, x: Tensor, state: tuple, starts: Tensor) -> tuple[Tensor, tuple]:
        """x [T, N, 4], starts [T, N] → y [T, N, H] and the last state"""
        return self.lstm(x, state, reset=starts)

    def forward(self, seen: Tensor, state: tuple, starts: Tensor) -> tuple[Categorical, Tensor, tuple]:
        """seen [T, N, 4], starts [T, N] → distributions of the action [T, N], values [T, N] and the last state"""
        y, state = self.remember(seen, state, starts)
        return Categorical(logits=self.actor(y)), self.critic(y).squeeze(-1), state

    def learn(self, batch: dict) -> None:
        """Proximal policy optimisation (Schulman et al., 2017) on whole sequences"""
        begin = time.perf_counter()
        advantage = F.layer_norm(batch["advantage"], batch["advantage"].shape)
        for _ in range(EPOCHS):
            actions, value, _ = self(batch["seen"], batch["state"], batch["starts"])
            ratio = (actions.log_prob(batch["action"]) - batch["log_p"]).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            error = 0.5 * F.mse_loss(value, batch["advantage"] + batch["value"])
            loss = error - gain - ENTROPY * actions.entropy().mean()
            self.losses.append(descend(loss, self.optimizer, norm=0.5))
        self.seconds.append(time.perf_counter() - begin)


class LoopPolicy(Policy):
    """The same, as most programs have it."""

    def remember(self, x: Tensor, state: tuple, starts: Tensor) -> tuple[Tensor, tuple]:
        outputs = []
        for x_t, starts_t in zip(x, starts, strict=True):
            keep = 1.0 - starts_t.to(x.dtype)[None, :, None]
            y, state = self.lstm(x_t[None], (keep * state[0], keep * state[1]))
            outputs.append(y)
        return torch.cat(outputs), state


@torch.no_grad()
def rollouts(policy: Policy, args: argparse.Namespace) -> Iterator[dict]:
    """What is seen and done [T, N], with generalised advantage estimates (Schulman et al., 2016)"""
    mazes, over = Mazes(args.mazes, args.corridor), torch.zeros(args.mazes, dtype=torch.bool)
    state = (torch.zeros(1, args.mazes, args.hidden),) * 2
    while True:
        first, last_over, steps = state, over, []
        for _ in range(args.steps):
            seen = mazes.look()
            actions, value, state = policy(seen[None], state, over[None])
            action = actions.sample()
            reward, over = mazes.step(action[0])
            steps.append((seen, action[0], actions.log_prob(action)[0], value[0], reward, over))
        batch = dict(zip(BATCH, map(torch.stack, zip(*steps, strict=True)), strict=True))
        batch |= {"state": first, "starts": episode_starts(batch["over"], first=last_over)}
        later, advantage, advantages = policy(mazes.look()[None], state, over[None])[1][0], 0.0, []
        for t in reversed(range(args.steps)):
            goes_on = DISCOUNT * ~batch["over"][t]  # nothing crosses the end of an episode
            advantage = batch["reward"][t] + goes_on * (later + SMOOTHING * advantage) - batch["value"][t]
            later = batch["value"][t]
            advantages.insert(0, advantage)
        yield batch | {"advantage": torch.stack(advantages)}


def main(argv: list[str] | None = None) -> None:
    numbers = {"corridor": (10, "its length, give or take half"), "updates": (30, "rollouts to learn from")}
    numbers |= {"mazes": (32, "N, side by side"), "steps": (128, "T of a rollout"), "hidden": (64, "")}
    args = start(options(__doc__, "runs/recurrent_rl", **numbers, rate=(2e-3, "Adam's learning rate")), argv)
    policy = Policy(FusedLSTM(4, args.hidden), args.rate)
    loop, success = LoopPolicy(nn.LSTM(4, args.hidden), args.rate), []
    loop.load_state_dict(policy.state_dict())
    print(f"Rollouts of {args.steps} steps in {args.mazes} mazes; {describe(policy)}")
    for update, batch in zip(bar := progress(range(args.updates), "rollout"), rollouts(policy, args), strict=False):
        for learner in (policy, loop) if update % 2 else (loop, policy):  # neither always goes first
            learner.learn(batch)
        success.append(100 * float((batch["reward"] > 0).sum() / batch["over"].sum().clamp(min=1)))
        bar.set_postfix_str(f"{success[-1]:.0f}% of the prizes found")
    ours, theirs = statistics.median(policy.seconds), statistics.median(loop.seconds)
    gap = max(abs(a - b) for a, b in zip(policy.losses, loop.losses, strict=True))
    print(f"{success[-1]:.1f}% of the prizes found in the last rollout")
    print(f"with reset= {theirs / ours:.1f} times as fast as by the loop; the losses differ by at most {gap:.1e}")
    with picture(args.out / "learning.png") as (left, right):
        left.plot(success, label="with memory; without, 50 is the best possible")
        right.plot(policy.losses, lw=4, alpha=0.4, label=f"one call, reset=: {1000 * ours:.0f} ms a rollout")
        right.plot(loop.losses, lw=1, color="black", label=f"loop over time: {1000 * theirs:.0f} ms a rollout")
        label(left, "Learning curve", "rollout", "prizes found, %")
        label(right, "Same weights, same rollouts", "gradient step", "PPO loss")


if __name__ == "__main__":
    main()
