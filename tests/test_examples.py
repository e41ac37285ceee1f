"""The examples, each run with tiny settings."""

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY_LM = "--steps 12 --embedding 8 --hidden 16 --batch 4 --length 16 --sample 20".split()


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)  # tiny work; a second thread would only wait


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{n} times {n} is {n * n}, isn't it?\n" for n in range(400)), encoding="utf-8")
    return str(path)


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_char_lm_learns_what_torch_learns(text, tmp_path, capsys):
    arguments = ["--data", text, "--out", str(tmp_path), *TINY_LM, "--steps", "60", "--rate", "0.03"]
    assert load("char_lm").main(arguments) == 0
    said = capsys.readouterr().out
    gap = re.search(r"the losses of the 60 steps of both differ by at most (\S+) bits", said)[1]
    assert float(gap) < 1e-3
    losses = torch.load(tmp_path / "checkpoint.pt")["runs"]["FusedLSTM"]["past"]["bits"]
    assert sum(losses[-5:]) < sum(losses[:5]) - 3
    assert is_picture(tmp_path / "loss.png")


@pytest.mark.slow
def test_char_lm_stopped_by_ctrl_c_and_resumed_is_char_lm_uninterrupted(text, tmp_path, capsys):
    def run(out, *more, **options):
        command = [sys.executable, str(EXAMPLES / "char_lm.py"), "--data", text, "--out", str(tmp_path / out), *TINY_LM]
        return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    many = ["--steps", "1000000"]
    process = run("stopped", *many, env=os.environ | {"OMP_NUM_THREADS": "1"})
    watchdog = threading.Timer(120, process.kill)  # closes its pipes, so that reading from them returns
    watchdog.daemon = True
    watchdog.start()
    said = process.stdout.readline() + process.stdout.readline()  # the training begins
    while "step/s" not in (progress := process.stderr.read(40)):
        assert progress, f"it ended or was killed before its first step: {said}"
    process.send_signal(signal.SIGINT)
    said += process.communicate()[0]
    watchdog.cancel()
    assert process.returncode == 130
    done = int(re.search(r"Interrupted after step (\d+)", said)[1])
    assert 0 < done < 1000000

    module, total = load("char_lm"), done + 7
    assert module.main(["--out", str(tmp_path / "stopped"), "--resume", "--steps", str(total), "--sample", "20"]) == 0
    resumed = capsys.readouterr().out
    arguments = ["--data", text, "--out", str(tmp_path / "whole"), *TINY_LM, "--steps", str(total)]
    assert module.main(arguments) == 0
    whole = capsys.readouterr().out
    ours, theirs = (torch.load(tmp_path / out / "checkpoint.pt") for out in ("stopped", "whole"))
    assert set(ours["runs"]) == set(theirs["runs"]) == {"FusedLSTM", "torch.nn.LSTM"}
    for name, one in theirs["runs"].items():
        other = ours["runs"][name]
        assert other["past"].pop("seconds") != one["past"].pop("seconds")
        torch.testing.assert_close(other, one, rtol=0, atol=0)
    samples = [re.search(r"\n\n(def .+?)\n\nheld out: ", said, re.S)[1] for said in (resumed, whole)]
    assert samples[0] == samples[1]


def test_char_lm_never_writes_over_a_checkpoint(text, tmp_path, capsys):
    module = load("char_lm")
    command = ["--data", text, *TINY_LM, "--out", str(tmp_path / "run")]
    assert module.main(command) == 0
    first = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    for number in (2, 3):
        assert module.main(command) == 0
        assert f"this run goes to {tmp_path / f'run-{number}'}" in capsys.readouterr().out
        assert (tmp_path / f"run-{number}" / "checkpoint.pt").exists()
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == first

    for option, value, saved in ("--hidden", "64", "16"), ("--hidden", "256", "16"), ("--rate", "0.1", "0.008"):
        with pytest.raises(SystemExit, match="2"):
            module.main(["--resume", "--out", str(tmp_path / "run"), option, value])
        assert re.search(rf"--resume with {option} {value}, but .* has {option[2:]} {saved}", capsys.readouterr().err)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == first


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--layers", "2"], ["--cell", "gru"], ["--cell", "rnn"]])
def test_classify_tells_two_kinds_of_csv_rows_apart(options, tmp_path, capsys):
    said = ['It is ""rainy"", {}.\\', 'It is ""sunny"", {}.\\']
    rows = [f'"{1 + n % 2}","Title {n}, or so","{said[n % 2].format("really " * (n % 5))}"' for n in range(150)]
    (tmp_path / "rows.csv").write_text("\n".join(rows), encoding="utf-8")
    small = ["--epochs", "10", "--hidden", "16", "--batch", "8", "--rate", "0.01", "--out", str(tmp_path)]
    load("classify").main(["--csv", str(tmp_path / "rows.csv"), *small, *options])
    said = capsys.readouterr().out
    assert float(re.search(r"Test accuracy (\S+)%", said)[1]) > 95
    assert 40 < float(re.search(r"would reach (\S+)%", said)[1]) < 65
    assert is_picture(tmp_path / "learning.png")


def test_classify_reads_ag_news(tmp_path):
    path = tmp_path / "news.csv"
    path.write_text(
        'Class Index,Title,Description\n3,"Oil, again","He said ""no""\\to it."\n"4","A ""chip""","Two\nlines"\n\n',
        encoding="utf-8",
    )
    train, test = load("classify").read_csv(path)
    assert sorted(train + test) == [("3", 'Oil, again He said "no" to it.'), ("4", 'A "chip" Two\nlines')]


@pytest.mark.slow
def test_no_file_of_the_library_is_on_two_sides():
    module = load("classify")
    module.pieces = lambda source: [source]
    parts = module.library()
    train, test = ({source for _, source in part} for part in parts)
    assert all(len(source) < 500 for source in train & test), (
        "two files may both be nearly empty, but no more than that"
    )
    assert all({label for label, _ in part} == set(module.PACKAGES) for part in parts)


def test_pieces_are_the_lines_of_the_text():
    source = "\n\n".join(f"line {n}" for n in range(205))
    pieces = load("classify").pieces(source)
    assert len(pieces) > 5
    assert "\n".join(pieces) == source.replace("\n\n", "\n")


@pytest.mark.slow
def test_recurrent_rl_learns_the_same_by_reset_and_by_the_loop(tmp_path, capsys):
    small = "--updates 6 --mazes 8 --steps 32 --hidden 16 --corridor 3".split()
    load("recurrent_rl").main([*small, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert float(re.search(r"losses differ by at most (\S+)", said)[1]) < 1e-4
    assert is_picture(tmp_path / "learning.png")


def test_training_sees_what_the_rollout_saw():
    module = load("recurrent_rl")
    policy = module.Policy(module.FusedLSTM(4, 16), 1e-3)
    rollouts = module.rollouts(policy, argparse.Namespace(mazes=8, steps=32, hidden=16, corridor=3))
    batch = next(rollouts)
    for _ in range(8):  # all but the first begin in the middle of episodes or with new ones
        assert batch["over"].any()
        actions, value, state = policy(batch["seen"], batch["state"], batch["starts"])
        torch.testing.assert_close(actions.log_prob(batch["action"]), batch["log_p"])
        torch.testing.assert_close(value, batch["value"])
        batch = next(rollouts)
        torch.testing.assert_close(state, batch["state"])


def test_advantages_are_the_discounted_rewards_of_an_episode_less_its_value():
    module = load("recurrent_rl")
    module.SMOOTHING = 1.0
    policy = module.Policy(module.FusedLSTM(4, 16), 1e-3)
    batch = next(module.rollouts(policy, argparse.Namespace(mazes=8, steps=32, hidden=16, corridor=3)))
    checked = 0
    for t, n in batch["over"].nonzero().tolist():
        while t >= 0:
            ahead = batch["over"][t:, n].int().argmax()
            expected = module.DISCOUNT**ahead * batch["reward"][t + ahead, n] - batch["value"][t, n]
            torch.testing.assert_close(batch["advantage"][t, n], expected)
            t, checked = t - 1, checked + 1
    assert checked > 100


def test_a_maze_rewards_the_side_of_its_sign():
    module = load("recurrent_rl")
    mazes = module.Mazes(64, 5)
    sign = mazes.look().argmax(1)
    assert set(sign.tolist()) == {module.SIGN_LEFT, module.SIGN_RIGHT}
    finished = torch.zeros(64, dtype=torch.bool)
    for _ in range(8):
        junction = mazes.look().argmax(1) == module.JUNCTION
        side = torch.arange(64) % 2  # wrong in some mazes
        reward, over = mazes.step(side)
        assert (over == junction).all()
        assert (reward[~over] == 0).all()
        first = over & ~finished
        assert (reward[first] == torch.where(sign == module.SIGN_LEFT + side, 1.0, -1.0)[first]).all()
        finished |= over
    assert finished.all()


@pytest.mark.slow
def test_attend_learns_to_translate(tmp_path, capsys):
    module = load("attend")
    module.FORMATS = {"yyyymmdd": module.FORMATS["yyyymmdd"]}
    small = "--steps 80 --batch 64 --hidden 32 --date 20240229".split()
    module.main([*small, "--rate", "0.02", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert float(re.search(r"(\S+)% of the held-out dates", said)[1]) > 20
    assert re.search(r"'20240229' is \d{4}-", said)
    assert is_picture(tmp_path / "attention.png")


def test_attention_never_looks_behind_the_end():
    module = load("attend")
    model = module.Translator(8, 12)
    texts, lengths = module.encode(["1 May 2020", "the 12th of March 2001"])
    logits, looks = model(texts, lengths)
    assert looks[:, lengths[0] :, 0].eq(0).all()
    torch.testing.assert_close(looks.sum(1), torch.ones(10, 2))
    alone, _ = model(*module.encode(["1 May 2020"]))
    torch.testing.assert_close(alone[:, 0], logits[:, 0])


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("char_lm", ["--hidden", "0"], "--hidden: must be at least 1, got 0"),
        ("char_lm", ["--data", "no/such/file"], "cannot read --data"),
        ("char_lm", ["--resume", "--out", "no/such/folder"], "--resume cannot read no/such/folder/checkpoint.pt"),
        ("classify", ["--csv", "no/such.csv"], "cannot read no/such.csv"),
        ("recurrent_rl", ["--rate", "0"], "--rate: must be above 0, got 0"),
        ("attend", ["--date", "été"], "printable ASCII"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(name, arguments, reason, capsys):
    with pytest.raises(SystemExit) as stopped:
        load(name).main(arguments)
    assert stopped.value.code not in (0, None)
    assert reason in f"{capsys.readouterr().err} {stopped.value.code}"


def test_sb3_policy_is_that_of_sb3_contrib_with_fewer_calls():
    pytest.importorskip("sb3_contrib")
    recipe = load("sb3_recurrent_ppo")
    settings = {"n_steps": 64, "batch_size": 64, "seed": 0, "device": "cpu", "policy_kwargs": {"lstm_hidden_size": 16}}
    policies = "MlpLstmPolicy", recipe.FusedLstmPolicy
    stock, fused = (recipe.RecurrentPPO(policy, "CartPole-v1", **settings) for policy in policies)
    assert type(fused.policy.lstm_actor) is type(fused.policy.lstm_critic) is recipe.fusedrnn.FusedLSTM
    for learner in (stock, fused):
        learner.learn(64)
    fused.policy.load_state_dict(stock.policy.state_dict())

    batch = next(stock.rollout_buffer.get(64))
    assert batch.episode_starts.sum() > 1
    results = []
    for learner in (fused, stock):
        arguments = batch.actions.long().flatten(), batch.lstm_states, batch.episode_starts
        outputs = learner.policy.evaluate_actions(batch.observations, *arguments)
        parameters = list(learner.policy.parameters())
        results.append((*outputs, *torch.autograd.grad(sum(t.square().sum() for t in outputs), parameters)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)

    # sb3-contrib's buffer begins a new sequence at each start; a policy must not rely on that
    starts = (torch.rand(3 * 20) < 0.2).float()
    states, x = (torch.randn(1, 3, 16), torch.randn(1, 3, 16)), torch.randn(3 * 20, 4)
    results = [m.policy._process_sequence(x, states, starts, m.policy.lstm_actor) for m in (fused, stock)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)
