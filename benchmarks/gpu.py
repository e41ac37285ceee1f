"""The short questions of gpu.sh to a GPU, each a process: imports, clusters, tier, shapes, once."""

import argparse
import json
import os
import platform
from pathlib import Path

import contenders
import timing
import torch
from shapes import Shape

from fusedrnn.backends import extension
from fusedrnn.choice import Call, Layers, estimates

EIGHT = [(64, 16), (128, 32), (256, 64), (512, 64), (768, 16), (1024, 16), (1024, 128), (512, 512)]  # H, N
AGREEMENT = 1e-5  # with float64, of float32


def imports(args: argparse.Namespace) -> None:
    """For the machine that builds: everything can be imported there, and what has to be brought along."""
    assert extension._C is not None, extension.extension_error
    assert extension._C.cuda_version, "it was built without CUDA"
    paths = [extension._C.__file__, extension.library_path()]
    print(f"for Python {platform.python_version()}, torch {torch.__version__}, {extension._C.cuda_archs}; bring along:")
    for path in paths:
        print(f"  {os.path.relpath(path)}  {os.path.getsize(path) / 2**20:.1f} MiB")


def clusters(args: argparse.Namespace) -> None:
    multiprocessors, shared, capability, *found = extension._C.gpu(torch.cuda.current_device())
    print(f"{torch.cuda.get_device_name()}: {multiprocessors} multiprocessors, {shared} bytes, sm_{capability}")
    print("clusters at once, by blocks:", {1 << size: count for size, count in enumerate(found)})


def tier(args: argparse.Namespace) -> None:
    """A layer of odd sizes in the tier of FUSEDRNN_PLAN, forward and backward, against float64."""
    for cell in ("LSTM", "GRU", "RNN"):
        work = contenders.Work(Shape(cell, 8, 11, 5, 37, "first answer"), args.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            found = contenders.tensors(contenders.contender(work, "fusedrnn", "training")())
        exact = contenders.tensors(contenders.contender(work.double(), "torch", "training")())
        error = contenders.error(found, exact)
        print(f"{cell}: off by {error:.1e}", flush=True)
        if not error <= AGREEMENT:
            raise SystemExit(f"{cell} is wrong")


def shapes(args: argparse.Namespace) -> None:
    """Microseconds a step beside torch.nn, and beside the estimates."""
    rows = []
    print(f"{'':32}{'ours':>9}{'torch.nn':>9}{'ratio':>7}   estimated: {'ours':>7}{'cuDNN':>7}  off by")
    for (H, N), dtype in ((shape, dtype) for shape in EIGHT[: args.count] for dtype in ("bfloat16", "float16")):
        shape = Shape("LSTM", args.steps, N, H, H, "eight shapes", dtype)
        work = contenders.Work(shape, args.device)
        for call in ("forward", "training"):
            with torch.set_grad_enabled(call == "training"):
                runs = {who: contenders.contender(work, who, call) for who in ("fusedrnn", "torch")}
                results = {who: contenders.tensors(run()) for who, run in runs.items()}
                samples = timing.alternate(runs, args.seconds, timing.CLOCKS[args.device])
            apart = contenders.error(results["fusedrnn"], results["torch"])
            ours, torchs = (1e6 * timing.quartiles(samples[who])[1] / args.steps for who in runs)
            asked = Call(args.steps, N, H, False, call == "training")
            device = args.simulated or extension._C.gpu(torch.cuda.current_device())
            guess = estimates(Layers("LSTM", H, H, 1, 1), asked, getattr(torch, dtype), True, tuple(device))
            guess = [us / args.steps for us in guess]
            print(
                f"{f'H={H} N={N} {dtype} {call}':32}{ours:9.2f}{torchs:9.2f}{torchs / ours:7.2f}"
                f"{'':14}{guess[0]:7.2f}{guess[1]:7.2f}  {apart:.0e}",
                flush=True,
            )
            rows.append({"H": H, "N": N, "dtype": dtype, "call": call, "us": [ours, torchs], "estimates": guess})
            if args.out:
                args.out.write_text(json.dumps(rows, indent=1) + "\n")


def once(args: argparse.Namespace) -> None:
    """One call, for a profiler."""
    work = contenders.Work(Shape("LSTM", 64, 16, args.hidden, args.hidden, "profile", "bfloat16"), args.device)
    with torch.set_grad_enabled(args.call == "training"):
        contenders.contender(work, "fusedrnn", args.call)()


QUESTIONS = {f.__name__: f for f in (imports, clusters, tier, shapes, once)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--simulated", type=int, nargs=3, help="numbers of the GPU that estimates are for")
    parser.add_argument("--steps", type=int, default=512)
    parser.add_argument("--count", type=int, default=len(EIGHT), help="of the shapes")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each comparison")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--call", choices=("forward", "training"), default="forward")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    QUESTIONS[args.question](args)


if __name__ == "__main__":
    main()
