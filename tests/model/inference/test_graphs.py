"""What CUDA graphs must keep to, on a stand-in for torch.cuda's graphs that is as strict as PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from fluid_kernels.head_loop import Chains, Rows
from model.inference.backbone_pass import StaticPass, bucket
from model.inference.engine import Engine
from model.inference.prompts import LabelPrompts
from model.networks.autoregressive_model import Fluid
from model.networks.mar import ClassContext, Mar
from model.networks.text_encoder import HashEncoder
from tests.model.conftest import row_request, run_alone
from tests.model.inference.test_backbone_pass import Recorder, mar  # noqa: F401


class Graphs:
    """Streams, pools and captures. A pool dies with its last graph, and a dead pool cannot be captured into."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.users: dict[int, int] = {}  # living graphs by pool
        self.dead: set[int] = set()
        self.made: list[Stream] = []  # streams
        self.stream, self.capturing = Stream(), False
        self.captures: list[Stream] = []
        self.ran: list[tuple[Stream, bool]] = []  # (stream, captured) of every run of the backbone
        self.pools = 0
        owner = self

        class Graph:
            pool = 0

            def replay(self) -> None:
                assert self.pool not in owner.dead

            def __del__(self) -> None:
                owner.users[self.pool] -= 1
                if not owner.users[self.pool]:
                    owner.dead.add(self.pool)

        @contextmanager
        def use(stream: Stream) -> Iterator[None]:
            before, self.stream = self.stream, stream
            yield
            self.stream = before

        @contextmanager
        def capture(graph: Graph, pool: int, stream: Stream, capture_error_mode: str) -> Iterator[None]:
            assert pool not in self.dead, "use_count > 0: the pool went with its last graph"
            assert capture_error_mode == "thread_local"
            graph.pool, self.users[pool], self.capturing = pool, self.users.get(pool, 0) + 1, True
            self.captures.append(stream)
            with use(stream):
                yield
            self.capturing = False

        def handle() -> int:
            self.pools += 1
            return self.pools

        def make_stream() -> Stream:
            self.made.append(Stream())
            return self.made[-1]

        for name, value in {
            "Stream": make_stream, "CUDAGraph": Graph, "graph": capture, "stream": use, "graph_pool_handle": handle,
            "current_stream": lambda: self.stream,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)


class Stream:
    def wait_stream(self, other: Stream) -> None:
        pass


class Backbone(Recorder):
    """Notes where it runs."""

    def __init__(self, graphs: Graphs):
        super().__init__()
        self.graphs = graphs

    def forward(self, tokens: Tensor, known: Tensor, condition: ClassContext, most_known: int = 0) -> Tensor:
        self.graphs.ran.append((self.graphs.stream, self.graphs.capturing))
        return super().forward(tokens, known, condition, most_known)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    return Graphs(monkeypatch)


def make_pass(graphs: Graphs, rows: int = 3, tokens: int = 64) -> StaticPass:
    run = StaticPass(Backbone(graphs), torch.zeros(rows, tokens, 2), torch.zeros(rows, tokens, dtype=torch.bool),
                     ClassContext(torch.zeros(1, 3)))  # fmt: skip
    run._pool = torch.cuda.graph_pool_handle()  # as on CUDA
    return run


def test_a_forgotten_pool_is_not_captured_into_again(graphs: Graphs) -> None:
    """After an out-of-memory error all graphs go, and with them their pool: PyTorch then refuses its handle."""
    run = make_pass(graphs)
    run.warm_up((2, 0, 0))
    run.warm_up((1, 0, 0))
    first = run._pool
    assert graphs.users == {first: 2}
    run.forget()
    assert graphs.dead == {first} and run._pool not in graphs.dead
    run.warm_up((2, 0, 0))
    assert graphs.users[run._pool] == 1  # type: ignore[index]


def test_all_graphs_are_warmed_up_and_captured_on_one_stream(graphs: Graphs) -> None:
    """cuBLAS keeps a workspace for each stream; a new stream for each shape would allocate each in the graphs' pool."""
    run = make_pass(graphs)
    for shape in run.shapes:
        run.warm_up(shape)
    assert len(graphs.made) == 1 and set(graphs.captures) == set(graphs.made)
    assert {stream for stream, _ in graphs.ran} == set(graphs.made)
    assert [captured for _, captured in graphs.ran[:3]] == [False, False, True]


@pytest.mark.parametrize(
    ("rows", "packs", "count"), [(64, False, 24), (64, True, 120), (256, False, 32), (1, True, 10)]
)
def test_the_count_of_shapes_is_bounded_and_stated(graphs: Graphs, rows: int, packs: bool, count: int) -> None:
    """Every call's shape is among them, so nothing is captured once they are warm."""
    run = make_pass(graphs, rows, 256)
    run.backbone.packs_known = packs  # type: ignore[assignment]
    shapes = run.shapes
    assert len(shapes) == len(set(shapes)) == count and shapes == sorted(shapes, reverse=True)
    for shape in shapes:
        run.warm_up(shape)
    captured = len(graphs.captures)
    null = ClassContext(torch.zeros(1, 3))
    for evaluations in {1, 2, 2 * rows, *range(3, 2 * rows, 7)}:
        for known in (0, 1, 64, 65, 255, 256):
            run([0] * evaluations, [null] * evaluations, known)
    assert len(graphs.captures) == captured
    assert {bucket(n) for n in range(1, 2 * rows)} <= {size for size, *_ in shapes}


class Head:
    """A head that notes its calls; buckets as on a GPU."""

    def __init__(self, head: object):
        self.head, self.called = head, list[tuple[int, int]]()

    def buckets(self, most: int) -> list[tuple[int, int]]:
        return [(most, most), (most, 0), (1, 1), (1, 0)]

    def __call__(self, rows: Rows, chains: Chains, prediction: str, clamp: float) -> Tensor:
        self.called.append((len(rows), len(rows.guided)))
        return self.head(rows, chains, prediction, clamp)  # type: ignore[operator,no-any-return]


def test_the_warm_up_reports_and_changes_no_image(mar: Mar) -> None:  # noqa: F811
    prompts = LabelPrompts(mar, ["a", "b", "c"])
    cold, warm = (Engine(mar, prompts, 2, static=True) for _ in range(2))
    warm._head = head = Head(warm._head)  # type: ignore[assignment]
    said: list[tuple[int, int]] = []
    warm.warm_up(5, lambda done, total: said.append((done, total)))
    total = len(warm._backbone.shapes) + 4  # type: ignore[union-attr]
    assert said == [(i, total) for i in range(total)]
    assert head.called == [(10, 10), (10, 0), (1, 1), (1, 0)]
    assert torch.equal(run_alone(warm, row_request("a", 3)), run_alone(cold, row_request("a", 3)))


def test_a_shape_that_does_not_fit_is_left_out(mar: Mar) -> None:  # noqa: F811
    """A step of that many rows is split when it comes; the worker must start all the same."""
    engine = Engine(mar, LabelPrompts(mar, ["a", "b", "c"]), 4, static=True)
    record = engine._backbone._record  # type: ignore[union-attr]

    def tight(size: int, known: int, text: int) -> object:
        if size > 4:
            raise torch.OutOfMemoryError("no")
        return record(size, known, text)

    engine._backbone._record = tight  # type: ignore[union-attr,method-assign,assignment]
    engine.warm_up(1)
    assert {size for size, *_ in engine._backbone._replays} == {1, 2, 3, 4}  # type: ignore[union-attr]


def test_a_cpu_has_nothing_to_prepare(tiny: Fluid, encoder: HashEncoder, engine: Engine) -> None:
    said: list[int] = []
    engine.warm_up(16, lambda done, total: said.append(total))
    assert said == []
