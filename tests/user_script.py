"""User code under mypy --strict: correct calls have the right types, and every ignored error must be one."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from typing_extensions import assert_type

import fusedrnn

State = tuple[Tensor, Tensor]
x = torch.randn(5, 2, 3)
packed = pack_padded_sequence(x, torch.tensor([5, 3]))
lengths = torch.tensor([5, 0])
reset = torch.zeros(5, 2, dtype=torch.bool)

lstm = fusedrnn.FusedLSTM(3, 4, 1, True, False, 0.0, False, 0, "cpu", torch.float32, recurrent_dropout=0.1)
gru = fusedrnn.FusedGRU(3, 4, num_layers=2, bidirectional=True, device=torch.device("cpu"), weight_drop=0.5)
rnn = fusedrnn.FusedRNN(3, 4, 1, "relu", batch_first=True, recompute=True)
fusedrnn.FusedLSTM(3, 4, zoneout_c=0.1, forget_bias=None)

assert_type(lstm.forward(x), tuple[Tensor, State])
assert_type(lstm.forward(packed, (x, x)), tuple[PackedSequence, State])
assert_type(lstm.forward(x, lengths=lengths, reset=reset, reset_state=(x, x)), tuple[Tensor, State])
assert_type(lstm.forward(x, return_state_sequence=True), tuple[Tensor, State, Tensor])
assert_type(lstm.forward(packed, return_state_sequence=True), tuple[PackedSequence, State, PackedSequence])
assert_type(lstm.forward(x, return_state_sequence="all"), tuple[Tensor, State, list[tuple[Tensor, Tensor]]])
assert_type(
    lstm.forward(packed, return_state_sequence="all"),
    tuple[PackedSequence, State, list[tuple[PackedSequence, PackedSequence]]],
)
assert_type(gru.forward(x, x, lengths=lengths), tuple[Tensor, Tensor])
assert_type(gru.forward(packed), tuple[PackedSequence, Tensor])
assert_type(gru.forward(x, return_state_sequence=True), tuple[Tensor, Tensor, None])
assert_type(rnn.forward(x, return_state_sequence="all"), tuple[Tensor, Tensor, list[tuple[Tensor, None]]])
assert_type(fusedrnn.FusedLSTMCell(3, 4, False).forward(x, (x, x)), State)
assert_type(fusedrnn.FusedGRUCell(3, 4, device="cpu").forward(x), Tensor)
assert_type(fusedrnn.FusedRNNCell(3, 4, nonlinearity="relu").forward(x, x), Tensor)
assert_type(fusedrnn.episode_starts(reset, batch_first=True, first=reset[0]), Tensor)

fusedrnn.FusedLSTM(3)  # type: ignore[call-arg]
fusedrnn.FusedLSTM(3, 4, "tanh")  # type: ignore[arg-type]
fusedrnn.FusedGRU(3, 4, zoneout_c=0.1)  # type: ignore[call-arg]
fusedrnn.FusedGRU(3, 4, proj_size=2)  # type: ignore[arg-type]
fusedrnn.FusedRNN(3, 4, hidden=5)  # type: ignore[call-arg]
lstm.forward(x, x)  # type: ignore[call-overload]
gru.forward(x, (x, x))  # type: ignore[call-overload]
lstm.forward(packed, lengths=lengths)  # type: ignore[call-overload]
lstm.forward(x, return_state_sequence="last")  # type: ignore[call-overload]


class Model(nn.Module):
    def __init__(self, kind: Literal["lstm", "gru"]) -> None:
        super().__init__()
        self.rnn: nn.RNNBase = fusedrnn.FusedLSTM(3, 4) if kind == "lstm" else fusedrnn.FusedGRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.rnn(x)[0]
        return output


class Mine(fusedrnn.FusedLSTM):
    def __init__(self, size: int) -> None:
        super().__init__(size, size, batch_first=True)


model: nn.Module = fusedrnn.to_torch(fusedrnn.convert(Model("lstm")))
output, (h, c) = Mine(3).forward(x)
