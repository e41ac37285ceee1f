"""RecurrentPPO of sb3-contrib with one call per sequence instead of one per step.

sb3-contrib's own policy calls its LSTM step by step whenever an episode starts inside a batch, which is nearly always.
This one passes the starts as ``reset=`` and keeps everything else, the parameters and their names included.

    pip install sb3-contrib
    python examples/sb3_recurrent_ppo.py
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import Tensor

import fusedrnn


class FusedLstmPolicy(RecurrentActorCriticPolicy):
    """Stands in for ``"MlpLstmPolicy"``."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        fusedrnn.convert(self)  # keeps the Parameters, which the optimizer already holds

    @staticmethod
    def _process_sequence(features: Tensor, lstm_states, episode_starts: Tensor, lstm):
        rows = lstm_states[0].size(1)  # environments, or padded sequences while training
        x = features.reshape(rows, -1, lstm.input_size).transpose(0, 1)
        reset = episode_starts.reshape(rows, -1).transpose(0, 1).bool()
        output, lstm_states = lstm(x, lstm_states, reset=reset)
        return output.transpose(0, 1).flatten(0, 1), lstm_states


def seconds_per_update(policies: dict, environment: str, steps: int, updates: int) -> dict[str, float]:
    """The median time of one PPO update (10 epochs), for each policy, alternating."""
    learners = {}
    for name, policy in policies.items():
        learners[name] = RecurrentPPO(policy, environment, n_steps=steps, batch_size=128, seed=0, device="cpu")
        learners[name].learn(steps)  # fills the buffer and warms up
    taken = {name: [] for name in learners}
    for _ in range(updates):
        for name, learner in learners.items():
            start = time.perf_counter()
            learner.train()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", default="CartPole-v1", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=512, help="steps of a rollout (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=5, help="updates to time (default: %(default)s)")
    args = parser.parse_args()
    policies = {"MlpLstmPolicy": "MlpLstmPolicy", "FusedLstmPolicy": FusedLstmPolicy}
    print(f"RecurrentPPO on {args.environment}, {args.steps} steps a rollout, {torch.get_num_threads()} threads")
    medians = seconds_per_update(policies, args.environment, args.steps, args.updates)
    for name, seconds in medians.items():
        print(f"{name:<16} {seconds:.2f} s per update")
    print(f"{medians['MlpLstmPolicy'] / medians['FusedLstmPolicy']:.1f} times as fast")


if __name__ == "__main__":
    main()
