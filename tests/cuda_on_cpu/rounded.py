"""Checks a pass of the kernels step by step in float64, rounding where they round.

A kernel of a 16-bit type or TF32 rounds the operands of its products and what it stores. A reference that ran freely
would sooner or later round the other way and part from it. So each step starts here from what the kernel itself stored,
and its results must be right roundings of numbers that lie within ``ROUNDED`` of the exact ones.
"""

from __future__ import annotations

import torch
from tolerances import ROUNDED
from torch import Tensor

from fusedrnn.reference import _cut_before

from .layer import GATES, PLANES, Call, Device


def operand(x: Tensor, tf32: bool) -> Tensor:
    """What tensor cores multiply, in float64."""
    if tf32:
        bits = x.float().contiguous().view(torch.int32)
        x = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return x.double()


class Check:
    def __init__(self, call: Call, device: Device):
        self.call, self.a, self.device = call, call.arrays, device
        self.T, self.N, self.R, _, self.H, self.P, self.D = call.sizes
        offsets = self.a.get("offsets")
        self.starts = offsets.tolist() if offsets is not None else [t * self.N for t in range(self.T + 1)]
        self.sizes = [b - a for a, b in zip(self.starts, self.starts[1:], strict=False)]
        self.complaints: list[str] = []

    def near(self, name: str, found: Tensor, exact: Tensor) -> None:
        exact = exact.reshape(found.shape)
        slack = ROUNDED * exact.abs().max().clamp_min(1) if exact.numel() else 0
        low, high = (exact - slack).to(found.dtype), (exact + slack).to(found.dtype)
        wrong = ~((low <= found) & (found <= high))  # NaN is wrong
        if wrong.any():
            worst = (found.double() - exact).abs()[wrong].max().item()
            self.complaints.append(f"{name}: {int(wrong.sum())} of {wrong.numel()} are off, by {worst:.3g} at most")

    def equal(self, name: str, found: Tensor, exact: Tensor) -> None:
        if not torch.equal(found, exact.reshape(found.shape).to(found.dtype)):
            self.complaints.append(f"{name} is not an exact copy")

    def operand(self, x: Tensor) -> Tensor:
        return operand(x, self.call.tf32)

    def order(self, d: int) -> list[int]:
        return list(reversed(range(self.T)) if d else range(self.T))

    def rows(self, t: int) -> slice:
        return slice(self.starts[t], self.starts[t] + self.sizes[t])

    def stored(self, name: str, d: int) -> Tensor:
        """[R, width] of one direction of [R, D * width]."""
        t = self.a[name]
        return t.reshape(self.R, self.D, t.size(-1) // self.D)[:, d]

    def direction(self, name: str, d: int) -> Tensor | None:
        return None if self.a.get(name) is None else self.stored(name, d).double()

    def alive(self, t: int) -> Tensor:
        lengths, n = self.a["lengths"], self.sizes[t]
        return torch.ones(n, 1, dtype=torch.bool) if lengths is None else (t < lengths[:n]).unsqueeze(1)

    def cut(self, t: int, d: int) -> Tensor:
        """Rows [N, 1] whose state starts anew before step t."""
        n, reset = self.sizes[t], self.a["reset"]
        cut = None
        if reset is not None:
            cut = _cut_before(t, n, self.sizes, self.starts, self.a["lengths"], reset.flatten(), d == 1)
        return torch.zeros(n, 1, dtype=torch.bool) if cut is None else cut

    def behind_cut(self, name: str, d: int, width: int) -> Tensor:
        t = self.a[name]
        return torch.zeros(self.N, width, dtype=torch.float64) if t is None else t[d].double()

    def masked(self, h: Tensor, d: int) -> Tensor:
        """h as it is on its way into w_hh."""
        mask = self.a["h_mask"]
        return h if mask is None else (h * mask[d, : h.size(0)].double()).to(self.call.dtype).double()

    def share_kept(self, state: str, t: int, d: int) -> Tensor | float:
        """What zoneout keeps of h or c in a step."""
        keeps, share = self.direction("zone_" + state, d), self.a.get("share_" + state)
        return keeps[self.rows(t)] if keeps is not None else 0.0 if share is None else share.item()

    def states_before(self, d: int):
        """By step: h [n, P] and c [n, H] as the kernel took them, from what it stored; and h at the end."""
        lstm = self.call.mode == "LSTM"
        h, c = self.a["h0"][d].double(), self.a["c0"][d].double() if lstm else None
        y, c_steps = self.direction("y", d), self.direction("c_steps", d)
        before = [None] * self.T
        for t in self.order(d):
            n, alive, cut = self.sizes[t], self.alive(t), self.cut(t, d)
            h_prev = torch.where(cut, self.behind_cut("reset_h", d, self.P)[:n], h[:n])
            c_prev = torch.where(cut, self.behind_cut("reset_c", d, self.H)[:n], c[:n]) if lstm else None
            before[t] = h_prev, c_prev
            h = torch.cat([torch.where(alive, y[self.rows(t)], h[:n]), h[n:]])
            c = torch.cat([torch.where(alive, c_steps[self.rows(t)], c[:n]), c[n:]]) if lstm else None
        return before, h

    def forward(self) -> list[str]:
        for d in range(self.D):
            self.forward_direction(d)
        return self.complaints

    def forward_direction(self, d: int) -> None:
        a, G, A = self.a, GATES[self.call.mode], PLANES[self.call.mode]
        w_hh, b_hh, w_hr = self.operand(a[f"w_hh{d}"]), a[f"b_hh{d}"], a[f"w_hr{d}"]
        lstm = self.call.mode == "LSTM"
        c = a["c0"][d].double() if lstm else None  # the kernel's own is float and never stored: exact here
        before, h_end = self.states_before(d)
        for t in self.order(d):
            n, rows, alive = self.sizes[t], self.rows(t), self.alive(t)
            h_prev = before[t][0]
            r = self.operand(self.masked(h_prev, d)) @ w_hh.T + (0 if b_hh is None else b_hh.double())
            x = self.call.gates_x[d, rows].double().unflatten(1, (-1, self.H))[:, :G]
            state = [h_prev if w_hr is None else torch.zeros(n, self.H, dtype=torch.float64)]
            if lstm:
                c_before = c[:n]
                c_prev = torch.where(self.cut(t, d), self.behind_cut("reset_c", d, self.H)[:n], c_before)
                state.append(c_prev)
            given = [*x.unbind(1), *r.view(n, G, self.H).unbind(1)]
            (h, *c_new), saved = self.device.cell_step(self.call.mode, False, given, state, A)
            at = f"step {t}, direction {d}: "
            self.near(at + "saved", a["saved"][d, rows], torch.stack(saved, 1).where(alive.unsqueeze(2), 0))
            if w_hr is not None:
                self.near(at + "hidden", a["hidden"][d, rows], h.where(alive, 0))
                h = self.operand(a["hidden"][d, rows]) @ self.operand(w_hr).T
            h = torch.lerp(h, h_prev, self.share_kept("h", t, d))
            self.near(at + "y", self.stored("y", d)[rows], h.where(alive, 0))
            if lstm:
                c_new = [torch.lerp(c_new[0], c_prev, self.share_kept("c", t, d))]
                self.near(at + "c_steps", self.stored("c_steps", d)[rows], c_new[0].where(alive, 0))
                c = torch.cat([torch.where(alive, c_new[0], c_before), c[n:]])
        self.equal(f"direction {d}: h_n", a["h_n"][d], h_end)
        if lstm:
            self.near(f"direction {d}: c_n", a["c_n"][d], c)

    def backward(self) -> list[str]:
        for d in range(self.D):
            self.backward_direction(d)
        return self.complaints

    def backward_direction(self, d: int) -> None:
        a, mode, G, Q = self.a, self.call.mode, GATES[self.call.mode], PLANES[self.call.mode]
        w_hh, w_hr, lstm = self.operand(a[f"w_hh{d}"]), a[f"w_hr{d}"], mode == "LSTM"

        def given(name, width):
            return torch.zeros(self.N, width, dtype=torch.float64) if a[name] is None else a[name][d].double()

        dh, dc = given("dh_n", self.P), given("dc_n", self.H) if lstm else None
        dy, dc_steps = self.direction("dy", d), self.direction("dc_steps", d)
        dreset_h, dreset_c = torch.zeros_like(dh), torch.zeros_like(dc) if lstm else None
        before, _ = self.states_before(d)
        for t in reversed(self.order(d)):
            n, rows, alive, cut = self.sizes[t], self.rows(t), self.alive(t), self.cut(t, d)
            at = f"step {t}, direction {d}: "
            h_prev, c_prev = before[t]
            if a["h_prev"] is not None:
                self.equal(at + "h_prev", a["h_prev"][d, rows], self.masked(h_prev, d).where(alive, 0))
            dh_step = dh[:n] + (0 if dy is None else dy[rows])
            h_past = dh_step * self.share_kept("h", t, d)  # zoneout leads it past the cell
            dh_step = dh_step - h_past
            if w_hr is not None:
                self.near(at + "dh_steps", a["dh_steps"][d, rows], dh_step.where(alive, 0))
                dh_step = self.operand(a["dh_steps"][d, rows]) @ self.operand(w_hr)
            ds = [dh_step]
            if lstm:
                dc_step = dc[:n] + (0 if dc_steps is None else dc_steps[rows])
                c_past = dc_step * self.share_kept("c", t, d)
                ds.append(dc_step - c_past)
            prev = [torch.zeros_like(dh_step) if w_hr is not None else h_prev] + ([c_prev] if lstm else [])
            saved = a["saved"][d, rows].double().unbind(1)
            (dh_cell, *dc_new), dgates = self.device.cell_step(mode, True, [*saved, *prev], ds, Q)
            stored = a["dgates"][d, rows]
            self.near(at + "dgates", stored, torch.stack(dgates, 1).where(alive.unsqueeze(2), 0))
            dr = torch.cat([stored[:, : G - 1], stored[:, Q - 1 :]], 1).flatten(1)
            through_w_hh = self.operand(dr) @ w_hh
            if a["h_mask"] is not None:
                through_w_hh = through_w_hh * a["h_mask"][d, :n].double()
            dh_prev = through_w_hh + h_past + (dh_cell if w_hr is None else 0)
            # to the state before the step, or to the one that a reset has put there
            dreset_h[:n] += dh_prev.where(cut & alive, 0)
            dh = torch.cat([torch.where(alive, dh_prev.where(~cut, 0), dh[:n]), dh[n:]])
            if lstm:
                dc_prev = dc_new[0] + c_past
                dreset_c[:n] += dc_prev.where(cut & alive, 0)
                dc = torch.cat([torch.where(alive, dc_prev.where(~cut, 0), dc[:n]), dc[n:]])
        results = [("dh0", dh), ("dreset_h", dreset_h), ("dc0", dc), ("dreset_c", dreset_c)]
        for name, exact in results:
            if a[name] is not None:
                self.near(f"direction {d}: {name}", a[name][d], exact)
