"""Checks a pass of the kernels step by step in float64, rounding where they round.

A kernel of a 16-bit type or TF32 rounds the operands of its products and what it stores. A reference that ran freely
would sooner or later round the other way and part from it. So each step starts here from what the kernel itself stored,
and its results must be right roundings of numbers that lie within ``ROUNDED`` of the exact ones.
"""

from __future__ import annotations

import torch
from tolerances import ROUNDED
from torch import Tensor

from .layer import CELLS, Call, Device, states_of, steps_of


def operand(x: Tensor, tf32: bool) -> Tensor:
    """An operand as tensor cores round it, in float64."""
    if tf32:
        bits = x.float().contiguous().view(torch.int32)
        x = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return x.double()


class Check:
    def __init__(self, call: Call, device: Device):
        self.call, self.a, self.device = call, call.arrays, device
        self.traits, self.states = CELLS[call.mode], states_of(call.mode)
        self.T, self.N, self.R, _, self.H, self.P, self.D = call.sizes
        offsets = self.a.get("offsets")
        self.starts = offsets.tolist() if offsets is not None else [t * self.N for t in range(self.T + 1)]
        self.sizes = [b - a for a, b in zip(self.starts, self.starts[1:], strict=False)]
        self.complaints: list[str] = []

    def near(self, name: str, ours: Tensor, exact: Tensor) -> None:
        exact = exact.reshape(ours.shape)
        slack = ROUNDED * exact.abs().max().clamp_min(1) if exact.numel() else 0
        low, high = (exact - slack).to(ours.dtype), (exact + slack).to(ours.dtype)
        wrong = ~((low <= ours) & (ours <= high))  # NaN is wrong
        if wrong.any():
            worst = (ours.double() - exact).abs()[wrong].max().item()
            self.complaints.append(f"{name}: {int(wrong.sum())} of {wrong.numel()} are off, by {worst:.3g} at most")

    def equal(self, name: str, ours: Tensor, exact: Tensor) -> None:
        if not torch.equal(ours, exact.reshape(ours.shape).to(ours.dtype)):
            self.complaints.append(f"{name} is not an exact copy")

    def operand(self, x: Tensor) -> Tensor:
        return operand(x, self.call.tf32)

    def order(self, d: int) -> list[int]:
        return list(reversed(range(self.T)) if d else range(self.T))

    def rows(self, t: int) -> slice:
        return slice(self.starts[t], self.starts[t] + self.sizes[t])

    def width(self, state: str) -> int:
        return self.P if state == "h" else self.H

    def stored(self, name: str, d: int) -> Tensor:
        """[R, width] of one direction of [R, D * width]."""
        t = self.a[name]
        return t.reshape(self.R, self.D, t.size(-1) // self.D)[:, d]

    def alive(self, t: int) -> Tensor:
        lengths, n = self.a.get("lengths"), self.sizes[t]
        return torch.ones(n, 1, dtype=torch.bool) if lengths is None else (t < lengths[:n]).unsqueeze(1)

    def reset_before(self, t: int, d: int) -> Tensor:
        """Rows [n, 1] whose states are replaced before step t; in direction 1 by the mask of step t + 1."""
        rows, border = torch.zeros(self.sizes[t], 1, dtype=torch.bool), t + d
        if "reset" in self.a and border < self.T:
            reset = self.a["reset"].flatten()[self.rows(border)].unsqueeze(1) & self.alive(border)
            rows[: len(reset)] = reset[: len(rows)]
        return rows

    def behind_reset(self, state: str, t: int, d: int, before: Tensor) -> Tensor:
        """[n, width]: a state as step t takes it."""
        n, fresh = self.sizes[t], self.a.get(f"reset_{state}")
        return torch.where(self.reset_before(t, d), 0.0 if fresh is None else fresh[d, :n].double(), before[:n])

    def masked(self, h: Tensor, d: int) -> Tensor:
        """h as it is on its way into w_hh."""
        mask = self.a.get("h_mask")
        return h if mask is None else (h * mask[d, : h.size(0)].double()).to(self.call.dtype).double()

    def share_kept(self, state: str, t: int, d: int) -> Tensor | float:
        """The fraction of a state that zoneout keeps in a step."""
        if f"zone_{state}" in self.a:
            return self.stored(f"zone_{state}", d)[self.rows(t)].double()
        return self.a[f"share_{state}"].item() if f"share_{state}" in self.a else 0.0

    def states_before(self, d: int) -> tuple[list[list[Tensor]], Tensor]:
        """By step and state: [n, width] as the kernel read it, from what it stored; and h at the end."""
        now = {state: self.a[f"{state}0"][d].double() for state in self.states}
        before = [None] * self.T
        for t in self.order(d):
            n, rows, alive = self.sizes[t], self.rows(t), self.alive(t)
            before[t] = [self.behind_reset(state, t, d, value) for state, value in now.items()]
            for state, value in now.items():
                after = self.stored(steps_of(state), d)[rows].double()
                now[state] = torch.cat([torch.where(alive, after, value[:n]), value[n:]])
        return before, now["h"]

    def forward(self) -> list[str]:
        for d in range(self.D):
            self.forward_direction(d)
        return self.complaints

    def forward_direction(self, d: int) -> None:
        a, G, A = self.a, self.traits.gates, self.traits.saved
        w_hh, b_hh, w_hr = self.operand(a[f"w_hh{d}"]), a.get(f"b_hh{d}"), a.get(f"w_hr{d}")
        # states other than h go on in float and are stored nowhere: exact here
        carried = {state: a[f"{state}0"][d].double() for state in self.states[1:]}
        before, h_end = self.states_before(d)
        for t in self.order(d):
            n, rows, alive = self.sizes[t], self.rows(t), self.alive(t)
            h_prev = before[t][0]
            r = self.operand(self.masked(h_prev, d)) @ w_hh.T + (0 if b_hh is None else b_hh.double())
            x = self.call.gates_x[d, rows].double().unflatten(1, (-1, self.H))[:, :G]
            prev = [self.behind_reset(state, t, d, value) for state, value in carried.items()]
            state = [h_prev if w_hr is None else torch.zeros(n, self.H, dtype=torch.float64), *prev]
            given = [*x.unbind(1), *r.view(n, G, self.H).unbind(1)]
            (h, *others), saved = self.device.cell_step(self.call.mode, False, given, state, A)
            at = f"step {t}, direction {d}: "
            self.near(at + "saved", a["saved"][d, rows], torch.stack(saved, 1).where(alive.unsqueeze(2), 0))
            if w_hr is not None:
                self.near(at + "hidden", a["hidden"][d, rows], h.where(alive, 0))
                h = self.operand(a["hidden"][d, rows]) @ self.operand(w_hr).T
            h = torch.lerp(h, h_prev, self.share_kept("h", t, d))
            self.near(at + "y", self.stored("y", d)[rows], h.where(alive, 0))
            for name, new, old in zip(self.states[1:], others, prev, strict=True):
                new = torch.lerp(new, old, self.share_kept(name, t, d))
                self.near(at + steps_of(name), self.stored(steps_of(name), d)[rows], new.where(alive, 0))
                carried[name] = torch.cat([torch.where(alive, new, carried[name][:n]), carried[name][n:]])
        self.equal(f"direction {d}: h_n", a["h_n"][d], h_end)
        for name, value in carried.items():
            self.near(f"direction {d}: {name}_n", a[f"{name}_n"][d], value)

    def backward(self) -> list[str]:
        for d in range(self.D):
            self.backward_direction(d)
        return self.complaints

    def backward_direction(self, d: int) -> None:
        a, G, Q = self.a, self.traits.gates, self.traits.grads
        w_hh, w_hr = self.operand(a[f"w_hh{d}"]), a.get(f"w_hr{d}")
        zeros = {state: torch.zeros(self.N, self.width(state), dtype=torch.float64) for state in self.states}
        ds = {state: a[f"d{state}_n"][d].double() if f"d{state}_n" in a else z for state, z in zeros.items()}
        dresets = {state: z.clone() for state, z in zeros.items()}
        before, _ = self.states_before(d)
        for t in reversed(self.order(d)):
            n, rows, alive, reset = self.sizes[t], self.rows(t), self.alive(t), self.reset_before(t, d)
            at = f"step {t}, direction {d}: "
            if "h_prev" in a:
                self.equal(at + "h_prev", a["h_prev"][d, rows], self.masked(before[t][0], d).where(alive, 0))
            steps, past = self.split_by_zoneout(ds, t, d)
            prev = list(before[t])
            if w_hr is not None:
                self.near(at + "dh_steps", a["dh_steps"][d, rows], steps[0].where(alive, 0))
                steps[0] = self.operand(a["dh_steps"][d, rows]) @ self.operand(w_hr)
                prev[0] = torch.zeros_like(steps[0])
            saved = a["saved"][d, rows].double().unbind(1)
            of_cell, dgates = self.device.cell_step(self.call.mode, True, [*saved, *prev], steps, Q)
            stored = a["dgates"][d, rows]
            self.near(at + "dgates", stored, torch.stack(dgates, 1).where(alive.unsqueeze(2), 0))
            dr = torch.cat([stored[:, : G - 1], stored[:, Q - 1 :]], 1).flatten(1)
            through_w_hh = self.operand(dr) @ w_hh
            if "h_mask" in a:
                through_w_hh = through_w_hh * a["h_mask"][d, :n].double()
            of_cell[0] = through_w_hh + (of_cell[0] if w_hr is None else 0)
            for state, cell, rest in zip(self.states, of_cell, past, strict=True):
                # to the state before the step, or to the one that a reset has put there
                dresets[state][:n] += (cell + rest).where(reset & alive, 0)
                left, old = (cell + rest).where(~reset, 0), ds[state]
                ds[state] = torch.cat([torch.where(alive, left, old[:n]), old[n:]])
        self.near_states(d, {f"d{state}0": value for state, value in ds.items()})
        self.near_states(d, {f"dreset_{state}": value for state, value in dresets.items()})

    def split_by_zoneout(self, ds: dict[str, Tensor], t: int, d: int) -> tuple[list[Tensor], list[Tensor]]:
        """Gradients of the states after step t: the part through the cell, and the part around it by zoneout."""
        steps, past = [], []
        for state in self.states:
            name = f"d{steps_of(state)}"
            whole = ds[state][: self.sizes[t]]
            if name in self.a:
                whole = whole + self.stored(name, d)[self.rows(t)].double()
            past.append(whole * self.share_kept(state, t, d))
            steps.append(whole - past[-1])
        return steps, past

    def near_states(self, d: int, exact: dict[str, Tensor]) -> None:
        for name, value in exact.items():
            if name in self.a:
                self.near(f"direction {d}: {name}", self.a[name][d], value)
