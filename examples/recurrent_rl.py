"""A recurrent actor-critic learns a memory task by PPO: the usual loop over time against one call with reset=.

The task is Bakker's T-maze (Reinforcement learning with long short-term memory, 2002). A sign at the start of a
corridor says on which side of the junction at its end the prize lies. In the corridor and at the junction nothing tells
one maze from another, so a policy without memory is right half of the time.

Episodes end inside the sequences that PPO trains on, where the state must become zero. Two learners start from the same
weights and are fed the same rollouts: one calls torch.nn.LSTM step by step and multiplies the state by 0 or 1 before
each, as is usual; the other calls FusedLSTM once, with reset=fusedrnn.episode_starts(dones).

    python examples/recurrent_rl.py
    python examples/recurrent_rl.py --corridor 30 --updates 150 --no-compare
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from fusedrnn import FusedLSTM, episode_starts

FORWARD, LEFT, RIGHT = range(3)
SIGN_LEFT, SIGN_RIGHT, CORRIDOR, JUNCTION = range(4)
State = tuple[Tensor, Tensor]


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--corridor",
        type=int,
        default=10,
        help="fields from start to junction, give or take half (default: %(default)s)",
    )
    add("--updates", type=int, default=50, help="rollouts to learn from (default: %(default)s)")
    add("--mazes", type=int, default=32, help="N, walked side by side (default: %(default)s)")
    add("--steps", type=int, default=128, help="T, steps in each of them for one rollout (default: %(default)s)")
    add("--hidden", type=int, default=64, help="(default: %(default)s)")
    add("--epochs", type=int, default=3, help="times that each rollout is learned from (default: %(default)s)")
    add("--parts", type=int, default=4, help="minibatches, of whole sequences (default: %(default)s)")
    add("--rate", type=float, default=5e-3, help="Adam's learning rate at the start (default: %(default)s)")
    add("--discount", type=float, default=0.98, help="(default: %(default)s)")
    add("--entropy", type=float, default=0.01, help="weight of the entropy bonus (default: %(default)s)")
    add("--no-compare", dest="compare", action="store_false", help="leave out the loop and the policy without memory")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    add("--out", type=Path, default=Path("runs/recurrent_rl"), help="the picture goes here (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in ("corridor", "updates", "mazes", "steps", "hidden", "epochs", "parts"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.parts > args.mazes:
        parser.error(f"--parts must be at most --mazes, which is {args.mazes}, got {args.parts}")
    if not args.rate > 0:
        parser.error(f"--rate must be above 0, got {args.rate}")
    return args


class Mazes:
    """N T-mazes side by side. A new episode begins where one ends."""

    def __init__(self, count: int, corridor: int, seed: int):
        self.chance = np.random.default_rng(seed)
        self.shortest, self.longest = corridor - corridor // 2, corridor + corridor // 2
        self.length, self.prize, self.place, self.time = np.zeros((4, count), dtype=np.int64)
        self.begin(np.ones(count, dtype=bool))

    def begin(self, which: np.ndarray) -> None:
        count = which.sum()
        self.length[which] = self.chance.integers(self.shortest, self.longest + 1, count)
        self.prize[which] = self.chance.integers(LEFT, RIGHT + 1, count)
        self.place[which] = self.time[which] = 0

    def look(self) -> Tensor:
        """[N, 4]: one of sign left, sign right, corridor, junction"""
        seen = np.where(self.place == self.length, JUNCTION, CORRIDOR)
        seen = np.where(self.place == 0, np.where(self.prize == LEFT, SIGN_LEFT, SIGN_RIGHT), seen)
        return torch.from_numpy(np.eye(4, dtype=np.float32)[seen])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """actions [N] → rewards [N], which episodes are over [N], which of them found the prize [N]"""
        turn, junction = action != FORWARD, self.place == self.length
        found = junction & (action == self.prize)
        bump = junction ^ turn  # a turn in the corridor, a step forward at the junction
        self.place += ~junction & ~turn
        self.time += 1
        done = junction & turn | (self.time >= 3 * self.longest)
        reward = np.where(found, 1.0, np.where(junction & turn, -1.0, np.where(bump, -0.1, 0.0)))
        self.begin(done)
        return reward.astype(np.float32), done, found


def with_reset(lstm: nn.Module, x: Tensor, state: State, starts: Tensor) -> tuple[Tensor, State]:
    """x [T, N, I], starts [T, N] → y [T, N, H] and the last state"""
    return lstm(x, state, reset=starts)


def step_by_step(lstm: nn.Module, x: Tensor, state: State, starts: Tensor) -> tuple[Tensor, State]:
    """The same as it is written everywhere."""
    outputs = []
    for x_t, start in zip(x, starts, strict=True):
        keep = 1.0 - start.to(x.dtype)[None, :, None]
        y, state = lstm(x_t[None], (keep * state[0], keep * state[1]))
        outputs.append(y)
    return torch.cat(outputs), state


def without_memory(lstm: nn.Module, x: Tensor, state: State, starts: Tensor) -> tuple[Tensor, State]:
    return torch.tanh(lstm(x)), state


class Policy(nn.Module):
    """Actor and critic on one LSTM, or on one linear layer."""

    def __init__(self, core: nn.Module, run, hidden: int):
        super().__init__()
        self.core, self.run = core, run
        self.actor, self.critic = nn.Linear(hidden, 3), nn.Linear(hidden, 1)

    def forward(self, seen: Tensor, state: State, starts: Tensor) -> tuple[Tensor, Tensor, State]:
        """seen [T, N, 4], starts [T, N] → log-probabilities [T, N, 3], values [T, N] and the last state"""
        y, state = self.run(self.core, seen, state, starts)
        return self.actor(y).log_softmax(-1), self.critic(y).squeeze(-1), state


class Walk:
    """One policy in its mazes: where it stands and what it remembers."""

    def __init__(self, args: argparse.Namespace, seed: int):
        self.mazes = Mazes(args.mazes, args.corridor, seed)
        self.state = (torch.zeros(1, args.mazes, args.hidden),) * 2
        self.done = torch.zeros(args.mazes, dtype=torch.bool)

    @torch.no_grad()
    def rollout(self, policy: Policy, steps: int, greedy: bool = False) -> dict:
        """steps of all mazes, and the share of the episodes ended in them that found the prize"""
        first, kept, prizes, episodes = {"state": self.state, "done": self.done}, [], 0, 0
        for _ in range(steps):
            seen = self.mazes.look()
            log_p, value, self.state = policy(seen[None], self.state, self.done[None])
            action = log_p[0].argmax(-1) if greedy else torch.multinomial(log_p[0].exp(), 1).squeeze(-1)
            reward, done, found = self.mazes.step(action.numpy())
            self.done = torch.from_numpy(done)
            log_p = log_p[0].gather(-1, action[:, None]).squeeze(-1)
            kept.append((seen, action, log_p, value[0], torch.from_numpy(reward), self.done))
            prizes, episodes = prizes + found.sum(), episodes + done.sum()
        names = ("seen", "action", "log_p", "value", "reward", "done")
        batch = {name: torch.stack(values) for name, values in zip(names, zip(*kept, strict=True), strict=True)}
        last = policy(self.mazes.look()[None], self.state, self.done[None])[1][0]
        starts = episode_starts(batch["done"], first=first["done"])
        return batch | {"state": first["state"], "starts": starts, "last": last, "success": prizes / max(episodes, 1)}


def advantages(batch: dict, discount: float, smoothing: float = 0.95) -> Tensor:
    """Generalised advantage estimation (Schulman et al., 2016) [T, N]; nothing crosses the end of an episode."""
    later, advantage, found = batch["last"], torch.zeros_like(batch["last"]), []
    for reward, value, done in zip(*(batch[name].flip(0) for name in ("reward", "value", "done")), strict=True):
        goes_on = discount * ~done
        advantage = reward + goes_on * later - value + goes_on * smoothing * advantage
        later = value
        found.append(advantage)
    return torch.stack(found[::-1])


class Learner:
    """A policy with its optimizer; what its learning cost and brought."""

    def __init__(self, policy: Policy, args: argparse.Namespace):
        self.policy, self.args = policy, args
        self.optimizer = torch.optim.Adam(policy.parameters(), lr=args.rate, eps=1e-5)
        self.losses: list[float] = []  # one an update, the mean of its minibatches
        self.seconds: list[float] = []

    def learn(self, batch: dict, orders: list[Tensor]) -> None:
        """Proximal policy optimisation (Schulman et al., 2017) on whole sequences; orders: the rows of each epoch."""
        start, losses = time.perf_counter(), []
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.rate * (1 - len(self.losses) / self.args.updates)
        wanted = batch["advantage"] + batch["value"]
        for order in orders:
            for rows in order.chunk(self.args.parts):
                state = tuple(s[:, rows] for s in batch["state"])
                log_p, value, _ = self.policy(batch["seen"][:, rows], state, batch["starts"][:, rows])
                taken = log_p.gather(-1, batch["action"][:, rows, None]).squeeze(-1)
                ratio = (taken - batch["log_p"][:, rows]).exp()
                advantage = batch["advantage"][:, rows]
                advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
                gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
                entropy = -(log_p.exp() * log_p).sum(-1).mean()
                loss = -gain + 0.5 * F.mse_loss(value, wanted[:, rows]) - self.args.entropy * entropy
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), 0.5)
                self.optimizer.step()
                losses.append(loss.item())
        self.losses.append(sum(losses) / len(losses))
        self.seconds.append(time.perf_counter() - start)


def train(learners: list[Learner], walk: Walk, args: argparse.Namespace, bar: tqdm) -> list[float]:
    """The first learner's policy walks, all learn from it. Returns the success of each rollout."""
    success = []
    for update in range(args.updates):
        batch = walk.rollout(learners[0].policy, args.steps)
        batch["advantage"] = advantages(batch, args.discount)
        orders = [torch.randperm(args.mazes) for _ in range(args.epochs)]
        for learner in learners[:: 1 if update % 2 else -1]:  # neither always goes first
            learner.learn(batch, orders)
        success.append(float(batch["success"]))
        bar.set_postfix_str(f"{success[-1]:.0%} of the prizes found")
        bar.update()
    return success


def draw(path: Path, curves: dict[str, list[float]], learners: dict[str, Learner], args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    at = args.mazes * args.steps / 1000 * np.arange(1, args.updates + 1)
    for name, success in curves.items():
        left.plot(at, 100 * np.array(success), label=name)
    left.axhline(50, color="gray", ls="--", label="best possible without memory")
    left.set(xlabel="thousand steps in the mazes", ylabel="prizes found, %", ylim=(0, 101), title="Learning curve")
    styles = ({"lw": 4, "alpha": 0.4}, {"lw": 1, "color": "black"})
    for (name, learner), style in zip(learners.items(), styles[: len(learners)], strict=True):
        label = f"{name}: {1000 * np.median(learner.seconds):.0f} ms an update"
        right.plot(range(1, args.updates + 1), learner.losses, label=label, **style)
    right.set(xlabel="update", ylabel="PPO loss", title="Same seed, same rollouts")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=150)


def main(argv: list[str] | None = None) -> int:
    args = options(argv)
    torch.manual_seed(args.seed)
    policy = Policy(FusedLSTM(4, args.hidden), with_reset, args.hidden)
    learners = {"one call, reset=": Learner(policy, args)}
    if args.compare:
        twin = Policy(nn.LSTM(4, args.hidden), step_by_step, args.hidden)
        twin.load_state_dict(policy.state_dict())
        learners["loop over time"] = Learner(twin, args)
    print(f"Rollouts of {args.steps} steps in {args.mazes} mazes, {torch.get_num_threads()} threads")
    curves, tested = {}, {}
    with tqdm(total=args.updates * (2 if args.compare else 1), unit="update") as bar:
        walk = Walk(args, args.seed)
        curves["LSTM"] = train(list(learners.values()), walk, args, bar)
        tested["LSTM"] = Walk(args, args.seed + 1).rollout(policy, 100 * args.corridor, greedy=True)["success"]
        if args.compare:
            forgetful = Policy(nn.Linear(4, args.hidden), without_memory, args.hidden)
            curves["without memory"] = train([Learner(forgetful, args)], Walk(args, args.seed), args, bar)
            walk = Walk(args, args.seed + 1)
            tested["without memory"] = walk.rollout(forgetful, 100 * args.corridor, greedy=True)["success"]

    for name, success in tested.items():
        print(f"{name + ':':16} finds {success:.1%} of the prizes in new mazes")
    for name, learner in learners.items():
        total, median = sum(learner.seconds), np.median(learner.seconds)
        print(f"{name + ':':17}{total:6.1f} s of learning, {1000 * median:.1f} ms an update")
    if args.compare:
        ours, theirs = learners.values()
        gap = max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True))
        ratio = np.median(theirs.seconds) / np.median(ours.seconds)
        print(f"{ratio:.1f} times as fast; the losses differ by at most {gap:.1e}")
    args.out.mkdir(parents=True, exist_ok=True)
    draw(args.out / "learning.png", curves, learners, args)
    print(f"Learning curve: {args.out / 'learning.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
