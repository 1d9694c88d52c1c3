"""Where tasks go: the books of nodes. No cluster, no store."""

from typing import Any

import pytest

from dbserve.contracts.cluster import Capacity, Node, Resources
from dbserve.contracts.plan import TaskKind
from dbserve.contracts.status import Run, Task, TaskState
from dbserve.placement import Ask, Books, ask_of, shortfall


def a_node(name: str, cpus: float = 4.0, gpus: float = 0.0, **more: Any) -> Node:
    return Node(id=f"id-{name}", name=name, resources=Resources(cpus, gpus), **more)


def an_ask(cpus: float = 1.0, gpus: float = 0.0, **more: Any) -> Ask:
    return Ask(Resources(cpus, gpus), **more)


def a_task(node: str, *, gpus: float = 0.0, gpu: str | None = None, name: str = "block-0", job: str = "j") -> Task:
    run = Run(job_id=job, task=name, attempt=1)
    return Task(
        run=run, kind=TaskKind.BLOCK, state=TaskState.RUNNING, gpus=gpus, gpu=gpu, node_id=f"id-{node}", nodes=()
    )


def placed(books: Books, ask: Ask, times: int, job: str = "j") -> list[tuple[str, ...]]:
    return [tuple(node.removeprefix("id-") for node in books.place(ask, job)) for _ in range(times)]


@pytest.mark.parametrize("parts", [2, 3, 6, 7, 15])
def test_ray_has_room_for_as_many_parts_of_a_gpu_as_the_books(parts: int) -> None:
    each = Resources(1 / parts, 1 / parts)
    books = Books(Capacity((a_node("a", cpus=1.0, gpus=1.0),)))
    assert placed(books, Ask(each), parts + 1) == [("a",)] * parts + [()]
    ten_thousandths = round(each.told.gpus * 10_000), round(each.told.cpus * 10_000)
    assert max(ten_thousandths) * parts <= 10_000


def test_ray_is_told_of_whole_gpus_above_one() -> None:
    assert Resources(2.0, 1.5).told == Resources(2.0, 2.0)
    assert Resources(0.3, 0.7).told == Resources(0.3, 0.7)


def test_two_halves_share_a_gpu_and_two_larger_parts_do_not() -> None:
    halves = Books(Capacity((a_node("a", gpus=2.0),)))
    assert placed(halves, an_ask(0.5, 0.5), 5) == [("a",)] * 4 + [()]
    larger = Books(Capacity((a_node("a", gpus=2.0),)))
    assert placed(larger, an_ask(0.5, 0.7), 3) == [("a",)] * 2 + [()]
    assert placed(larger, an_ask(0.5, 0.5), 1) == [()], "0.3 + 0.3 is no 0.6 of one GPU"
    assert placed(larger, an_ask(0.5, 0.3), 3) == [("a",)] * 2 + [()]


def test_whole_gpus_are_taken_from_those_that_nobody_uses() -> None:
    books = Books(Capacity((a_node("a", gpus=4.0),)))
    books.charge([a_task("a", gpus=0.25, gpu="GPU-1"), a_task("a", gpus=0.25, gpu="GPU-2", name="block-1")])
    assert placed(books, an_ask(1.0, 3.0), 1) == [()], "three and a half are free, and two are whole"
    books = Books(Capacity((a_node("a", gpus=4.0),)))
    books.charge([a_task("a", gpus=0.25, gpu="GPU-1"), a_task("a", gpus=0.25, gpu="GPU-1", name="block-1")])
    assert placed(books, an_ask(1.0, 3.0), 2) == [("a",), ()]


def test_a_worker_that_has_not_begun_is_counted_where_ray_would_put_it() -> None:
    books = Books(Capacity((a_node("a", gpus=2.0),)))
    books.charge([a_task("a", gpus=0.5), a_task("a", gpus=0.5, gpu="0", name="block-1")])
    assert placed(books, an_ask(1.0, 1.0), 2) == [("a",), ()], "it fills up the GPU that is in use"


def test_packed_workers_fill_the_fullest_node_and_spread_ones_go_to_as_many_as_there_are() -> None:
    nodes = Capacity((a_node("a"), a_node("b"), a_node("c")))
    busy = [a_task("b", name="other", job="other")]
    books = Books(nodes)
    books.charge(busy)
    assert placed(books, an_ask(), 5) == [("b",), ("b",), ("b",), ("a",), ("a",)]
    books = Books(nodes)
    books.charge(busy)
    assert placed(books, an_ask(placement="spread"), 6) == [("a",), ("c",), ("b",), ("a",), ("c",), ("b",)]


def test_what_is_spread_minds_its_own_job_alone() -> None:
    books = Books(Capacity((a_node("a", cpus=8.0), a_node("b", cpus=2.0))))
    books.charge([a_task("a")])
    assert placed(books, an_ask(placement="spread"), 1) == [("b",)], "the smaller one, where the job has nobody"
    assert placed(books, an_ask(placement="spread"), 1, job="k") == [("a",)], "where most is free"


def test_what_needs_no_gpu_leaves_nodes_with_gpus_alone_while_it_can() -> None:
    books = Books(Capacity((a_node("gpu", cpus=2.0, gpus=1.0), a_node("plain", cpus=2.0))))
    assert placed(books, an_ask(), 3) == [("plain",), ("plain",), ("gpu",)]


def test_replicas_stay_together_where_a_node_has_room_for_all_of_them() -> None:
    nodes = Capacity((a_node("a", gpus=1.0), a_node("b", gpus=2.0), a_node("c", gpus=4.0)))
    assert placed(Books(nodes), an_ask(1.0, 1.0, replicas=2, fewest=2), 1) == [("b", "b")]
    assert placed(Books(nodes), an_ask(1.0, 1.0, replicas=6, fewest=6), 1) == [("c", "c", "c", "c", "b", "b")]
    apart = an_ask(1.0, 1.0, replicas=3, fewest=3, placement="spread")
    assert placed(Books(nodes), apart, 1) == [("c", "b", "a")]


def test_replicas_start_with_as_many_as_there_is_room_for_and_never_with_fewer_than_the_fewest() -> None:
    nodes = Capacity((a_node("a", gpus=2.0), a_node("b", gpus=1.0)))
    assert placed(Books(nodes), an_ask(1.0, 1.0, replicas=4, fewest=2), 2) == [("a", "a", "b"), ()]
    assert placed(Books(nodes), an_ask(1.0, 1.0, replicas=5, fewest=4), 1) == [()]


def test_type_and_labels_say_where_a_task_may_go() -> None:
    nodes = Capacity(
        (
            a_node("a", gpus=4.0, gpu_type="T4"),
            a_node("b", gpus=4.0, gpu_type="A100", labels={"zone": "1"}),
            a_node("c", gpus=4.0, gpu_type="A100", labels={"zone": "2", "spot": "yes"}),
        )
    )
    assert placed(Books(nodes), an_ask(1.0, 1.0, gpu_type="A100"), 1) == [("b",)]
    assert placed(Books(nodes), an_ask(1.0, 0.0, labels=(("zone", "2"),)), 1) == [("c",)]
    assert placed(Books(nodes), an_ask(1.0, 1.0, gpu_type="T4", labels=(("zone", "2"),)), 1) == [()]


def test_nothing_is_put_on_a_node_that_is_about_to_go() -> None:
    books = Books(Capacity((a_node("a", draining=True), a_node("b", cpus=1.0))))
    assert placed(books, an_ask(), 2) == [("b",), ()]
    assert books.full


def test_nothing_is_put_on_a_node_that_does_not_answer_and_nothing_is_hopeless_for_it() -> None:
    silent = a_node("a", silent=True)
    assert placed(Books(Capacity((silent, a_node("b", cpus=1.0)))), an_ask(), 2) == [("b",), ()]
    assert shortfall(an_ask(4.0), [silent]) is None, "it may answer again"


def test_room_that_is_kept_is_not_given_to_who_comes_later() -> None:
    books = Books(Capacity((a_node("a", cpus=3.0), a_node("b", cpus=2.0))))
    assert placed(books, an_ask(4.0), 1) == [()]
    books.keep(an_ask(4.0), "j")
    assert placed(books, an_ask(), 1) == [("b",)], "nobody can hold it: nothing is kept"
    books.charge([a_task("a", name="other")])
    books.keep(an_ask(3.0), "j")
    assert placed(books, an_ask(), 2) == [("b",), ()]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (an_ask(4.0, 1.0), None),
        (an_ask(4.0, 1.0, replicas=5, fewest=5), "needs 5 replicas; each needs 4 CPUs and 1 GPUs on one node; the"
         " nodes together hold 4"),
        (an_ask(4.0, 1.0, replicas=5, fewest=4), None),
        (an_ask(9.0), "needs 9 CPUs and 0 GPUs on one node; the largest node has 8 CPUs and 2 GPUs"),
        (an_ask(1.0, 1.0, gpu_type="A100"), "no node has GPU type A100; nodes have L4, T4"),
        (an_ask(1.0, 4.0, gpu_type="T4"), "needs 1 CPUs and 4 GPUs on one node; the largest of its kind has"
         " 8 CPUs and 2 GPUs"),
        (an_ask(labels=(("zone", "3"),)), "no node is labelled zone=3; nodes have zone=1, zone=2"),
        (an_ask(labels=(("disk", "fast"),)), "no node is labelled disk=fast; none has such a label"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_in_words(ask: Ask, said: str | None) -> None:
    nodes = [
        a_node("a", cpus=8.0, gpus=2.0, gpu_type="T4", labels={"zone": "1"}),
        a_node("b", cpus=8.0, gpus=2.0, gpu_type="L4", labels={"zone": "2"}),
    ]
    assert shortfall(ask, nodes) == said


def test_nodes_that_are_about_to_go_are_said_to_be() -> None:
    staying, going = a_node("a", cpus=1.0), a_node("b", cpus=8.0, draining=True)
    assert shortfall(an_ask(8.0), [staying, going]) == "every node that could hold it is draining"
    assert shortfall(an_ask(9.0), [staying, going]) == (
        "needs 9 CPUs and 0 GPUs on one node; the largest node has 1 CPUs and 0 GPUs"
    )
    assert shortfall(an_ask(), []) is None, "the cluster is just starting"


def test_blocks_are_packed_unless_the_job_says_otherwise() -> None:
    task = a_task("a")
    assert ask_of(task).placement == "pack"
    assert ask_of(task.model_copy(update={"placement": "spread"})).placement == "spread"
