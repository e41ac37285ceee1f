"""Installs the last commit in every way, each in an environment of its own: kernels in use, or one clear sentence.

python tests/install/forms.py                    half an hour on two cores; needs the network
python tests/install/forms.py --only 'uv|sdist'
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
STOP = "*** fusedrnn is not installed: "
ADVICE = "add --no-build-isolation to the command"
NO_KERNELS = {"FUSEDRNN_NO_KERNELS": "1", "PIP_NO_CACHE_DIR": "1"}
SAY = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import fusedrnn
import torch
from fusedrnn import info
lstm = fusedrnn.FusedLSTM(8, 16)
lstm(torch.randn(5, 3, 8), lengths=torch.tensor([5, 0, 3]))[0].sum().backward()
cell = fusedrnn.Recurrent(fusedrnn.zoo.mgu, 4, 8)
cell(torch.randn(5, 3, 4))[0].sum().backward()
said = [str(w.message) for w in caught if str(w.message).startswith("fusedrnn")]
print(info.info()["fusedrnn"], "with", info.serves(lstm), "and a cell that is", cell.backend, *said)
"""


@dataclass
class Form:
    """A way to install: a command, what it is run with, and what must be said in the end."""

    name: str
    command: str  # of the environment's programs; {tree}, {sdist}, {wheel}: see main()
    ends: str = "with the CPU kernels and a cell that is compiled"  # "STOP sentence", or what SAY prints
    environment: dict[str, str] = field(default_factory=dict)
    torch: bool = True


FORMS = [
    Form("isolated", "pip install {tree}"),
    Form("not isolated", "pip install --no-build-isolation {tree}"),
    Form("editable", "pip install -e {tree}"),
    Form("git", "pip install git+file://{tree}"),
    Form("sdist", "pip install {sdist}"),
    Form("wheel", "pip install {wheel}"),
    Form("uv", "uv pip install --no-build-isolation {tree}"),
    Form("uv, isolated", "uv pip install {tree}", STOP + ADVICE),
    Form("no torch", "pip install {tree}", STOP + ADVICE, torch=False),
    Form("no compiler", "pip install {tree}", STOP + "no C++20 compiler", {"CXX": "no-such-compiler"}),
    Form("no kernels", "pip install {tree}", "+nokernels with torch.nn", NO_KERNELS),
    Form("no kernels, cached", "pip install {tree}", STOP + "PIP_NO_CACHE_DIR=1", {"FUSEDRNN_NO_KERNELS": "1"}),
]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip is asked for (default: %(default)s)")
    parser.add_argument("--torch-index", default="", metavar="URL", help="where pip takes torch from")
    parser.add_argument("--only", default="", metavar="REGEX", help="only forms whose name matches")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the environments")
    return parser.parse_args()


def run(command: str, cwd: Path, programs: Path | None = None, **environment: str) -> tuple[int, str]:
    """The exit status and all that was said."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("FUSEDRNN_", "PYTHON"))}
    if programs:
        given |= {"PATH": f"{programs / 'bin'}:{os.environ['PATH']}", "VIRTUAL_ENV": str(programs)}
    done = subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        env=given | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


def must(command: str, cwd: Path, programs: Path | None = None) -> None:
    status, said = run(command, cwd, programs)
    if status:
        raise SystemExit(f"{command} failed:\n{said}")


def prepare(work: Path, args: argparse.Namespace, forms: list[Form]) -> dict[str, str]:
    """Environments to copy, with torch and without, and what is installed."""
    must(f"git clone -q {ROOT} tree", work)
    must(f"{sys.executable} -m venv env && env/bin/pip install -q uv && cp -al env bare", work)
    index = f"--index-url {args.torch_index}" if args.torch_index else ""
    must(f"env/bin/pip install {index} '{args.torch}' && mv env full", work)
    (found,) = {*work.glob("full/lib/python*/site-packages/torch")}
    assert found.is_dir()
    made = {"tree": f"{work}/tree"}
    shutil.copytree(work / "full", work / "env", symlinks=True, copy_function=os.link)
    if any(form.name == "sdist" for form in forms):
        must("python setup.py -q sdist --dist-dir ../sdist", work / "tree", work / "env")
        (made["sdist"],) = map(str, work.glob("sdist/*"))
    if any(form.name == "wheel" for form in forms):
        must("pip wheel -q --no-deps --no-cache-dir -w ../wheel .", work / "tree", work / "env")
        (made["wheel"],) = map(str, work.glob("wheel/*"))
    return made


def attempt(form: Form, work: Path, made: dict[str, str]) -> tuple[bool, str, float]:
    """Did it end as it must, what was said in the end, and how many seconds it took."""
    shutil.rmtree(work / "env", ignore_errors=True)
    shutil.copytree(work / ("full" if form.torch else "bare"), work / "env", symlinks=True, copy_function=os.link)
    must("git clean -qfdx", work / "tree")
    start = time.perf_counter()
    status, said = run(form.command.format(**made), work, work / "env", **form.environment)
    seconds = time.perf_counter() - start
    if form.ends.startswith(STOP):
        sentences = [line.strip() for line in said.splitlines() if STOP in line]
        good = status != 0 and bool(sentences) and form.ends.removeprefix(STOP) in sentences[-1]
    else:
        cells = str(work / "env/cells")  # new for every form: compiled from the headers that were installed
        said = said if status else run(f"python -c '{SAY}'", work, work / "env", FUSEDRNN_CACHE=cells)[1]
        sentences = [] if status else said.splitlines()
        good = bool(sentences) and form.ends in sentences[-1]
    return good, sentences[-1] if sentences else said, seconds


def main() -> None:
    args = parse()
    forms = [form for form in FORMS if re.search(args.only, form.name)]
    work = Path(tempfile.mkdtemp(prefix="fusedrnn-"))
    print(f"{len(forms)} forms of install in {work}; first torch, up to 3 GB", flush=True)
    bad = 0
    try:
        made = prepare(work, args, forms)
        for form in forms:
            good, said, seconds = attempt(form, work, made)
            bad += not good
            print(f"{'ok ' if good else 'BAD'} {form.name:<20}{seconds:7.1f} s  {said}", flush=True)
    finally:
        if not args.keep:
            shutil.rmtree(work)
    print(f"{len(forms) - bad} passed, {bad} failed")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
