"""convert and to_torch change the class of each module, and nothing else of the model."""

import warnings

import pytest
import torch
from tolerances import assert_same
from torch import nn
from twins import TWINS, every_class, input_and_state, results_and_gradients

import fusedrnn

THERE_AND_BACK = pytest.mark.parametrize("there", [True, False], ids=["convert", "to_torch"])


def change(there):
    return fusedrnn.convert if there else fusedrnn.to_torch


def classes(plain, there):
    return (plain, TWINS[plain]) if there else (TWINS[plain], plain)


@every_class
@THERE_AND_BACK
def test_a_module_becomes_its_twin_and_stays_the_same_object(plain, there):
    before, after = classes(plain, there)
    options = {"nonlinearity": "relu"} if "RNN" in plain.__name__ else {}
    module = before(3, 4, dtype=torch.float64, **options).eval()
    seen = []
    module.register_forward_hook(lambda module, args, output: seen.append(type(module)))
    module.register_buffer("steps", torch.tensor(3))
    model = nn.ModuleDict({"inner": nn.Sequential(nn.Identity(), module), "again": module})
    wanted = results_and_gradients(module, *input_and_state(module))
    parameters, state = list(module.parameters()), list(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert change(there)(model) is model
    assert model["inner"][1] is module and model["again"] is module and type(module) is after
    assert not module.training and list(model.state_dict()) == state
    assert all(p is q for p, q in zip(module.parameters(), parameters, strict=True))
    assert_same(results_and_gradients(module, *input_and_state(module)), wanted)
    assert seen == [before, after]
    assert type(change(not there)(module)) is before  # the model itself may be one


@THERE_AND_BACK
def test_all_kinds_in_one_model(there):
    model = nn.ModuleList([classes(plain, there)[0](3, 4) for plain in TWINS])
    assert [type(module) for module in change(there)(model)] == [classes(plain, there)[1] for plain in TWINS]


@every_class
@THERE_AND_BACK
def test_a_subclass_stays_as_it_is_with_a_warning(plain, there):
    class Mine(classes(plain, there)[0]):
        pass

    other = nn.LSTM if there else fusedrnn.FusedLSTM
    model = nn.ModuleDict({"own": nn.Sequential(Mine(3, 4)), "other": other(3, 4)})
    with pytest.warns(UserWarning, match="^own.0 stays Mine: only the classes themselves are converted") as caught:
        change(there)(model)
    assert len(caught) == 1 and caught[0].filename == __file__  # whoever called it
    assert type(model["own"][0]) is Mine and type(model["other"]) is not other
    with pytest.warns(UserWarning, match="^the model itself stays Mine"):
        change(there)(Mine(3, 4))


@THERE_AND_BACK
def test_what_is_of_the_other_kind_already_stays_without_a_word(there):
    model = nn.ModuleList([classes(plain, there)[1](3, 4) for plain in TWINS] + [nn.Linear(3, 4)])
    kinds = [type(module) for module in model]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        change(there)(model)
    assert [type(module) for module in model] == kinds


def test_a_parametrized_module_is_a_subclass():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.GRUCell(3, 4), "weight_hh"))
    with pytest.warns(UserWarning, match="0 stays ParametrizedGRUCell"):
        fusedrnn.convert(model)


def test_weights_that_were_replaced_are_those_of_torch_again():
    module = fusedrnn.FusedLSTM(3, 4, dtype=torch.float64)
    x, h = input_and_state(module)
    del module.weight_hh_l0
    module.weight_hh_l0 = torch.zeros(16, 4, dtype=torch.float64)
    wanted = module(x, h)
    assert_same(fusedrnn.to_torch(module)(x, h), wanted)


def test_layers_are_flattened_for_cudnn_when_they_are_those_of_torch_again(monkeypatch):
    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda module: flattened.append(module))
    model = nn.Sequential(fusedrnn.FusedLSTM(3, 4), fusedrnn.FusedGRUCell(3, 4), nn.Sequential(fusedrnn.FusedRNN(3, 4)))
    fusedrnn.to_torch(model)
    assert flattened == [model[0], model[2][0]]
