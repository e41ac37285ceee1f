"""README, the pages in docs/ and docstrings: their code runs, their numbers were measured, their names exist."""

import doctest
import functools
import json
import re
from pathlib import Path

import pytest
import torch

import fusedrnn

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
RESULTS = ROOT / "benchmarks" / "results" / "epyc.json"


def text(path):
    return (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore")  # what torch's exporters say
@pytest.mark.parametrize("page", [p for p in PAGES if CODE.search(text(p))], ids=lambda p: p.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    torch.set_num_threads(1)  # small shapes
    monkeypatch.chdir(tmp_path)  # models are saved here
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # inductor takes 20 s
    if page.stem == "deployment":
        pytest.importorskip("onnx")
    names = {"__name__": page.stem}
    for block in CODE.finditer(text(page)):
        line = text(page).count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(page), "exec"), names)


DOCSTRINGS = {
    name: test
    for name in fusedrnn.__all__
    for test in doctest.DocTestFinder(recurse=False).find(getattr(fusedrnn, name), name)
    if test.examples
}


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_the_examples_of_a_docstring_give_what_they_show(name):
    DOCSTRINGS[name].globs = {"torch": torch, "fusedrnn": fusedrnn}
    said = []
    assert not doctest.DocTestRunner().run(DOCSTRINGS[name], out=said.append).failed, "".join(said)


def test_examples_of_docstrings_are_found():
    assert {"FusedLSTM", "convert", "episode_starts"} <= set(DOCSTRINGS)


def test_readme_can_be_read_in_two_minutes():
    assert text("README.md").count("\n") <= 120


def links(page):
    """Relative links of a page outside of its code."""
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"`[^`]*`", "", text(page))):
        if not re.match(r"[a-z]+:|#", target):
            yield target.split("#")[0]


LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "csrc" / "README.md", *(ROOT / "docs" / "design").glob("*.md")]


@pytest.mark.parametrize("page", LINKING, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert [target for target in links(page) if not (page.parent / target).exists()] == []


def measured(row: str, call: str) -> dict[str, float]:
    """Milliseconds of each contender for a row of README's table such as "LSTM 100, 32, 256, packed"."""
    cell, T, N, H, *rest = re.split(r",? ", row)
    dtype = {"bfloat16": "bf16"}.get(*rest, "fp32") if rest else "fp32"
    form = "-step" if T == "1" else "-packed" if "packed" in rest else ""
    name = f"{cell}-{dtype}-{T}x{N}x{H}x{H}{form}"
    [result] = [
        r for r in json.loads(RESULTS.read_text())["results"] if (r["name"], r["call"], r["threads"]) == (name, call, 2)
    ]
    return {who: c["ms"][1] for who, c in result["contenders"].items()}


def test_the_performance_table_shows_what_was_measured():
    table = re.search(r"<!-- performance -->(.*?)<!-- /performance -->", text("README.md"), re.S)[1]
    rows = [re.split(r" *\| *", line)[1:-1] for line in table.splitlines() if re.match(r"\| [LGR]", line)]
    assert 6 <= len(rows) <= 8
    columns = [("forward", who) for who in ("fusedrnn", "torch", "onnxruntime", "openvino")]
    columns += [("training", who) for who in ("fusedrnn", "torch")]
    for name, *cells in rows:
        for (call, who), cell in zip(columns, cells, strict=True):
            if cell:
                digits = len(cell.strip("*").replace(".", "").lstrip("0"))
                assert float(cell.strip("*")) == float(f"{measured(name, call)[who]:.{digits}g}"), (name, call, who)
            else:
                assert name == "LSTM 1, 1, 128" or who not in measured(name, call)


def test_every_public_name_is_in_the_reference():
    documented = re.findall(
        r"auto(?:class|function|exception|module):: (?:fusedrnn\.)?(\w+)$", text("docs/api.md"), re.M
    )
    assert sorted(documented) == sorted(fusedrnn.__all__)


def test_every_environment_variable_is_documented():
    asked = set()
    for path in [ROOT / "setup.py", *(ROOT / "fusedrnn").rglob("*.py"), *(ROOT / "csrc").rglob("*.c*")]:
        asked |= set(re.findall(r'(?:getenv\(|environ(?:\.\w+\(|\[))"(\w+)"', text(path)))
    assert {"FUSEDRNN_ISA", "FUSEDRNN_CUDA"} <= asked
    assert asked <= set(re.findall(r"^\| `(\w+)`", text("docs/environment.md"), re.M))


def test_version_is_the_same_everywhere():
    assert f"\nversion: {fusedrnn.__version__}\n" in text("CITATION.cff")
    assert f"\n## {fusedrnn.__version__}\n" in text("CHANGELOG.md")
    assert f'\nversion = "{fusedrnn.__version__}"\n' in text("pyproject.toml")
