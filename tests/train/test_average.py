"""The average of the weights: its recurrence, and a network that is lent it and given back untouched."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: training needs it")

from torch import nn  # noqa: E402

from tfswa.train.average import Average  # noqa: E402


@pytest.fixture
def network() -> nn.Module:
    """Parameters of several shapes, a parameter that is not trained, and buffers."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    layers[2].bias.requires_grad_(False)
    return layers


def change(network: nn.Module, seed: int) -> None:
    """Set all parameters at random, as a step would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))


def copies(network: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def averaged(network: nn.Module, average: Average) -> list[torch.Tensor]:
    with average.in_place():
        return copies(network)


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_it_begins_with_the_parameters_of_now(network: nn.Module) -> None:
    average, before = Average(network, 0.9), copies(network)
    change(network, 1)
    assert same(averaged(network, average), before)


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_it_is_the_recurrence(network: nn.Module, decay: float) -> None:
    average = Average(network, decay)
    expected = [parameter.double() for parameter in copies(network)]
    for step in range(40):
        change(network, step)
        average.update(step)
        d = min(decay, (1 + step) / (10 + step))
        pairs = zip(expected, copies(network), strict=True)
        expected = [d * mean + (1 - d) * parameter.double() for mean, parameter in pairs]
    for found, mean in zip(averaged(network, average), expected, strict=True):
        torch.testing.assert_close(found.double(), mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "decay", "kept"), [(0, 0.999, 0.1), (8, 0.999, 0.5), (8, 0.3, 0.3), (10**6, 0.999, 0.999)]
)
def test_early_on_it_forgets_faster(step: int, decay: float, kept: float) -> None:
    network = nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(1.0)
    average = Average(network, decay)
    with torch.no_grad():
        network.weight.fill_(0.0)
    average.update(step)
    assert float(averaged(network, average)[0]) == pytest.approx(kept, abs=1e-6)


def test_without_decay_it_is_the_parameters_bit_for_bit(network: nn.Module) -> None:
    average = Average(network, 0.0)
    for step in range(3):
        change(network, step)
        average.update(step)
        assert same(averaged(network, average), copies(network))


def test_it_begins_anew(network: nn.Module) -> None:
    average = Average(network, 0.99)
    change(network, 1)
    assert not same(averaged(network, average), copies(network))
    average.reset()
    assert same(averaged(network, average), copies(network))
    held = copies(network)
    change(network, 2)
    assert same(averaged(network, average), held)  # a copy, not the parameters themselves


def test_the_network_is_given_back_bit_for_bit(network: nn.Module) -> None:
    average = Average(network, 0.9)
    change(network, 1)
    average.update(0)
    before, identities = copies(network), [id(parameter) for parameter in network.parameters()]
    mean = averaged(network, average)
    assert not same(mean, before)
    assert same(copies(network), before)
    assert same(averaged(network, average), mean)
    assert [id(parameter) for parameter in network.parameters()] == identities


def test_the_network_is_given_back_when_the_block_raises(network: nn.Module) -> None:
    average = Average(network, 0.9)
    change(network, 1)
    before, mean = copies(network), averaged(network, average)
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert same(copies(network), before)
    assert same(averaged(network, average), mean)


def test_buffers_are_not_averaged(network: nn.Module) -> None:
    average = Average(network, 0.9)
    network.train()
    network(torch.randn(5, 3))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert float(before["1.running_mean"].abs().sum()) > 0
    average.update(0)
    with average.in_place():
        assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_gradients_are_left_alone(network: nn.Module) -> None:
    average = Average(network, 0.9)
    network(torch.randn(5, 3)).sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    average.update(0)
    with average.in_place():
        pass
    for parameter, gradient in zip(network.parameters(), before, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert before[0] is not None
