"""Weights packed once, for inference: writes the bytes that csrc/packed.h describes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

FORMS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
_MAGIC, _VERSION = int.from_bytes(b"fusedrnn", "little"), 1
_UNITS, _LANES, _ALIGNMENT = 64, 16, 64
_DEPTH = {"float32": 1, "bfloat16": 2, "float16": 1, "int8": 4}


def pack(form: str, hidden: int, tensors: Mapping[str, Tensor | None]) -> Tensor:
    """The block of one layer and direction, from its float32 weights by name: w_ih, and w_hh, b_ih, b_hh and vectors
    where the cell has them."""
    w_ih, w_hh = tensors["w_ih"], tensors.get("w_hh")
    G, B = w_ih.size(0) // hidden, 0 if w_hh is None else w_hh.size(0) // hidden
    vectors = tensors.get("vectors")
    vectors = w_ih.new_empty(0, hidden) if vectors is None else vectors
    w_hh = w_ih.new_empty(0, hidden) if w_hh is None else w_hh
    sizes = (G, B, vectors.size(0), w_ih.size(1), hidden, w_hh.size(1))
    sections = [torch.tensor([_MAGIC, _VERSION, list(FORMS).index(form), *sizes])]
    matrices = [convert(w, form) for w in (w_ih, w_hh)]
    sections += [_arrange(values.unflatten(0, (-1, hidden)), _DEPTH[form]) for values, _ in matrices]
    for values, scales in matrices if form == "int8" else ():
        sections += [_rows(scales, hidden), _rows(values.sum(1, dtype=torch.int32), hidden)]
    for name, count in (("b_ih", G), ("b_hh", B)):
        b = tensors.get(name)
        sections.append(_rows(w_ih.new_zeros(count * hidden) if b is None else b, hidden))
    sections.append(_rows(vectors.flatten(), hidden))
    return torch.cat([pad(b, (0, -b.numel() % _ALIGNMENT)) for b in map(_bytes, sections)])


def convert(w: Tensor, form: str) -> tuple[Tensor, Tensor | None]:
    """The numbers that are kept of w [rows, k], and of int8 the scale of each row."""
    if form != "int8":
        return w.to(FORMS[form]), None
    scales = w.abs().amax(1) / 127 if w.numel() else w.new_zeros(w.size(0))
    return torch.where(scales.unsqueeze(1) > 0, w / scales.unsqueeze(1), 0).round().to(torch.int8), scales


def form_of(block: Tensor) -> str | None:
    """How the numbers of a block are kept; None if it is none."""
    if block.dtype is not torch.uint8 or block.numel() < 3 * 8:
        return None
    magic, _, form = block[: 3 * 8].clone().view(torch.int64).tolist()
    return list(FORMS)[form] if magic == _MAGIC and 0 <= form < len(FORMS) else None


def _bytes(t: Tensor) -> Tensor:
    return t.contiguous().flatten().view(torch.uint8)


def _arrange(w: Tensor, depth: int) -> Tensor:
    """w [gates, H, k] as [H / 64][gates][k / depth][width][depth]."""
    gates, hidden, k = w.shape
    w = pad(w, (0, -k % depth, 0, -hidden % _LANES))
    blocks = [b.unflatten(2, (-1, depth)).transpose(1, 2).flatten() for b in w.split(_UNITS, 1)]
    return torch.cat(blocks)


def _rows(rows: Tensor, hidden: int) -> Tensor:
    """[gates, padded H] from [gates * H]."""
    return pad(rows.unflatten(0, (-1, hidden)), (0, -hidden % _LANES)) if rows.numel() else rows
