"""Events: found wherever a condition becomes 0, with the derivatives of their times and states, and what follows."""

import math
import warnings

import pytest
import torch

import odenets
from odenets import (
    PID,
    Backsolve,
    Checkpointed,
    Direct,
    Event,
    Fixed,
    Interpolated,
    LostGradientError,
    Reversible,
    SolveError,
    Status,
    solve,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script. is deprecated")
ADJOINTS = [Checkpointed(), Checkpointed(memory=2), Direct(), Interpolated(), Backsolve(), Reversible()]
TIGHT = {"rtol": 1e-9, "atol": 1e-11}
G = 9.81


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def decay(t, y, k):
    return -k * y


def wave(t, y):
    return torch.stack([y[1], -y[0]])


def ball(t, y):
    return torch.stack([y[1], torch.full_like(y[1], -G)])


def bounce(t, y):
    return torch.stack([torch.zeros_like(y[0]), -0.8 * y[1]])


FLOOR = Event(lambda t, y: y[0], direction=-1, jump=bounce)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: repr(a)[:24])
def test_time_and_state_of_a_threshold_have_the_gradients_of_the_closed_form(adjoint):
    k, c = (torch.tensor(x, requires_grad=True) for x in (0.7, 1.2))
    y0, t = torch.tensor([3.0, 5.0], requires_grad=True), torch.tensor([0.5, 1.0, 50.0], requires_grad=True)
    event = Event(lambda t, y, k: y[0] - c)
    solution = solve(decay, y0, t, (k,), event=event, adjoint=adjoint, **TIGHT)
    when = t[0] + torch.log(y0[0] / c) / k
    other = y0[1] * torch.exp(-k * (when - t[0]))
    assert solution.status is Status.EVENT
    torch.testing.assert_close(solution.ts, torch.stack([t[0], t[1], when]), rtol=1e-9, atol=0)
    torch.testing.assert_close(solution.ys[-1], torch.stack([c, other]), rtol=1e-8, atol=0)
    torch.testing.assert_close(solution.events[0].t[0], solution.ts[-1])
    torch.testing.assert_close(solution.events[0].y[0], solution.ys[-1])
    inputs = (k, c, y0, t)
    found = torch.autograd.grad(2 * solution.ts[-1] + solution.ys[-1] @ torch.tensor([0.3, 0.7]), inputs)
    exact = torch.autograd.grad(2 * when + 0.3 * c + 0.7 * other, inputs)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("adjoint", [Checkpointed(), Direct(), Backsolve(), Reversible()], ids=lambda a: repr(a)[:24])
def test_a_bouncing_ball_is_one_call(adjoint):
    start = torch.tensor([10.0, 0.0], requires_grad=True)
    t = torch.linspace(0, 5, 11)
    solution = solve(ball, start, t, event=FLOOR, adjoint=adjoint)
    first = (2 * start[0] / G).sqrt()
    speed = G * first
    second = first + 2 * 0.8 * speed / G
    assert solution.status is Status.SUCCESS
    torch.testing.assert_close(solution.events[0].t, torch.stack([first, second]), rtol=1e-9, atol=0)
    torch.testing.assert_close(solution.events[0].y[:, 1], torch.stack([-speed, -0.8 * speed]))
    past = t - second
    height = torch.where(past > 0, 0.64 * speed * past - G * past**2 / 2, torch.zeros(()))
    torch.testing.assert_close(solution.ys[past > 0, 0], height[past > 0])
    found = torch.autograd.grad(solution.ys[-1].sum() + solution.events[0].t.sum(), start)[0]
    exact = torch.autograd.grad(height[-1] + 0.64 * speed - G * past[-1] + first + second, start)[0]
    torch.testing.assert_close(found[0], exact[0], rtol=1e-6, atol=0)


def test_gradients_behind_a_jump_are_those_of_differences():
    field = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    with torch.no_grad():
        [
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
            for i, p in enumerate(field.parameters())
        ]
    event = Event(lambda t, y, c: y[0] + y[1] * t - c, jump=lambda t, y, c: y - t * c)

    def loss(y0, t, c, **how):
        solution = solve(lambda t, y, c: field(y) + c, y0, t, (c,), event=event, **how, **TIGHT)
        assert len(solution.events[0].t) == 6
        return solution.ys.square().sum() + solution.events[0].t.sum() + solution.events[0].y.sum()

    inputs = (torch.tensor([0.3, -0.2]), torch.tensor([0.0, 0.4, 1.0, 1.5]), torch.tensor(0.6))
    inputs = tuple(x.requires_grad_() for x in inputs)
    found = torch.autograd.grad(loss(*inputs), (*inputs, *field.parameters()))
    direct = torch.autograd.grad(loss(*inputs, adjoint=Direct()), (*inputs, *field.parameters()))
    torch.testing.assert_close(found, direct, rtol=1e-8, atol=1e-10)
    for x, grad in zip((*inputs, *field.parameters()), found):
        step, flat = 1e-6, x.detach().view(-1)
        with torch.no_grad():
            flat[0] += step
            high = loss(*inputs)
            flat[0] -= 2 * step
            low = loss(*inputs)
            flat[0] += step
        assert float((high - low) / (2 * step)) == pytest.approx(float(grad.reshape(-1)[0]), rel=1e-4, abs=1e-6)


def test_second_derivatives_go_through_an_event_with_direct():
    k, y0 = torch.tensor(0.7, requires_grad=True), torch.tensor([3.0], requires_grad=True)
    event = Event(lambda t, y, k: y[0] ** 2 - 1.0)
    (t,) = solve(decay, y0, (0.0, 9.0), (k,), event=event, adjoint=Direct(), **TIGHT).events[0].t
    exact = torch.log(y0[0]) / k
    for x in (t, exact):
        x.first = torch.autograd.grad(x, k, create_graph=True)[0]
        x.second = torch.autograd.grad(x.first, (k, y0), retain_graph=True)
    torch.testing.assert_close(t.second, exact.second, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["tsit5", "bosh3", "rk4"])
def test_two_crossings_in_one_step_are_two(method):
    # sin t is beyond the level for 0.2 around π/2, in steps of 1.5
    event = Event(lambda t, y: y[0] - math.cos(0.1), terminal=False)
    controller = Fixed(dt=0.75) if method == "rk4" else PID(rtol=1e-3, dt0=0.75, dt_max=0.75)
    t = solve(
        lambda t, y: t.cos().reshape(1), torch.zeros(1), (0, 6.0), method=method, controller=controller, event=event
    )
    assert t.events[0].t.tolist() == pytest.approx([math.pi / 2 - 0.1, math.pi / 2 + 0.1], abs=2e-2)


def test_no_crossing_is_missed_in_large_steps():
    # y = sin t is exact between steps of any size, as a state of its own beside a polynomial that the method solves
    event = Event(lambda t, y: torch.sin(3 * y[0]) - 0.9, terminal=False)
    solution = solve(
        lambda t, y: torch.ones_like(y), torch.zeros(1), (0.0, 10.0), event=event, controller=Fixed(dt=1.0)
    )
    exact = sorted(
        x
        for k in range(6)
        for x in ((math.asin(0.9) + 2 * math.pi * k) / 3, (math.pi - math.asin(0.9) + 2 * math.pi * k) / 3)
    )
    assert solution.events[0].t.tolist() == pytest.approx([x for x in exact if x < 10], rel=1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("direction", [-1, 0, 1])
def test_directions_counts_and_both_ways_of_time(sign, direction):
    t = (0.0, sign * 20.0)
    event = Event(lambda t, y: y[0], direction=direction, terminal=2)
    start = torch.tensor([0.0, sign])  # on the surface, which it leaves upward
    solution = solve(wave, start, t, event=event, **TIGHT)
    exact = {1: [2, 4], -1: [1, 3], 0: [1, 2]}[direction]
    assert (solution.events[0].t * sign / math.pi).tolist() == pytest.approx(exact, rel=1e-8)
    assert solution.status is Status.EVENT
    assert float(solution.ts[-1]) == solution.events[0].t[-1]


def test_several_events_come_in_order_and_the_first_to_end_it_does():
    events = [
        Event(lambda t, y: y[0] - 0.5, terminal=False),
        Event(lambda t, y: t - 8.0),
        Event(lambda t, y: y[1] + 5.0),
    ]
    solution = solve(wave, torch.tensor([0.0, 1.0]), (0.0, 1.0, 20.0, 30.0), event=events, **TIGHT)
    assert solution.events[0].t.tolist() == pytest.approx([math.pi / 6, math.pi * 5 / 6, math.pi * 13 / 6], rel=1e-8)
    assert solution.events[2].t.shape == (0,)
    assert solution.events[2].y.shape == (0, 2)
    assert solution.ts.tolist() == [0.0, 1.0, 8.0, 8.0]
    assert torch.equal(solution.ys[2], solution.ys[3])
    torch.testing.assert_close(solution.ys[-1], torch.tensor([math.sin(8.0), math.cos(8.0)]), rtol=1e-6, atol=0)


def test_events_at_one_time_all_change_the_state():
    # two balls in one state that fall from one height
    def fall(t, y):
        return torch.stack([y[1], y[1] * 0 - G, y[3], y[3] * 0 - G])

    def flip(i):
        return lambda t, y: torch.cat([y[:i], -y[i : i + 1], y[i + 1 :]])

    events = [Event(lambda t, y, i=i: y[i], direction=-1, jump=flip(i + 1)) for i in (0, 2)]
    solution = solve(fall, torch.tensor([3.0, 0.0, 3.0, 0.0]), (0.0, 3.0), event=events)
    exact = [math.sqrt(6 / G) * k for k in (1, 3)]
    for found in solution.events:
        assert found.t.tolist() == pytest.approx(exact, rel=1e-9)


def test_without_a_last_time_it_goes_until_the_event():
    event = Event(lambda t, y, *_: y[0] - 1e-3)
    solution = solve(decay, torch.tensor([3.0]), (1e3, math.inf), (1e-5,), event=event)
    assert float(solution.ts[-1]) == pytest.approx(1e3 + math.log(3e3) * 1e5, rel=1e-3)
    with pytest.raises(SolveError, match=r"NO_EVENT.*the event that was to end the solve did not come"):
        solve(wave, torch.tensor([0.0, 1.0]), (0.0, math.inf), event=Event(lambda t, y: y[0] - 2), max_steps=50)
    with pytest.raises(SolveError, match="NO_EVENT"):
        solve(lambda t, y: 0 * y, torch.ones(1), (0.0, math.inf), event=Event(lambda t, y: y[0] - 2))
    for wrong in (
        {"event": Event(lambda t, y: y[0], terminal=False)},
        {},
        {"event": event, "controller": Fixed(steps=9)},
    ):
        with pytest.raises(ValueError, match="`t` must be finite, got inf"):
            solve(wave, torch.zeros(2), (0.0, math.inf), **wrong)


def test_outputs_dense_output_stops_and_jumps_go_with_events():
    t = torch.linspace(0.0, 5.0, 41)
    plain = solve(ball, torch.tensor([10.0, 0.0]), t, event=FLOOR)
    solution = solve(ball, torch.tensor([10.0, 0.0]), t, event=FLOOR, dense=True, stops=(0.3, 1.7, 4.9), jumps=(2.2,))
    torch.testing.assert_close(solution.ys, plain.ys, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solution(t), solution.ys, rtol=1e-10, atol=1e-10)
    ended = solve(wave, torch.tensor([0.0, 1.0]), (0.0, 9.0), event=Event(lambda t, y: y[0], terminal=1), dense=True)
    torch.testing.assert_close(ended(3.0), torch.tensor([math.sin(3), math.cos(3)]), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"must lie in the solved interval \[0.0, 3.1"):
        ended(4.0)


def test_dense_output_behind_a_jump_has_gradients():
    start = torch.tensor([10.0, 0.0], requires_grad=True)
    solution = solve(ball, start, (0.0, 5.0), event=FLOOR, dense=True)
    first = (2 * start[0] / G).sqrt()
    height = 0.8 * G * first * (2.0 - first) - G * (2.0 - first) ** 2 / 2
    torch.testing.assert_close(solution(2.0)[0], height)
    found, exact = (torch.autograd.grad(x, start)[0][0] for x in (solution(2.0)[0], height))
    torch.testing.assert_close(found, exact)


def test_the_answer_does_not_depend_on_where_time_is_counted_from():
    for origin in (0.0, 1e6, -1e6):
        solution = solve(ball, torch.tensor([10.0, 0.0]), (origin, origin + 5.0), event=FLOOR)
        assert (solution.events[0].t - origin).tolist() == pytest.approx([1.42784, 3.712397], rel=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_scales_of_state_and_time(scale):
    start, t = torch.tensor([10.0 * scale, 0.0]), (0.0, 5.0 * scale)
    f = lambda t, y: torch.stack([y[1], torch.full_like(y[1], -G / scale)])  # noqa: E731
    solution = solve(f, start, t, event=FLOOR, controller=PID(rtol=1e-6, atol=1e-9 * scale))
    assert (solution.events[0].t / scale).tolist() == pytest.approx([1.42784, 3.712397], rel=1e-5)


def test_float32_and_nested_states():
    def f(t, y):
        return {"height": y["speed"], "speed": torch.full_like(y["speed"], -G)}

    def jump(t, y):
        assert t.dtype is torch.float32
        return {"height": y["height"], "speed": -0.8 * y["speed"]}

    start = {"height": torch.tensor([[10.0]]).float(), "speed": torch.zeros(1, 1).float()}
    event = Event(lambda t, y: y["height"], direction=-1, jump=jump)
    solution = solve(f, start, (0.0, 5.0), event=event)
    assert solution.events[0].y["speed"].shape == (2, 1, 1)
    assert solution.events[0].y["speed"].dtype is torch.float32
    assert solution.events[0].t.tolist() == pytest.approx([1.42784, 3.712397], rel=1e-5)


def test_forward_mode_and_transforms_see_an_event():
    def when(y0):
        return solve(decay, y0, (0.0, 9.0), (0.7,), event=Event(lambda t, y, k: y[0] - 1), **TIGHT).events[0].t[0]

    y0 = torch.tensor([3.0])
    _, tangent = torch.func.jvp(when, (y0,), (torch.ones(1),))
    assert float(tangent) == pytest.approx(1 / 3 / 0.7, rel=1e-6)
    assert float(torch.func.jacrev(when)(y0)) == pytest.approx(1 / 3 / 0.7, rel=1e-6)
    assert float(torch.func.hessian(when)(y0)) == pytest.approx(-1 / 9 / 0.7, rel=1e-5)
    with pytest.raises(NotImplementedError, match="`event` ends a solve by values, which `vmap` cannot map over"):
        torch.func.vmap(when)(y0[None])


def test_a_condition_without_a_slope_loses_no_gradient_silently():
    y0 = torch.tensor([3.0], requires_grad=True)
    event = Event(lambda t, y, k: torch.where(y[0] > 1, 1.0, -1.0))
    solution = solve(decay, y0, (0.0, 9.0), (0.7,), event=event, **TIGHT)
    assert solution.events[0].t.tolist() == pytest.approx([math.log(3) / 0.7], rel=1e-8)
    with pytest.raises(LostGradientError, match="has no slope there"):
        solution.events[0].t.sum().backward()


def test_what_is_no_event_is_refused():
    with pytest.raises(TypeError, match="`condition` must be a function"):
        Event(3.0)
    with pytest.raises(ValueError, match="`direction` must be 1"):
        Event(abs, direction=2)
    with pytest.raises(ValueError, match="`terminal` must be an integer ≥ 1, got 0"):
        Event(abs, terminal=0)
    with pytest.raises(TypeError, match="`event` must be an Event"):
        solve(wave, torch.zeros(2), (0, 1.0), event=lambda t, y: y)
    for condition, text in (
        (lambda t, y: y, "shape .2,.: pass an Event for each"),
        (lambda t, y: 1.0, "must return one real number as a tensor"),
        (lambda t, y: y[0] > 0, "return what crosses 0"),
        (lambda t, y: y[0] / y[0], "returned nan at t = 0"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            solve(wave, torch.zeros(2), (0, 1.0), event=Event(condition))
    with pytest.raises(ValueError, match="`jump` must return a state of y0's shapes"):
        solve(ball, torch.tensor([1.0, 0.0]), (0, 9.0), event=Event(lambda t, y: y[0], jump=lambda t, y: y[0]))


def test_fields_that_fail_on_the_way_say_so():
    f = lambda t, y: torch.where(t < 1, torch.ones_like(y), torch.full_like(y, math.nan))  # noqa: E731
    with pytest.raises(SolveError, match=r"NON_FINITE_FIELD at t = 0\.99"):
        solve(f, torch.zeros(1), (0, 9.0), event=Event(lambda t, y: y[0] - 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partial = solve(f, torch.zeros(1), (0, 0.5, 9.0), event=Event(lambda t, y: y[0] - 5), on_failure="status")
    assert partial.status is Status.NON_FINITE_FIELD
    assert partial.ys[:, 0].isnan().tolist() == [False, False, True]


def test_a_ball_that_comes_to_rest_says_that_it_needs_ever_more_steps():
    with pytest.raises(SolveError):
        solve(ball, torch.tensor([1.0, 0.0]), (0, 99.0), event=FLOOR, max_steps=200)


def test_inside_of_somebody_elses_graph_events_are_found_too():
    def when(y0):
        return solve(decay, y0 * 2, (0.0, 9.0), (0.7,), event=Event(lambda t, y, k: y[0] - 1)).events[0].t

    y0 = torch.tensor([1.5])
    assert torch.equal(torch.compile(when, backend="eager")(y0), when(y0))


def test_a_solve_of_no_length_has_no_events():
    solution = odenets.solve(wave, torch.ones(2), (1.0, 1.0), event=FLOOR)
    assert solution.status is Status.SUCCESS
    assert solution.events[0].t.shape == (0,)


def test_three_roots_of_a_cubic_are_three_whatever_the_steps():
    # SciPy's issue 9228 finds one of three, its steps jump over the others; diffrax's issue 507 is of the same kind
    event = Event(lambda t, y: y[0], terminal=False)
    for t, start in (((-8.0, 4.0), -120.0), ((4.0, -8.0), 120.0)):
        found = (
            solve(lambda t, y: (3 * t**2 + 12 * t - 4).reshape(1), torch.tensor([start]), t, event=event).events[0].t
        )
        assert sorted(found.tolist()) == pytest.approx([-6, -2, 2], rel=1e-9)
    event = Event(lambda t, y: (2.5 - y[0]) * (5 - y[0]) * -y[0], terminal=False)
    found = solve(lambda t, y: torch.ones_like(y), torch.tensor([-1.0]), (0.0, 1000.0), event=event).events[0].t
    assert found.tolist() == pytest.approx([1.0, 3.5, 6.0], rel=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_events_in_one_step_the_earlier_ends_it(order):  # diffrax's issue 639: there the one named last
    events = [Event(lambda t, y: t - 1.0), Event(lambda t, y: t - 0.5)][::order]
    steps = {"method": "euler", "controller": Fixed(dt=2.0)}
    assert solve(lambda t, y: y, torch.ones(1), (0.0, 10.0), event=events, **steps).ts.tolist() == [0.0, 0.5]


@pytest.mark.parametrize("dt", [0.25, 0.1])
def test_an_event_at_the_end_of_a_step_is_one(dt):  # SciPy's issues 17066 and 19418
    event = Event(lambda t, y: y[0] - 1.0, terminal=False)
    ones = lambda t, y: torch.ones_like(y)  # noqa: E731
    solution = solve(ones, torch.zeros(1), (0.0, 2.0), event=event, dense=True, controller=Fixed(dt=dt))
    assert solution.events[0].t.tolist() == pytest.approx([1.0], rel=1e-14)
    assert solution(torch.tensor([0.9, 1.0, 1.1])).flatten().tolist() == pytest.approx([0.9, 1.0, 1.1])


def test_a_ball_bounces_until_its_bounces_have_no_length():  # DifferentialEquations.jl's issue 138: it fell through
    half = Event(lambda t, y: y[0], direction=-1, jump=lambda t, y: torch.stack([0 * y[0], -0.5 * y[1]]), terminal=25)
    t = solve(ball, torch.tensor([10.0, 0.0]), (0.0, 50.0), event=half).events[0].t
    first = math.sqrt(20 / G)
    assert t.tolist() == pytest.approx([first * (3 - 2 * 0.5**n) for n in range(25)], rel=1e-9)


def test_a_condition_that_differentiates_inside_says_what_to_write():  # torchdiffeq's issue 179
    def steepness(t, y, k):
        return torch.autograd.grad((y**2).sum(), y, create_graph=True)[0].norm() - 0.1

    def looked_on(t, y, k):
        with torch.enable_grad():
            return steepness(t, y if y.requires_grad else y.requires_grad_(), k)

    y0 = torch.tensor([-0.0881, 0.4923], requires_grad=True)
    with pytest.raises(RuntimeError, match="`condition` takes a derivative inside"):
        solve(decay, y0, (0.0, 9.0), (1.0,), event=Event(steepness))
    (t,) = solve(decay, y0, (0.0, 9.0), (1.0,), event=Event(looked_on), **TIGHT).events[0].t
    torch.testing.assert_close(torch.autograd.grad(t, y0)[0], (y0 / y0.norm() ** 2).detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_jump_that_leads_off_the_surface_is_followed_by_the_next_event(per_sample):
    event = Event(lambda t, y: y[:, 0] - 0.5, jump=lambda t, y: 2 * y)
    halved = lambda t, y: -y  # noqa: E731
    solution = solve(halved, torch.ones(1, 1), (0.0, 3.0), event=event, rtol=1e-6, per_sample=per_sample)
    assert solution.events[0].t.tolist() == pytest.approx([n * math.log(2) for n in range(1, 5)], rel=1e-4)


SLOW = pytest.mark.slow  # a jump makes a second program, for gradients to the times


@SLOW
@pytest.mark.parametrize(("per_sample", "jumps"), [(False, False), (False, True), (True, True)])
def test_compiled_loops_have_the_events_and_the_gradients_of_eager_ones(per_sample, jumps):
    k, y0 = torch.tensor(0.4, requires_grad=True), torch.tensor([[1.0], [0.8]], requires_grad=True)
    jump = (lambda t, y: 1.6 * y) if jumps else None
    event = Event(lambda t, y: y.amin(1) - 0.5 if per_sample else y.min() - 0.5, jump=jump)
    field = lambda t, y: -k * y  # noqa: E731
    found = []
    for compiled in (False, True):
        how = {"method": "heun", "per_sample": per_sample, "compile": compiled}
        solution = solve(field, y0, (0.0, 1.0, 4.0), event=event, rtol=1e-4, **how)
        loss = solution.ys.square().sum() + solution.events[0].t.sum()
        found.append((loss, solution.events[0].t, *torch.autograd.grad(loss, (k, y0)), solution.stats.accepted))
    assert len(found[0][1]) > int(jumps)
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_a_chain_of_events_without_end_ends_with_its_steps():
    always = Event(lambda t, y: y[:, 0] - 1.0, jump=lambda t, y: y - 1e-6)
    for per_sample in (False, True):
        event = always if per_sample else Event(lambda t, y: y[0, 0] - 1.0, jump=always.jump)
        with pytest.raises(SolveError, match="MAX_STEPS"):
            solve(
                lambda t, y: 1 + 0 * y, torch.zeros(1, 1), (0.0, 9.0), event=event, per_sample=per_sample, max_steps=30
            )


@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=repr)
def test_second_derivatives_by_a_parameter_of_the_condition(adjoint):
    """t = log(y0 / p) / w of y' = −w y at y = p: those of p are there, or refused where the solve has none."""
    p, w = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.5, 1.0))
    options = {"event": Event(lambda t, y: y[0] - p), "rtol": 1e-10, "atol": 1e-12, "adjoint": adjoint}
    y0 = torch.ones(1, dtype=torch.float64)
    time = solve(lambda t, y: -y, y0, [0.0, 5.0], **options).events[0].t[0]
    (once,) = torch.autograd.grad(time, p, create_graph=True)
    assert torch.autograd.grad(once, p)[0].item() == pytest.approx(4.0, rel=1e-6)
    time = solve(lambda t, y: -w * y, y0, [0.0, 5.0], **options).events[0].t[0]
    assert torch.autograd.grad(time, p, retain_graph=True)[0].item() == pytest.approx(-2.0, rel=1e-6)
    if isinstance(adjoint, Checkpointed):
        with pytest.raises(NotImplementedError, match=r"no second derivative here .*use `adjoint=Direct\(\)`"):
            torch.autograd.grad(time, p, create_graph=True)
        return
    (once,) = torch.autograd.grad(time, p, create_graph=True)
    twice = torch.stack(torch.autograd.grad(once, (p, w)))
    torch.testing.assert_close(twice, torch.tensor([4.0, 2.0], dtype=torch.float64), rtol=1e-6, atol=0)
