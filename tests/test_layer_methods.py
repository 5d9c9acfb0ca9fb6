"""Every method on layers, its loss and its gradients, against a computation of its own: a loop over teachers, rows, layers and tokens."""

import math

import pytest
import torch
from test_objectives import TEACHERS, batch_of, classes, distill

from road_ds.common.errors import RoadError
from road_ds.distillation.layers.base import zeros
from road_ds.distillation.layers.registry import METHODS, method_from
from road_ds.distillation.objective import Teaching, supervised
from road_ds.models.states import Shape, States
from road_ds.tasks.outputs import Outputs

STUDENT, TEACHER, WIDER = Shape(3, 6, 2), Shape(6, 6, 2), Shape(6, 8, 2)
LENGTHS, NUMBER, SEED = (5, 2, 4), 2, 7  # of the rows; teachers


def states(wanted, shape: Shape, teachers: int = 0) -> States:
    """Random states of a few rows; what lies behind a row's tokens is not zero, and minus infinity for scores."""
    front = (teachers, len(LENGTHS)) if teachers else (len(LENGTHS),)
    longest = max(LENGTHS)
    hidden = {layer: torch.randn(*front, *(() if wanted.first else (longest,)), shape.width) for layer in wanted.hidden}
    scores = {layer: torch.randn(*front, shape.heads, longest, longest) for layer in wanted.scores}
    for score in scores.values():
        for row, length in enumerate(LENGTHS):
            score[..., row, :, :, length:] = float("-inf")
    return States(hidden, scores)


def data(block: dict, student: Shape = STUDENT, teacher: Shape = TEACHER):
    """A comparison, the states of a student with gradients, and those of two teachers."""
    torch.manual_seed(0)
    comparison = method_from(block).compare(student, teacher, SEED)
    own, theirs = states(comparison.own, student), states(comparison.theirs, teacher, NUMBER)
    for tensor in (*own.hidden.values(), *own.scores.values()):
        tensor.requires_grad_()
    return comparison, own, theirs


def assert_agrees(block, by_hand, student=STUDENT, teacher=TEACHER, step=0):
    """Compares loss and gradients with `by_hand(own, theirs, weights, row)`, a term of one teacher and row in float64."""
    comparison, own, theirs = data(block, student, teacher)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    found = comparison(own, theirs, mask, step)
    leaves = [*own.hidden.values(), *own.scores.values(), *comparison.parameters()]
    gradients = torch.autograd.grad(found, leaves, allow_unused=True, materialize_grads=True)

    weights = {name: p.double() for name, p in comparison.named_parameters()}
    terms = [
        by_hand(
            States({k: v[row].double() for k, v in own.hidden.items()}, {k: v[row].double() for k, v in own.scores.items()}),
            States(
                {k: v[teacher, row].double() for k, v in theirs.hidden.items()},
                {k: v[teacher, row].double() for k, v in theirs.scores.items()},
            ),
            weights,
            row,
        )
        for teacher in range(NUMBER)
        for row in range(len(LENGTHS))
    ]  # fmt: skip
    expected = sum(terms) / len(terms)
    wanted = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), abs=1e-6) and found > 0.01
    for one, other in zip(gradients, wanted, strict=True):
        assert one.isfinite().all() and torch.allclose(one, other, atol=1e-6), (one - other).abs().max()
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3


def linear(weights, name, vector):
    """A projection of one vector, where there is one."""
    if f"{name}.weight" not in weights:
        return vector
    rows = zip(weights[f"{name}.weight"], weights[f"{name}.bias"], strict=True)
    return torch.stack([(weight * vector).sum() + bias for weight, bias in rows])


def mean_square(one, other):
    return sum((a - b) ** 2 for a, b in zip(one.flatten(), other.flatten(), strict=True)) / one.numel()


def mean(terms):
    terms = list(terms)
    return sum(terms) / len(terms)


UNIFORM, LAST = [(1, 2), (2, 4), (3, 6)], [(3, 6)]


@pytest.mark.parametrize(
    ("more", "pairs"),
    [({}, UNIFORM), ({"map": "last"}, LAST), ({"map": [[1, 5], [3, 1]]}, [(1, 5), (3, 1)])],
)
@pytest.mark.parametrize("teacher", [TEACHER, WIDER])
def test_hidden_states(more, pairs, teacher):
    def by_hand(own, theirs, weights, row):
        return mean(
            mean(
                mean_square(linear(weights, "projection", own.hidden[a][token]), theirs.hidden[b][token])
                for token in range(LENGTHS[row])
            )
            for a, b in pairs
        )

    assert_agrees({"method": "hidden", **more}, by_hand, teacher=teacher)


def unit(vector):
    return vector / vector.square().sum().sqrt()


def normalised(pairs):
    def by_hand(own, theirs, weights, row):
        return mean(
            mean_square(unit(linear(weights, "projection", own.hidden[a])), unit(theirs.hidden[b])) for a, b in pairs
        )

    return by_hand


@pytest.mark.parametrize(
    ("more", "pairs"),
    [({}, [(1, 2), (2, 4)]), ({"map": "last"}, [(1, 4), (2, 5)]), ({"map": [[3, 6]]}, [(3, 6)])],
)
@pytest.mark.parametrize("teacher", [TEACHER, WIDER])
def test_pkd(more, pairs, teacher):
    assert_agrees({"method": "pkd", **more}, normalised(pairs), teacher=teacher)


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("teacher", [TEACHER, WIDER])
def test_rkd(teacher, step):
    pairs = method_from({"method": "rkd"}).compare(STUDENT, teacher, SEED).pairs_at(step)
    assert_agrees({"method": "rkd"}, normalised(pairs), teacher=teacher, step=step)


def test_rkd_draws_by_seed_and_step_alone():
    """Different layers below the last, in rising order, each as often as the others; the same again in another process."""
    shape, method = Shape(12, 6, 2), method_from({"method": "rkd"})
    drawn = [method.compare(STUDENT, shape, SEED).pairs_at(step) for step in range(2000)]
    assert drawn[5] == [(1, 7), (2, 11)], "written down: this process is not the one that drew them first"
    assert all([own for own, _ in pairs] == [1, 2] and 1 <= pairs[0][1] < pairs[1][1] <= 11 for pairs in drawn)
    counts = torch.bincount(torch.tensor([theirs for pairs in drawn for _, theirs in pairs]), minlength=12)[1:]
    assert counts.min() > 300 and counts.max() < 430
    others = [method.compare(STUDENT, shape, SEED + 1).pairs_at(step) for step in range(2000)]
    assert sum(a == b for a, b in zip(drawn, others, strict=True)) < 100


SEPARATE, OVERLAPPING = [[1, 2], [3, 4], [5, 6]], [[1, 2, 3], [2, 3, 4, 5], [4, 5, 6]]


@pytest.mark.parametrize(("buckets", "of"), [("separate", SEPARATE), ("overlapping", OVERLAPPING)])
@pytest.mark.parametrize("teacher", [TEACHER, WIDER])
def test_ckd(buckets, of, teacher):
    def by_hand(own, theirs, weights, row):
        return mean(
            mean_square(
                own.hidden[j + 1], linear(weights, f"projections.{j}", torch.cat([theirs.hidden[k] for k in bucket]))
            )
            for j, bucket in enumerate(of)
        )

    assert_agrees({"method": "ckd", "buckets": buckets}, by_hand, teacher=teacher)


@pytest.mark.parametrize(
    ("more", "of", "scale"),
    [
        ({}, [[1, 2, 3, 4, 5, 6]] * 3, 1),
        ({"buckets": "separate"}, SEPARATE, 1),
        ({"buckets": "overlapping"}, OVERLAPPING, 1),
        ({"scaled": True}, [[1, 2, 3, 4, 5, 6]] * 3, None),
    ],
    ids=["ALP", "ALP-NO", "ALP-PO", "scaled"],
)
@pytest.mark.parametrize("teacher", [TEACHER, WIDER])
def test_alp(more, of, scale, teacher):
    def by_hand(own, theirs, weights, row):
        terms = []
        for j, bucket in enumerate(of):
            mine = linear(weights, "projection", own.hidden[j + 1])
            factor = scale or 1 / math.sqrt(teacher.width)
            powers = [
                torch.exp(factor * sum(a * b for a, b in zip(mine, theirs.hidden[k], strict=True))) for k in bucket
            ]
            together = sum(p / sum(powers) * theirs.hidden[k] for p, k in zip(powers, bucket, strict=True))
            terms.append(mean_square(mine, together))
        return mean(terms)

    assert_agrees({"method": "alp", **more}, by_hand, teacher=teacher)


@pytest.mark.parametrize(("more", "pairs"), [({}, UNIFORM), ({"map": "last"}, LAST), ({"map": [[2, 1]]}, [(2, 1)])])
@pytest.mark.parametrize("teacher", [TEACHER, WIDER])
def test_tinybert(more, pairs, teacher):
    """Three parts, added: embeddings, hidden states, scores among a row's own tokens."""

    def by_hand(own, theirs, weights, row):
        tokens = range(LENGTHS[row])

        def states(name, a, b):
            return mean(mean_square(linear(weights, name, own.hidden[a][t]), theirs.hidden[b][t]) for t in tokens)

        scores = mean(
            (own.scores[a][head, q, k] - theirs.scores[b][head, q, k]) ** 2
            for a, b in pairs for head in range(2) for q in tokens for k in tokens
        )  # fmt: skip
        return states("embedding", 0, 0) + mean(states("projection", a, b) for a, b in pairs) + scores

    assert_agrees({"method": "tinybert", **more}, by_hand, teacher=teacher)


def test_layers_are_mapped_as_the_papers_say():
    def pairs(block, student, teacher):
        return method_from(block).compare(Shape(student, 6, 2), Shape(teacher, 6, 2), 0).pairs

    uniform, last = {"method": "hidden"}, {"method": "hidden", "map": "last"}
    assert pairs(uniform, 12, 24) == [(i, 2 * i) for i in range(1, 13)]
    assert pairs(uniform, 6, 12)[-2:] == [(5, 10), (6, 12)] and pairs(uniform, 4, 4) == [(i, i) for i in range(1, 5)]
    assert pairs(last, 12, 24) == [(12, 24)]
    assert pairs({"method": "pkd"}, 6, 12) == [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]
    assert pairs({"method": "pkd", "map": "last"}, 6, 12) == [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]


def test_no_layer_is_compared_with_a_teachers_embeddings_and_pkd_with_no_last_one():
    for student in range(1, 25):
        for teacher in range(1, 25):
            shapes = Shape(student, 2, 1), Shape(teacher, 2, 1)
            pairs = method_from({"method": "hidden"}).compare(*shapes, 0).pairs
            assert [own for own, _ in pairs] == list(range(1, student + 1)) and pairs == sorted(pairs)
            assert all(1 <= theirs <= teacher for _, theirs in pairs) and pairs[-1] == (student, teacher)
            if student > 1 and teacher > 1:
                pairs = method_from({"method": "pkd"}).compare(*shapes, 0).pairs
                assert [own for own, _ in pairs] == list(range(1, student)) and pairs == sorted(pairs)
                assert all(1 <= theirs < teacher for _, theirs in pairs)


def test_buckets_share_out_all_layers():
    def of(student, teacher, buckets):
        block = {"method": "alp", "buckets": buckets}
        return method_from(block).compare(Shape(student, 2, 1), Shape(teacher, 2, 1), 0).buckets

    assert of(4, 12, "separate") == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
    assert of(4, 12, "overlapping") == [[1, 2, 3, 4], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10], [9, 10, 11, 12]]
    for student in range(1, 13):
        for teacher in range(student, 25):
            found = of(student, teacher, "separate")
            assert [layer for bucket in found for layer in bucket] == list(range(1, teacher + 1)) and all(found)
            assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.parametrize(
    ("block", "student", "teacher", "said"),
    [
        ({"method": "pkd", "map": [[1, 13]]}, (6, 8, 2), (12, 8, 2), "road.distill.layers.map: got [1, 13]; expected"),
        ({"method": "hidden", "map": [[7, 1]]}, (6, 8, 2), (12, 8, 2), "the student has 6, the teacher 12"),
        ({"method": "pkd"}, (1, 8, 2), (12, 8, 2), "the last layers are left out, and below them a student of 1 has 0"),
        ({"method": "pkd", "map": "last"}, (6, 8, 2), (5, 8, 2), "a teacher of 5 has 4"),
        ({"method": "rkd"}, (6, 8, 2), (5, 8, 2), "5 or more of the teacher"),
        ({"method": "ckd"}, (6, 8, 2), (5, 8, 2), "5 layers of a teacher cannot be shared out to 6 of the student"),
        ({"method": "alp", "buckets": "separate"}, (6, 8, 2), (5, 8, 2), "road.distill.layers.buckets"),
        ({"method": "tinybert"}, (6, 8, 2), (12, 8, 4), "nothing can project: the student has 2 heads, the teacher 4"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_suit(block, student, teacher, said):
    with pytest.raises(RoadError) as error:
        method_from(block).compare(Shape(*student), Shape(*teacher), 0)
    assert said in str(error.value) and "road.distill.layers" in str(error.value)


KD = {"objective": "kd", "teachers": TEACHERS}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": {}}, "road.distill.layers.method: is required; allowed: hidden, pkd"),
        ({"layers": "pkd"}, "road.distill.layers.method: is required; allowed: hidden, pkd"),
        ({"layers": {"method": "pdk"}}, "road.distill.layers.method: got 'pdk'; did you mean 'pkd'?"),
        ({"layers": {"method": "pkd", "wieght": 1}}, "road.distill.layers.wieght: unknown key; did you mean 'weight'?"),
        ({"layers": {"method": "pkd", "weight": 0}}, "road.distill.layers.weight"),
        ({"layers": {"method": "pkd", "map": "uniform"}}, "road.distill.layers.map"),
        ({"layers": {"method": "pkd", "map": [[0, 1]]}}, "road.distill.layers.map"),
        ({"layers": {"method": "pkd", "map": [[1, 2, 3]]}}, "road.distill.layers.map"),
        ({"layers": {"method": "rkd", "map": "skip"}}, "road.distill.layers.map: unknown key"),
        ({"layers": {"method": "pkd"}, "hidden": {}, "source": "online"}, "give one of the two"),
        ({"layers": {"method": "tinybert"}}, 'tinybert compares states of all tokens, which are not cached: set source to "online"'),
        ({"layers": {"method": "hidden"}}, 'set source to "online"'),
        ({"objective": "layers"}, 'give its method'),
    ],
)  # fmt: skip
def test_settings_that_do_not_hold(settings, said):
    with pytest.raises(RoadError) as error:
        distill(**{**KD, **settings})
    assert said in str(error.value) and "road.distill" in str(error.value)


@pytest.mark.parametrize("words", [{"layers": "last", "weight": 0.5}, {"layers": "uniform"}, {}])
def test_hidden_is_an_older_word(words):
    objective = distill(**KD, source="online", hidden=words)
    today = {"method": "hidden", "map": words.get("layers", "uniform"), "weight": words.get("weight", 1.0)}
    assert objective.compared == distill(**KD, source="online", layers=today).compared


@pytest.mark.parametrize("kind", ["kd", "weighted_kd", "teacher_annealing", "annealing_kd"])
def test_the_term_is_added_to_every_objective(kind):
    outputs, teaching, labels = classes()
    layers = torch.tensor(3.0, requires_grad=True)
    settings = {"objective": kind, "teachers": TEACHERS}
    plain = distill(**settings)(outputs, teaching, batch_of(labels), 0.3)
    objective = distill(**settings, layers={"method": "pkd", "weight": 10.0})
    found = objective(Outputs(outputs.logits, layers=layers), teaching, batch_of(labels), 0.3)
    assert found.total.item() == pytest.approx(plain.total.item() + 30)
    assert found.layers == 3 and not found.layers.requires_grad
    assert torch.equal(found.hard, plain.hard) and torch.equal(found.soft, plain.soft)
    assert torch.autograd.grad(found.total, layers)[0] == 10
    without = objective(outputs, None, batch_of(labels), 0.3)
    assert without.total == supervised(outputs, labels).total and without.layers is None


def test_layers_alone_leave_the_predictions():
    outputs, teaching, labels = classes()
    objective = distill(objective="layers", teachers=TEACHERS, layers={"method": "alp", "weight": 2.0})
    layers = torch.tensor(3.0)
    loss = objective(Outputs(outputs.logits, layers=layers), teaching, batch_of(labels), 0.3)
    assert loss.total == 6 and loss.hard == supervised(outputs, labels).total
    (gradient,) = torch.autograd.grad(loss.total, outputs.logits)
    assert not gradient.any(), "the heads take part, with gradient 0"
    values = objective(
        Outputs(torch.randn(4, 1), layers=layers), Teaching(torch.randn(1, 4, 1)), batch_of(torch.randn(4)), 0
    )
    assert values.total == 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("teacher", [TEACHER, WIDER])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_idle_weights_take_part(method, teacher, dtype):
    """In a batch without teachers: a gradient of zero for each, in half precision too."""
    comparison = method_from({"method": method}).compare(STUDENT, teacher, 0).to(dtype)
    assert comparison.trained == (method in ("hidden", "ckd", "tinybert") or teacher is WIDER)
    if not comparison.trained:
        return
    idle = comparison.idle(torch.zeros(1, dtype=dtype))
    assert idle.isfinite()
    (0.0 * idle).backward()
    for name, parameter in comparison.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_zeros_have_the_wanted_shapes():
    comparison = method_from({"method": "tinybert"}).compare(STUDENT, WIDER, 0)
    found = zeros(comparison.theirs, WIDER, torch.zeros(1))
    assert {layer: tuple(state.shape) for layer, state in found.hidden.items()} == dict.fromkeys(
        (0, 2, 4, 6), (1, 1, 8)
    )
    assert {layer: tuple(score.shape) for layer, score in found.scores.items()} == dict.fromkeys(
        (2, 4, 6), (1, 2, 1, 1)
    )
