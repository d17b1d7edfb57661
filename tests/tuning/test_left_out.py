"""What a method does not reach is counted and named; nothing is said where it reaches all."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from nets import TABLES, tiny
from torch import Tensor, nn

import lowtide
from lowtide import METHODS, StepConfig, plan
from lowtide.cli import main
from lowtide.tuning.left_out import LeftOutWarning


class Net(nn.Module):
    """Four maps and norms that may be grafted on, six that may not, and one that is never used."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 8, 8)
        self.norm = nn.LayerNorm(dim)
        self.read, self.read_and_called = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.twice = nn.ModuleList([nn.Linear(dim, dim)] * 2)
        self.attention = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.along = nn.Conv1d(dim, dim, 3, padding=1)
        self.plain, self.last = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.unused = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, 4)
        self.pretrained_cfg = {"input_size": (3, 32, 32)}

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x).flatten(2).mT)
        x = F.linear(x, self.read.weight, self.read.bias)
        x = self.read_and_called(x.to(self.read_and_called.weight.dtype))
        for linear in self.twice:
            x = linear(x)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = self.plain(self.along(x.mT).mT)
        return self.head(self.last(x).mean(1))


def said(model: nn.Module, *methods: object) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned = lowtide.apply(model, *methods)
    assert all(w.category is LeftOutWarning for w in caught)
    assert [str(w.message) for w in caught] == tuned.notes
    return tuned.notes


@pytest.mark.parametrize(
    "name, reached, missing",
    [
        # stem, two norms, `plain`; the other linears, what is in the attention, the convolution
        ("ssf", 4, 6),
        ("lora", 1, 5),
        ("rlrr", 4, 6),
    ],
)
def test_what_is_left_out_is_counted(name: str, reached: int, missing: int) -> None:
    (line,) = said(Net(), METHODS[name]())
    total = reached + missing
    assert line.startswith(f"{name} reaches {reached} of {total} places of its kind; left out: ")
    assert line.endswith(f" and {missing - 1} more") and "\n" not in line


def test_each_reason_is_said_of_its_place() -> None:
    sites = {s.path: s for s in lowtide.apply(Net(), METHODS["linear"]()).sites}
    barred = {path: s.barred for path, s in sites.items() if s.barred}
    assert barred == {
        "read": "another module reads its parameters",
        "read_and_called": "another module reads its parameters",
        "twice.0": "two places hold it",
        "attention": "nothing grafts on a MultiheadAttention",
        "attention.out_proj": "another module reads its parameters",
        "along": "nothing grafts on a Conv1d",
    }


def test_a_method_that_does_not_mean_them_says_nothing() -> None:
    assert not said(Net(), METHODS["linear"]())
    model = Net()
    del model.unused
    assert not said(model, METHODS["bias"]())


@pytest.mark.parametrize("family", sorted(TABLES))
def test_nothing_is_said_where_all_is_reached(family: str) -> None:
    for name in ("ssf", "lora", "rlrr"):
        assert not said(tiny(family), METHODS[name]())


def test_the_line_is_a_note_of_the_plan_and_no_random_number_is_drawn_for_it(capsys) -> None:
    with pytest.warns(LeftOutWarning):
        noted = plan(Net(), METHODS["ssf"](), num_classes=4, step=StepConfig(batch_size=2))
    assert any(line.startswith("ssf reaches 4 of 10") for line in noted.notes)
    draws = []
    for model in (Net(), Net()):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = lowtide.apply(model, METHODS["lora"]())
        draws.append(torch.rand(3))
    assert torch.equal(*draws) and tuned.notes
    assert (
        main(["plan", "--model", "xcit_nano_12_p16_224", "--method", "ssf", "--batch-size", "2"])
        == 0
    )
    out = capsys.readouterr()
    assert (out.out + out.err).count("ssf reaches") == 1
