"""The fake device notices what a real one would: otherwise the tests on it could not fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pipeline.system.transfers import send, send_all, send_rows
from tests.fake_device import TO_DEVICE, TO_HOST, WAITS, FakeDevice

CUDA = torch.device("cuda")
VALUES = torch.tensor([3.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda x: x.sum().item(), TO_HOST),
        (lambda x: bool((x > 5).any()), TO_HOST),
        (lambda x: float(x[0]), TO_HOST),
        (lambda x: x.cpu(), TO_HOST),
        (lambda x: x.to("cpu", torch.float64), TO_HOST),
        (lambda x: x.tolist(), TO_HOST),
        (lambda x: torch.equal(x, x), TO_HOST),
        (lambda x: torch.empty(3).copy_(x), TO_HOST),
        (lambda x: x.nonzero(), WAITS),
        (lambda x: x[x > 1], WAITS),
        (lambda x: x.masked_select(x > 1), WAITS),
        (lambda x: x.unique(), WAITS),
        (lambda x: x[torch.tensor([0])], TO_DEVICE),
        (lambda x: x.copy_(VALUES), TO_DEVICE),
        (lambda x: torch.tensor([1.0], device=x.device), TO_DEVICE),
        (lambda x: VALUES.to(x.device, non_blocking=True), TO_DEVICE),
        (lambda x: VALUES.pin_memory().to(x.device), TO_DEVICE),
    ],
)
def test_what_a_host_waits_for_is_counted(ask: Callable[[Tensor], object], kind: str) -> None:
    with FakeDevice() as fake:
        x = VALUES.to(CUDA)
        fake.moves.clear()
        ask(x)
    assert [(move.kind, move.is_free) for move in fake.moves] == [(kind, False)]


def test_what_is_sent_from_pinned_memory_is_waited_for_by_nobody() -> None:
    rows = torch.tensor([2, 0])
    with FakeDevice() as fake:
        sent = send(VALUES, CUDA), send_rows(VALUES, rows, CUDA), send_all(VALUES, CUDA)
        moves = list(fake.moves)
        assert send(sent[0], CUDA) is sent[0]
        again = [tensor.tolist() for tensor in sent]
    assert [move.is_free for move in moves] == [True] * 3
    assert [move.size_bytes for move in moves] == [12, 8, 12]
    assert again == [[3, 1, 2], [2, 3], [3, 1, 2]]


def test_a_buffer_that_is_written_while_it_is_copied_is_found() -> None:
    with FakeDevice() as fake:
        buffer = torch.empty(3, pin_memory=True).copy_(VALUES)
        buffer.to(CUDA, non_blocking=True)
    fake.check_buffers()
    buffer.zero_()
    with pytest.raises(AssertionError, match="written while"):
        fake.check_buffers()


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_network_trains_there_as_on_a_processor(kind: str) -> None:
    def losses(device: str) -> list[float]:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        network.to(device)
        assert next(network.parameters()).device.type == device
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        inputs, found = torch.rand(5, 3, 6, 6).to(device), []
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            loss = network(inputs).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    with FakeDevice(kind=kind):
        there = losses(kind)
    assert there == losses("cpu")
    assert there[-1] < there[0]


def test_what_a_device_refuses_is_refused() -> None:
    with FakeDevice(largest_bytes=1000):
        one, other = VALUES.to("cuda:0"), VALUES.to("cuda:1")
        assert [x.device.index for x in (one, other, other + other)] == [0, 1, 1]
        for wrong in (VALUES, other):
            with pytest.raises(RuntimeError, match="same device"):
                one + wrong
        with pytest.raises(RuntimeError, match="numpy"):
            one.numpy()
        with pytest.raises(torch.cuda.OutOfMemoryError, match="Tried to allocate"):
            torch.zeros(1000, device=CUDA)
    with FakeDevice(kind="mps"), pytest.raises(TypeError, match="float64"):
        VALUES.double().to("mps")


def test_each_device_draws_from_a_generator_of_its_own() -> None:
    with FakeDevice():
        torch.manual_seed(5)
        drawn = [torch.rand(2, device=f"cuda:{number}").tolist() for number in (0, 0, 1)]
        here = torch.rand(2).tolist()
    assert drawn[0] == drawn[2] == here  # one seed for all
    assert drawn[1] != drawn[0]
