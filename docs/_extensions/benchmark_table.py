"""The directive `benchmark-table`: results of benchmarks/bench.py, read from the JSON file when pages are built.

```{benchmark-table} ../benchmarks/results/epyc.json
:call: forward
```
"""

import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

NAMES = {"fusedrnn": "fusedrnn", "torch": "torch.nn", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def cell(text: str, strong: bool = False) -> nodes.entry:
    kind = nodes.strong if strong else nodes.inline
    return nodes.entry("", nodes.paragraph("", "", kind("", text)))


def row(result: dict, contenders: list[str]) -> nodes.row:
    times = {who: c["ms"][1] for who, c in result["contenders"].items() if who in contenders}
    best = min(times, key=times.get)
    cells = [cell(result["name"])]
    cells += [cell(f"{times[who]:.3g}" if who in times else "", who == best) for who in contenders]
    return nodes.row("", *cells)


class BenchmarkTable(SphinxDirective):
    """Milliseconds of each contender with two threads, the median; the least in bold."""

    required_arguments = 1  # the JSON file, relative to the page
    option_spec = {"call": lambda text: directives.choice(text, ("forward", "training"))}

    def run(self):
        _, path = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(path)
        results = json.loads(Path(path).read_text())["results"]
        chosen = [r for r in results if (r["threads"], r["call"]) == (2, self.options["call"])]
        contenders = [who for who in NAMES if any(who in r["contenders"] for r in chosen)]
        head = nodes.row("", *map(cell, ["shape", *(NAMES[who] for who in contenders)]))
        columns = [nodes.colspec(colwidth=3 if i == 0 else 1) for i in range(1 + len(contenders))]
        body = nodes.tbody("", *(row(r, contenders) for r in chosen))
        group = nodes.tgroup("", *columns, nodes.thead("", head), body, cols=len(columns))
        return [nodes.table("", group, classes=["benchmark"])]


def setup(app):
    app.add_directive("benchmark-table", BenchmarkTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
