"""The layers as loops over rows and steps, straight from the docstrings: what every option is compared with."""

import torch
import torch.nn.functional as F


def step(mode, gates_x, r, h, c):
    """h and c after one step; h still to be projected."""
    if mode == "LSTM":
        i, f, g, o = (gates_x + r).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if mode == "GRU":
        (x_r, x_z, x_n), (r_r, r_z, r_n) = gates_x.chunk(3), r.chunk(3)
        z = (x_z + r_z).sigmoid()
        return (1 - z) * (x_n + (x_r + r_r).sigmoid() * r_n).tanh() + z * h, c
    return (gates_x + r).tanh() if mode == "RNN_TANH" else (gates_x + r).relu(), c


def run_row(mode, x, steps, h, c, weights, reset, reset_h, reset_c, h_mask, zone_h, zone_c, backwards):
    """One row of one direction: x [T, I]. Returns h and c after every step (by step) and at the end."""
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if len(rest) >= 2 else (None, None)
    hs, cs = {}, {}
    for t in reversed(range(steps)) if backwards else range(steps):
        cut = t + 1 if backwards else t  # going backwards, the border in front of t + 1 is crossed
        if reset is not None and cut < steps and reset[cut]:
            h, c = reset_h, reset_c
        h_new, c_new = step(mode, F.linear(x[t], w_ih, b_ih), F.linear(h * h_mask, w_hh, b_hh), h, c)
        if len(rest) % 2:
            h_new = rest[-1] @ h_new
        if zone_h is not None:
            h_new = torch.where(zone_h[t], h, h_new) if zone_h.dim() else zone_h * h + (1 - zone_h) * h_new
        if zone_c is not None:
            c_new = torch.where(zone_c[t], c, c_new) if zone_c.dim() else zone_c * c + (1 - zone_c) * c_new
        h, c = hs[t], cs[t] = h_new, c_new
    return hs, cs, h, c


def run_module(
    module, x, h0, c0, lengths, reset=None, reset_h=None, reset_c=None, layer_noise=None, between=lambda x: x
):  # fmt: skip
    """All layers: x [T, N, I], states [L*D, N, .], lengths a list. layer_noise gives masks and weights of a layer,
    between what the next layer sees of an output.

    Returns output, h_n, c_n, and for each layer (h, c) after every step; what is behind a row's end is zero.
    """
    D, (T, N) = 1 + module.bidirectional, x.shape[:2]
    sequences, h_n, c_n = [], [], []
    for layer in range(module.num_layers):
        x = between(x) if layer else x
        planes = slice(layer * D, layer * D + D)
        weights = [w for names in module._all_weights[planes] for w in (getattr(module, name) for name in names)]
        h_mask = zone_h = zone_c = None
        if layer_noise is not None:
            h_mask, zone_h, zone_c, weights = layer_noise(x, h0[planes], c0[planes], weights)
        count, found = len(weights) // D, []
        for d in range(D):
            for n in range(N):
                at = planes.start + d
                zones = [z[:, n].chunk(D, -1)[d] if z is not None and z.dim() else z for z in (zone_h, zone_c)]
                found.append(run_row(
                    module.mode, x[:, n], lengths[n], h0[at, n], c0[at, n], weights[d * count : (d + 1) * count],
                    None if reset is None else reset[:, n], reset_h[at, n], reset_c[at, n],
                    1 if h_mask is None else h_mask[d, n], *zones, backwards=d == 1,
                ))  # fmt: skip
        tables = []
        for which, width in enumerate((h0.size(2), c0.size(2))):
            zero = x.new_zeros(width)
            at = [found[d * N + n][which].get(t, zero) for t in range(T) for n in range(N) for d in range(D)]
            tables.append(torch.cat([zero[:0], *at]).view(T, N, D * width))
        h_n += [found[i][2] for i in range(D * N)]
        c_n += [found[i][3] for i in range(D * N)]
        sequences.append(tuple(tables))
        x = tables[0]
    h_n, c_n = (torch.cat([s.flatten()[:0], *rows]).view(s.shape) for s, rows in ((h0, h_n), (c0, c_n)))
    return x, h_n, c_n, sequences
