"""Every objective, loss and gradient, against a computation of its own, row by row in float64."""

import math

import pytest
import torch
from runs import tiny_config

from road_ds.common.errors import RankError, RoadError
from road_ds.config.road import RoadConfig
from road_ds.data.batch import Batch
from road_ds.distillation.guard import Guarded
from road_ds.distillation.objective import Objective, Teaching, gradient_share, supervised
from road_ds.distillation.registry import objective_from
from road_ds.distillation.schedule import Schedule, at
from road_ds.tasks.outputs import Outputs

TEACHERS = {"places": ["a", "b", "c"]}
FLOAT = {"abs": 2e-6}


def distill(**settings) -> Objective:
    block = tiny_config(distill=settings)["road"]
    return objective_from(RoadConfig.model_validate(block))


def batch_of(labels: torch.Tensor, name: str = "places") -> Batch:
    n = len(labels)
    ids = torch.ones(n, 4, dtype=torch.long)
    return Batch(name, torch.arange(n).numpy(), ids, ids, ids, torch.full((n,), 4), labels)


def classes(rows: int = 10, width: int = 4, teachers: int = 3, seed: int = 0):
    """Logits, teachers' logits and labels of a classification."""
    torch.manual_seed(seed)
    logits = (2 * torch.randn(rows, width)).requires_grad_()
    return Outputs(logits), Teaching(3 * torch.randn(teachers, rows, width)), torch.randint(0, width, (rows,))


def spans(windows: int = 6, tokens: int = 9, teachers: int = 3, seed: int = 0):
    """The same for spans: two rows a window, each with its own number of tokens; what lies behind is not zero."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (windows,)).repeat_interleave(2)
    logits = (2 * torch.randn(2 * windows, tokens)).requires_grad_()
    labels = (torch.rand(2 * windows) * lengths).long()
    return Outputs(logits, lengths, joint=2), Teaching(3 * torch.randn(teachers, 2 * windows, tokens)), labels


def rows_of(outputs, teaching, labels):
    """Per row: the student's and the teachers' real logits in float64, the label."""
    for row, label in enumerate(labels.tolist()):
        end = outputs.logits.shape[1] if outputs.lengths is None else int(outputs.lengths[row])
        own = outputs.logits[row, :end].double()
        yield own, None if teaching is None else teaching.logits[:, row, :end].double(), label


def ce(target, own):
    return -(target * own.log_softmax(0)).sum()


def onehot(label, like):
    return torch.nn.functional.one_hot(torch.tensor(label), len(like)).double()


def kl(teacher, own, temperature):
    target = (teacher / temperature).softmax(0)
    return (target * (target.log() - (own / temperature).log_softmax(0))).sum()


def assert_agrees(objective, data, expected_row, progress=0.0):
    """Compares an objective's loss and gradient with the mean of `expected_row(own, teachers, label, row)`."""
    outputs, teaching, labels = data
    loss = objective(outputs, teaching, batch_of(labels), progress).total
    (gradient,) = torch.autograd.grad(loss, outputs.logits)
    rows = [expected_row(*values, row) for row, values in enumerate(rows_of(outputs, teaching, labels))]
    expected = torch.stack(rows).mean()
    (wanted,) = torch.autograd.grad(expected, outputs.logits)
    assert loss.item() == pytest.approx(expected.item(), **FLOAT)
    assert torch.allclose(gradient.double(), wanted.double(), atol=2e-6), (gradient - wanted).abs().max()
    assert gradient.abs().max() > 1e-3


@pytest.mark.parametrize("make", [classes, spans])
@pytest.mark.parametrize(("kl_scale", "factor"), [("t2", 9.0), (1, 1.0), (2.5, 2.5)])
def test_kd(make, kl_scale, factor):
    objective = distill(objective="kd", teachers=TEACHERS, temperature=3, weight=0.7, kl_scale=kl_scale)
    assert_agrees(objective, make(), lambda s, t, y, _: 0.3 * ce(onehot(y, s), s) + 0.7 * factor * kl(t.mean(0), s, 3))


def algorithm_2(teachers, right, wrong_scale):
    """ROaD, Algorithm 2, line by line; all wrong: the plain mean."""
    m, wrong = len(teachers), sum(not r for r in right)
    if wrong == m:
        return teachers.mean(0)
    lifted = (m - wrong * wrong_scale) / (m - wrong)
    result = torch.zeros_like(teachers[0])
    for logits, is_right in zip(teachers, right, strict=True):
        result = result + logits * (lifted if is_right else wrong_scale)
    return result / m


@pytest.mark.parametrize("make", [classes, spans])
@pytest.mark.parametrize("seed", range(3))
def test_weighted_kd_per_row(make, seed):
    objective = distill(
        objective="weighted_kd", teachers=TEACHERS, temperature=5, weight=0.9, wrong_scale=0.75,
        correctness="per_position",
    )  # fmt: skip

    def expected(s, t, y, _):
        target = algorithm_2(t, [int(row.argmax()) == y for row in t], 0.75)
        return 0.1 * ce(onehot(y, s), s) + 0.9 * 25 * kl(target, s, 5)

    assert_agrees(objective, make(40, seed=seed), expected)


def test_weighted_kd_of_spans_counts_a_teacher_right_where_both_ends_are():
    outputs, teaching, labels = spans(windows=60, tokens=3)
    objective = distill(objective="weighted_kd", teachers=TEACHERS, temperature=5, weight=0.9, wrong_scale=0.8)
    real = list(rows_of(outputs, teaching, labels))
    right = [[int(row.argmax()) == y for row in t] for _, t, y in real]
    both = [[a and b for a, b in zip(right[i - i % 2], right[i - i % 2 + 1], strict=True)] for i in range(len(right))]
    assert both != right and any(any(r) for r in both)

    def expected(s, t, y, row):
        return 0.1 * ce(onehot(y, s), s) + 0.9 * 25 * kl(algorithm_2(t, both[row], 0.8), s, 5)

    assert_agrees(objective, (outputs, teaching, labels), expected)


@pytest.mark.parametrize("make", [classes, spans])
@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_teacher_annealing(make, progress):
    """One cross-entropy with mixed targets: the teacher alone at first, the label alone at last."""
    objective = distill(objective="teacher_annealing", teachers=TEACHERS)

    def expected(s, t, y, _):
        return ce(progress * onehot(y, s) + (1 - progress) * t.mean(0).softmax(0), s)

    assert_agrees(objective, make(), expected, progress)


@pytest.mark.parametrize("make", [classes, spans])
def test_teacher_annealing_from_a_float16_cache(make):
    """The teachers' mean is theirs as stored, not rounded to float16 again."""
    objective = distill(objective="teacher_annealing", teachers=TEACHERS)
    outputs, teaching, labels = make(seed=1)
    stored = Teaching(10 * teaching.logits.half())
    assert_agrees(objective, (outputs, stored, labels), lambda s, t, y, _: ce(t.mean(0).softmax(0), s))


@pytest.mark.parametrize("make", [classes, spans])
@pytest.mark.parametrize("progress", [0.0, 0.3, 0.99])
def test_annealing_kd(make, progress):
    objective = distill(objective="annealing_kd", teachers=TEACHERS, max_temperature=7)
    phi = (math.floor(progress * 7) + 1) / 7
    assert_agrees(objective, make(), lambda s, t, y, _: (s - phi * t.mean(0)).square().mean(), progress)


def test_phi_takes_every_temperature_for_the_same_time_and_never_passes_1():
    for top, steps in ((7, 70), (7, 14), (14, 100), (1, 5), (5, 7)):
        objective = distill(objective="annealing_kd", teachers=TEACHERS, max_temperature=top)
        values = [objective.phi(step / steps) for step in range(steps)]
        assert values == sorted(values) and values[-1] == 1.0 and values[0] == pytest.approx(1 / top)
        # phi(T) = 1 - (T - 1) / T_max, T from T_max down to 1
        assert sorted(set(values)) == pytest.approx([1 - (t - 1) / top for t in range(top, 0, -1)])
        counts = [values.count(v) for v in set(values)]
        assert max(counts) - min(counts) <= 1
        assert objective.phi(1.0) == objective.phi(1.2) == 1.0


@pytest.mark.parametrize("make", [classes, spans])
def test_label_smoothing(make):
    outputs, _, labels = make()
    objective = distill(objective="label_smoothing", smoothing=0.2)

    def expected(s, t, y, _):
        return ce(0.8 * onehot(y, s) + 0.2 * torch.full_like(s, 1 / len(s)), s)

    assert_agrees(objective, (outputs, None, labels), expected)
    if make is classes:
        torch_own = torch.nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=0.2)
        assert objective(outputs, None, batch_of(labels), 0).total.item() == pytest.approx(torch_own.item(), **FLOAT)


@pytest.mark.parametrize("make", [classes, spans])
def test_teacher_free(make):
    outputs, _, labels = make()
    objective = distill(objective="teacher_free", correct=0.9, temperature=20, weight=0.6, kl_scale=1)

    def expected(s, t, y, _):
        teacher = torch.full_like(s, math.log(0.1 / max(1, len(s) - 1)))
        teacher[y] = math.log(0.9)
        return 0.4 * ce(onehot(y, s), s) + 0.6 * kl(teacher, s, 20)

    assert_agrees(objective, (outputs, None, labels), expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"objective": "kd", "weight": 0.7}, lambda hard, soft: 0.3 * hard + 0.7 * soft),
        ({"objective": "weighted_kd", "weight": 0.9}, lambda hard, soft: 0.1 * hard + 0.9 * soft),
        ({"objective": "teacher_annealing"}, lambda hard, soft: 0.25 * hard + 0.75 * soft),
    ],
)
def test_regression_distils_by_squared_error(settings, expected):
    torch.manual_seed(0)
    outputs, gold = Outputs(torch.randn(8, 1, requires_grad=True)), torch.randn(8)
    teaching = Teaching(torch.randn(3, 8, 1))
    objective = distill(**settings, teachers=TEACHERS)
    loss = objective(outputs, teaching, batch_of(gold), 0.25)
    own = outputs.logits[:, 0]
    wanted = expected((own - gold).square().mean(), (own - teaching.logits.mean(0)[:, 0]).square().mean())
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["kd", "weighted_kd", "teacher_annealing", "annealing_kd"])
def test_a_data_set_without_teachers_trains_on_hard_labels(kind):
    outputs, _, labels = classes()
    found = distill(objective=kind, teachers=TEACHERS)(outputs, None, batch_of(labels), 0.3)
    assert found.soft is None
    assert found.total.item() == torch.nn.functional.cross_entropy(outputs.logits, labels).item()


def test_schedules():
    linear, cosine = Schedule(start=5, end=1), Schedule(start=0, end=0.8, shape="cosine")
    assert [at(linear, p) for p in (0, 0.25, 1)] == [5, 4, 1]
    assert [at(cosine, p) for p in (0, 0.5, 1)] == pytest.approx([0, 0.4, 0.8])
    assert at(0.7, 0.9) == 0.7
    outputs, teaching, labels = classes()
    moving = distill(
        objective="kd", teachers=TEACHERS, temperature={"start": 5, "end": 1}, weight={"start": 0, "end": 1}
    )
    fixed = distill(objective="kd", teachers=TEACHERS, temperature=4, weight=0.25)
    a, b = (o(outputs, teaching, batch_of(labels), 0.25).total.item() for o in (moving, fixed))
    assert a == b


def test_the_teachers_share_of_the_gradient():
    outputs, teaching, labels = classes()
    objective = distill(objective="kd", teachers=TEACHERS, temperature=2, weight=0.4)
    hard = torch.autograd.grad(0.6 * supervised(outputs, labels).total, outputs.logits)[0]
    rows = [kl(t.mean(0), s, 2) for s, t, _ in rows_of(outputs, teaching, labels)]
    soft = torch.autograd.grad(0.4 * 4 * torch.stack(rows).mean(), outputs.logits)[0]
    share = gradient_share(objective, outputs, teaching, batch_of(labels), 0.0)
    assert share.item() == pytest.approx((soft.norm() / (soft.norm() + hard.norm())).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "kd"}, "road.distill.teachers: is required"),
        ({"objective": "kdd", "teachers": TEACHERS}, "did you mean 'kd'"),
        ({"teachers": TEACHERS}, "road.distill.objective: is required"),
        ({"objective": "kd", "teachers": {}}, "needs a teacher"),
        ({"objective": "kd", "teachers": {"places": []}}, "teachers.places"),
        ({"objective": "kd", "teachers": {"place": ["a"]}}, "did you mean 'places'"),
        ({"objective": "kd", "teachers": {"places": ["a", "a"]}}, "named twice"),
        ({"objective": "kd", "teachers": TEACHERS, "temprature": 3}, "unknown key; did you mean 'temperature'"),
        ({"objective": "kd", "teachers": TEACHERS, "temperature": 0}, "temperature"),
        ({"objective": "kd", "teachers": TEACHERS, "temperature": {"start": 5, "end": 0}}, "must stay above 0"),
        ({"objective": "kd", "teachers": TEACHERS, "weight": 1.5}, "weight"),
        ({"objective": "kd", "teachers": TEACHERS, "weight": {"start": 0, "end": 2}}, "between 0 and 1"),
        ({"objective": "kd", "teachers": TEACHERS, "wrong_scale": 0.7}, "unknown key"),
        ({"objective": "weighted_kd", "teachers": TEACHERS, "wrong_scale": 1.5}, "must stay below 1.5"),
        ({"objective": "kd", "teachers": TEACHERS, "hidden": {}}, 'set source to "online"'),
        ({"objective": "teacher_annealing", "teachers": TEACHERS, "temperature": 5}, "unknown key"),
        ({"objective": "label_smoothing", "teachers": TEACHERS}, "unknown key"),
    ],
)
def test_settings_that_do_not_hold(settings, said):
    with pytest.raises(RoadError) as error:
        distill(**settings)
    assert said in str(error.value) and "road.distill" in str(error.value)


def wrong_kernel(monkeypatch):
    """Makes every kernel's gradient 20 % too large, the reference stays right."""
    from road_ds.distillation import annealing, kd, objective, smoothing

    right = kd.kd_loss

    def wrong(student, *arguments, impl="auto", **options):
        if impl == "torch":
            return right(student, *arguments, impl=impl, **options)
        return right(1.2 * student - 0.2 * student.detach(), *arguments, impl="torch", **options)

    for file in (kd, annealing, smoothing):
        monkeypatch.setattr(file, "kd_loss", wrong)
    monkeypatch.setattr(objective.check_against_reference, "__kwdefaults__", {"rows": 256, "loss": wrong})


def test_a_wrong_kernel_is_caught_on_the_first_batch(monkeypatch, capsys):
    outputs, teaching, labels = classes()
    settings = {"objective": "kd", "teachers": TEACHERS}
    wanted = torch.autograd.grad(distill(**settings)(outputs, teaching, batch_of(labels), 0).total, outputs.logits)[0]
    wrong_kernel(monkeypatch)
    unguarded = torch.autograd.grad(distill(**settings)(outputs, teaching, batch_of(labels), 0).total, outputs.logits)
    assert not torch.allclose(unguarded[0], wanted, rtol=0.05)
    guarded = Guarded(distill(**settings))
    found = torch.autograd.grad(guarded(outputs, teaching, batch_of(labels), 0).total, outputs.logits)[0]
    assert torch.equal(found, wanted)
    said = capsys.readouterr().err
    assert "places: kd_loss is off by" in said and "goes on without the kernel" in said
    with pytest.raises(RankError, match="off by"):
        Guarded(distill(**settings, on_mismatch="stop"))(outputs, teaching, batch_of(labels), 0)


def test_a_right_kernel_is_left_alone(capsys):
    for data in (classes(), spans()):
        outputs, teaching, labels = data
        guarded = Guarded(distill(objective="weighted_kd", teachers=TEACHERS))
        guarded(outputs, None, batch_of(labels, "people"), 0)
        guarded(outputs, teaching, batch_of(labels), 0)
        assert guarded.objective.kernels == "auto"
    assert capsys.readouterr().err == ""


def test_a_loss_is_normalised_once():
    """The mean over rows; windows and classes do not count twice; padding has no share."""
    logits = torch.tensor([[2.0, 0.0, 9.0], [0.0, 1.0, 0.0]])
    labels, lengths = torch.tensor([0, 1]), torch.tensor([2, 3])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(2 * math.exp(-1) + 1)) / 2
    assert supervised(Outputs(logits, lengths), labels).total.item() == pytest.approx(by_hand)
    assert supervised(Outputs(torch.tensor([[1.0], [4.0]])), torch.tensor([0.0, 2.0])).total.item() == pytest.approx(
        2.5
    )
    half = supervised(Outputs(logits.half(), lengths), labels).total
    assert half.dtype == torch.float32 and half.item() == pytest.approx(by_hand, rel=1e-3)
