"""The teachers: what moves, what does not, and that the student is always given back."""

import copy
import io

import pytest
import torch
from torch import nn

from resd.distill import EmaTeacher, FrozenTeacher, LiveTeacher, make_teacher

KINDS = ["frozen", "ema", "live"]


class Plain(nn.Module):
    """A model with a tied weight, buffers, and a submodule that stays in eval mode."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4, bias=False)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 4)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.zeros(2))
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def forward(self, x):
        return self.head(self.drop(self.embed(x)))


class Adapted(Plain):
    """A stand-in for a peft model: frozen base weights, and an adapter that can be turned off."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        self.lora = nn.Parameter(0.1 * torch.randn(4, 4))
        self.active = True

    def disable_adapter(self):
        return _Disabled(self)

    def forward(self, x):
        y = super().forward(x)
        return y + x @ self.lora if self.active else y


class _Disabled:
    def __init__(self, model):
        self.model = model

    def __enter__(self):
        self.model.active = False

    def __exit__(self, *error):
        self.model.active = True


def build(cls, dtype=torch.float32):
    torch.manual_seed(0)
    model = cls().to(dtype)
    model.embed.eval()
    return model


@torch.no_grad()
def step(student, size=1.0):
    for parameter in student.parameters():
        if parameter.requires_grad:
            parameter.add_(size)


def weights(student):
    """The student's weights by name, as an update hands them over."""
    return dict(student.named_parameters())


def score(teacher, x=None):
    with teacher.model() as model:
        return model(torch.ones(1, 4) if x is None else x)


@pytest.mark.parametrize("cls", [Plain, Adapted])
@pytest.mark.parametrize("kind", KINDS)
def test_lends_an_eval_model_without_gradients_and_restores_modes(kind, cls):
    student = build(cls)
    before = {name: module.training for name, module in student.named_modules()}
    assert not before["embed"]
    assert before["drop"]
    teacher = make_teacher(kind, student, 0.5)
    with pytest.raises(RuntimeError, match="boom"), teacher.model() as model:
        assert not any(module.training for module in model.modules())
        assert not model(torch.ones(1, 4)).requires_grad
        raise RuntimeError("boom")
    assert {name: module.training for name, module in student.named_modules()} == before
    assert student(torch.ones(1, 4)).requires_grad


@pytest.mark.parametrize("cls", [Plain, Adapted])
def test_frozen_never_moves(cls):
    student = build(cls)
    teacher = FrozenTeacher(student)
    before = score(teacher)
    if cls is Adapted:
        assert not torch.equal(before, score(LiveTeacher(student)))  # the adapter is off
    step(student)
    teacher.update(weights(student))
    assert torch.equal(score(teacher), before)


@pytest.mark.parametrize("cls", [Plain, Adapted])
def test_live_is_the_student(cls):
    student = build(cls)
    teacher = LiveTeacher(student)
    before = score(teacher)
    step(student)
    assert not torch.equal(score(teacher), before)
    with teacher.model() as model:
        assert model is student


@pytest.mark.parametrize("cls", [Plain, Adapted])
def test_ema_follows_the_formula(cls):
    student = build(cls)
    teacher = EmaTeacher(student, 0.25)
    expected = {name: p.detach().clone() for name, p in student.named_parameters()}
    torch.testing.assert_close(score(teacher), student.eval()(torch.ones(1, 4)).detach())
    for size in (1.0, -3.0, 0.5):
        step(student, size)
        teacher.update(weights(student))
        for name, parameter in student.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach()
    with teacher.model() as model:
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name])
        assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("cls", [Plain, Adapted])
def test_slow_ema_moves_although_the_model_is_bfloat16(cls):
    student = build(cls, torch.bfloat16)
    teacher = EmaTeacher(student, 1e-4)
    name = "lora" if cls is Adapted else "embed.weight"
    start = teacher.state_dict()[name].clone()
    step(student, 1.0)
    goal = dict(student.named_parameters())[name].detach().float()
    for _ in range(100):
        teacher.update(weights(student))
    moved = teacher.state_dict()[name]
    assert moved.dtype == torch.float32
    share = 1 - (1 - 1e-4) ** 100
    torch.testing.assert_close(moved - start, share * (goal - start), rtol=1e-3, atol=1e-6)
    # bfloat16 alone would have stood still for the larger weights:
    naive = start.bfloat16().lerp(goal.bfloat16(), 1e-4)
    assert (naive == start.bfloat16()).any()
    with teacher.model() as model:
        lent = dict(model.named_parameters())[name]
        assert lent.dtype == torch.bfloat16
        assert torch.equal(lent, moved.bfloat16())


def test_full_precision_ema_keeps_one_copy_only():
    teacher = EmaTeacher(build(Plain), 0.1)
    with teacher.model() as model:
        parameter = dict(model.named_parameters())["embed.weight"]
        assert parameter.data_ptr() == teacher.state_dict()["embed.weight"].data_ptr()


def test_peft_ema_keeps_the_adapter_only_and_gives_the_student_back():
    student = build(Adapted, torch.bfloat16)
    teacher = EmaTeacher(student, 0.5)
    assert teacher.state_dict().keys() == {"lora"}
    step(student)
    own, storage = student.lora.detach().clone(), student.lora.data_ptr()
    x = torch.ones(1, 4, dtype=torch.bfloat16)
    for error in (None, ValueError):
        try:
            with teacher.model() as model:
                assert model is student
                assert not torch.equal(model.lora, own)
                if error:
                    raise error
        except ValueError:
            pass
        assert torch.equal(student.lora, own)
        assert student.lora.data_ptr() == storage
    assert not torch.equal(score(teacher, x), score(LiveTeacher(student), x))


@pytest.mark.parametrize("cls", [Plain, Adapted])
@pytest.mark.parametrize("kind", KINDS)
def test_lending_between_forward_and_backward_leaves_the_gradient_alone(kind, cls):
    gradients = []
    for lend in (False, True):
        student = build(cls).eval()
        teacher = make_teacher(kind, student, 0.5)
        step(student, 0.5)
        loss = student(torch.ones(1, 4)).square().sum()
        if lend:
            score(teacher)
        loss.backward()
        gradients.append([p.grad for p in student.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", [Plain, Adapted])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_restored(kind, cls, dtype):
    student = build(cls, dtype)
    x = torch.ones(1, 4, dtype=dtype)
    teacher = make_teacher(kind, student, 0.3)
    step(student)
    teacher.update(weights(student))
    assert "cache" not in teacher.state_dict()
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    file.seek(0)

    # A frozen teacher starts from the model that the run started from, an average anywhere.
    resumed_student = copy.deepcopy(student)
    resumed = make_teacher(kind, build(cls, dtype) if kind == "frozen" else resumed_student, 0.3)
    resumed.load_state_dict(torch.load(file))
    assert torch.equal(score(resumed, x), score(teacher, x))
    for one, its_student in ((teacher, student), (resumed, resumed_student)):
        step(its_student)
        one.update(weights(its_student))
    assert torch.equal(score(resumed, x), score(teacher, x))
    assert (teacher.state_dict() == {}) is (kind != "ema")


@pytest.mark.parametrize("kind", KINDS)
def test_a_foreign_state_is_refused_before_anything_is_written(kind):
    student = build(Plain)
    teacher = make_teacher(kind, student, 0.3)
    before = score(teacher)
    good = {name: torch.zeros_like(tensor) for name, tensor in teacher.state_dict().items()}
    for bad in ({**good, "other": torch.zeros(1)}, {**good, "head.bias": torch.zeros(5)}):
        with pytest.raises(ValueError, match=r"other|head\.bias"):
            teacher.load_state_dict(bad)
    if good:
        with pytest.raises(ValueError, match="does not fit"):
            teacher.load_state_dict({})
    assert torch.equal(score(teacher), before)


def test_bad_settings_are_named():
    student = build(Plain)
    for rate in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rate"):
            make_teacher("ema", student, rate)
    with pytest.raises(ValueError, match="kind"):
        make_teacher("other", student, 0.1)
    with pytest.raises(ValueError, match="unwrapped"):
        make_teacher("ema", student, 0.1).update(weights(nn.Sequential(student)))
    with pytest.raises(ValueError, match="no parameter"):
        make_teacher("ema", build(Adapted).requires_grad_(False), 0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_peft_model(kind):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    x = torch.ones(1, 4)
    without = base(x).detach()
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    student = peft.get_peft_model(base, config)
    trainable = {name for name, p in student.named_parameters() if p.requires_grad}
    with_adapter = student(x).detach()
    teacher = make_teacher(kind, student, 0.5)
    step(student, 0.1)
    moved = student(x).detach()
    start = {"frozen": without, "ema": with_adapter, "live": moved}[kind]
    torch.testing.assert_close(score(teacher, x), start)
    teacher.update(weights(student))
    assert torch.equal(score(teacher, x), start) is (kind != "ema")
    assert torch.equal(student(x).detach(), moved)
    assert {name for name, p in student.named_parameters() if p.requires_grad} == trainable
    assert teacher.state_dict().keys() == (trainable if kind == "ema" else set())


@pytest.mark.parametrize("kind", ["frozen", "ema"])
def test_a_teacher_of_its_own_asks_for_no_gradient(kind):
    """Where it has a copy: memory for gradients that nobody wants, and weights that would train."""
    student = Plain()
    with make_teacher(kind, student, rate=0.5).model() as model:
        assert model is not student
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not model.training
    assert all(parameter.requires_grad for parameter in student.parameters())
