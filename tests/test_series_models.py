"""Models of irregular series: shapes, causality, independence of neighbours and of what else is asked, exact flows."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import odenets
from odenets.nn.series import GRUD, MTAN, ODERNN, GapGRU, LatentODE, NeuralCDE, recurrent
from odenets.series import Series, collate, from_arrays

NAN = math.nan


def ragged(n=5, channels=2, seed=0, longest=7, origin=0.0, static=0):
    g = torch.Generator().manual_seed(seed)
    times, values = [], []
    for _ in range(n):
        length = int(torch.randint(1, longest + 1, (), generator=g))
        times.append(origin + torch.rand(length, generator=g, dtype=torch.float64).sort().values)
        x = torch.randn(length, channels, generator=g)
        values.append(x.where(torch.rand(x.shape, generator=g) < 0.7, NAN))
    known = torch.randn(n, static, generator=g) if static else None
    return from_arrays(times, values, static=known)


MODELS = {
    "gru": lambda **o: GapGRU(2, 3, 8, **o),
    "gru2": lambda **o: GapGRU(2, 3, 8, layers=2, **o),
    "gru_mean": lambda **o: GapGRU(2, 3, 8, pool="mean", **o),
    "ode_rnn_mean": lambda **o: ODERNN(2, 3, 8, pool="mean", **o),
    "mtan": lambda **o: MTAN(2, 3, 8, points=5, features=8, heads=2, **o),
    "grud": lambda **o: GRUD(2, 3, 8, **o),
    "ode_rnn": lambda **o: ODERNN(2, 3, 8, **o),
    **{
        path: lambda path=path, **o: NeuralCDE(2, 3, 8, path=path, **o) for path in ("linear", "rectilinear", "hermite")
    },
}


@pytest.fixture(params=MODELS, ids=str)
def make(request):
    torch.manual_seed(0)
    return MODELS[request.param]


def test_each_sample_gets_its_answer_whatever_stands_beside_it(make):
    series = ragged(static=2)
    model = make(static=2)
    together = model(series)
    assert together.shape == (5, 3)
    torch.testing.assert_close(together, torch.cat([model(one) for one in series]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(series[[3, 0, 3]]), together[[3, 0, 3]], rtol=1e-4, atol=1e-5)
    together.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_answer_depends_on_the_rows_before_it_alone(make):
    series, model = ragged(n=3, longest=9), make()
    at = (series.start + series.end)[:, None] / 2
    answers = model(series, torch.cat([at, series.end[:, None] + 1, at], dim=1))
    assert answers.shape == (3, 3, 3)
    torch.testing.assert_close(answers[:, 0], answers[:, 2], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(series.until(at[:, 0]), at)[:, 0], answers[:, 0], rtol=1e-4, atol=1e-5)
    later = Series(series.times, series.values.where(series.times[..., None] <= at[..., None], 7.0), series.lengths)
    torch.testing.assert_close(model(later, at)[:, 0], answers[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(series, series.end[:, None])[:, 0], model(series), rtol=1e-4, atol=1e-5)


def test_times_far_from_zero_and_repeated_ones_are_no_special_case(make):
    model = make()
    near, far = ragged(), ragged(origin=1e9)
    torch.testing.assert_close(model(far), model(near), rtol=1e-4, atol=1e-5)
    twice = from_arrays([[0.0, 0.0, 0.5, 0.5]], [[[1.0, NAN], [NAN, 2.0], [NAN, NAN], [1.0, 1.0]]])
    assert model(twice).isfinite().all()
    one = from_arrays([[3.0]], [[[1.0, NAN]]])
    assert model(one, torch.tensor([3.0, 4.0])).shape == (1, 2, 3)


def test_what_does_not_fit_is_refused_by_name(make):
    model, series = make(), ragged()
    with pytest.raises(ValueError, match="`channels=2`, and the series has 3"):
        model(ragged(channels=3))
    with pytest.raises(ValueError, match="`static=0`"):
        model(ragged(static=1))
    with pytest.raises(ValueError, match=r"sample 1 has .*, before its first row"):
        model(series, torch.stack([series.start + 1, series.start - 1, *[series.start + 1] * 3], 0).diagonal()[:, None])
    with pytest.raises(TypeError, match="`at` must be a tensor"):
        model(series, 3.0)
    with pytest.raises(TypeError, match=r"takes an `odenets\.Series`"):
        model(series.values)
    with pytest.raises(ValueError, match="`at` must be finite"):
        model(series, torch.tensor([NAN]))


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, t, h):
        return -self.rate * h


def test_between_rows_the_state_of_an_ode_rnn_is_that_of_its_equation():
    model = ODERNN(1, 8, 8, field=Decay(), method="tsit5", rtol=1e-10, atol=1e-12).double()
    model.readout = nn.Identity()
    series = from_arrays([[0.0, 1.0]], [[[1.0], [2.0]]], dtype=torch.float64)
    at = torch.tensor([0.0, 0.25, 1.0, 1.5], dtype=torch.float64)
    h = model(series, at)[0]
    torch.testing.assert_close(h[1], h[0] * math.exp(-0.5))
    torch.testing.assert_close(h[3], h[2] * math.exp(-1.0))
    moved = torch.autograd.grad(h[3].sum(), model.field.rate, retain_graph=True)[0]
    assert moved.isfinite()
    assert model.stats.nfe > 0


@pytest.mark.parametrize(
    "options",
    [
        {"adjoint": odenets.Checkpointed()},
        {"adjoint": odenets.Direct(), "rtol": 1e-8, "atol": 1e-10},
        {"adjoint": odenets.Backsolve(), "rtol": 1e-8, "atol": 1e-10},
        {"adjoint": odenets.Interpolated(), "rtol": 1e-8, "atol": 1e-10},
    ],
    ids=lambda o: type(o["adjoint"]).__name__,
)
def test_ode_rnn_and_cde_go_with_every_adjoint(options):
    series = ragged(n=2, longest=4)
    series = Series(series.times, series.values.double(), series.lengths)
    gradients = []
    for given in (options, {"rtol": 1e-8, "atol": 1e-10}):
        for kind in (ODERNN, NeuralCDE):
            torch.manual_seed(1)
            model = kind(2, 1, 4, **given).double()
            model(series).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if "rtol" in options else {"rtol": 1e-2, "atol": 1e-2}
    torch.testing.assert_close(gradients[0], gradients[2], **tolerance)
    torch.testing.assert_close(gradients[1], gradients[3], **tolerance)


def test_a_cde_is_the_integral_of_its_path():
    """With F constant the state is z0 + F (X(end) − X(start)), whatever the path."""
    series = ragged(n=4, longest=8)
    for path in ("linear", "rectilinear", "hermite", "natural"):
        model = NeuralCDE(2, 4, 4, path=path, method="rk4", controller=odenets.Fixed(dt=1.0))
        model.readout = nn.Identity()
        for p in model.field[-1].parameters():
            nn.init.zeros_(p)
        nn.init.constant_(model.field[-1].bias, 0.3)
        x, _ = model._knots(series)
        rise = math.tanh(0.3) * torch.stack([x[i, -1] - x[i, 0] for i in range(4)]).sum(1)
        z = model(series)[:, :4]
        torch.testing.assert_close(z, model.start(x[:, 0]) + rise[:, None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("encoder", ["gru", "ode_rnn"])
def test_a_latent_ode_predicts_at_any_times_of_each_sample(encoder):
    torch.manual_seed(0)
    model = LatentODE(2, 3, 8, encoder=encoder, static=1, rtol=1e-6, atol=1e-8)
    series = ragged(static=1)
    assert model(series).shape == series.values.shape
    at = torch.tensor([0.9, -0.5, 0.3, 0.9])
    together = model(series, at)
    alone = torch.cat([model(one, at) for one in series])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[:, 0], together[:, 3], rtol=1e-5, atol=1e-6)
    single = model(series, at[1:2])
    torch.testing.assert_close(single[:, 0], together[:, 1], rtol=1e-4, atol=1e-5)
    bound = model.elbo(series, draws=2, kl_weight=0.5)
    assert bound.shape == (5,)
    (-bound.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.sample(series, at, draws=4).shape == (4, 5, 4, 2)


def test_the_bound_of_a_latent_ode_is_that_of_its_distributions():
    torch.manual_seed(0)
    model = LatentODE(1, 2, 4, sigma=0.7)
    series = from_arrays([[0.0, 1.0]], [[[1.0], [NAN]]])
    mean, log_sd = model.encode(series)
    q = torch.distributions.Normal(mean, log_sd.exp())
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.manual_seed(1)
    bound = model.elbo(series)
    torch.manual_seed(1)
    predicted = model.sample(series, draws=1)[0]
    expected = torch.distributions.Normal(predicted[:, 0, 0], 0.7).log_prob(torch.tensor(1.0)) - kl
    torch.testing.assert_close(bound, expected)


def test_a_longer_batch_changes_no_answer():
    series = ragged(n=2)
    longer = collate([series, ragged(n=1, longest=1, seed=5), from_arrays([range(30)], [torch.zeros(30, 2)])])
    for build in MODELS.values():
        torch.manual_seed(0)
        model = build()
        torch.testing.assert_close(model(longer)[:2], model(series), rtol=1e-4, atol=1e-5)


def test_no_sample_and_no_question_are_answered(make):
    model, series = make(), ragged()
    assert model(series[[]]).shape == (0, 3)
    assert model(series[[]], torch.tensor([2.0])).shape == (0, 1, 3)
    assert model(series, torch.zeros(0)).shape == (5, 0, 3)
    latent = LatentODE(2, 3, 8)
    assert latent(series[[]]).shape == (0, 1, 2)
    assert latent(series, torch.zeros(0)).shape == (5, 0, 2)


def test_derivatives_are_those_of_finite_differences(make):
    model, series, h = make(static=1).double(), ragged(n=3, static=1).to(torch.float64), 1e-6
    assert series.static is not None
    inputs = [series.values.clone().requires_grad_(), series.static.clone().requires_grad_(), *model.parameters()]
    at = series.end[:, None] + torch.tensor([0.0, 0.5])

    def loss():
        return model(replace(series, values=inputs[0], static=inputs[1]), at).square().sum()

    grads = torch.autograd.grad(loss(), inputs)
    for x, grad in zip(inputs, grads):
        along = torch.randn_like(x).where(~x.isnan(), 0.0)
        ends = []
        for step in (h, -2 * h):
            with torch.no_grad():
                x += step * along
                ends.append(loss())
        with torch.no_grad():
            x += h * along
        assert (ends[0] - ends[1]).item() / (2 * h) == pytest.approx((grad * along).sum().item(), rel=1e-5, abs=1e-7)


def test_what_a_model_cannot_take_is_said_when_it_is_made_or_called():
    series = ragged()
    with pytest.raises(TypeError, match=r"computes in torch.float32.*write series.to\(torch.float32\)"):
        GapGRU(2, 3)(series.to(torch.float64))
    with pytest.raises(TypeError, match="`metod` is no option"):
        ODERNN(2, 3, metod="rk4")
    for kind, name in ((NeuralCDE, "jumps"), (ODERNN, "stops"), (LatentODE, "args")):
        with pytest.raises(TypeError, match=f"`{name}` is given by the model"):
            kind(2, 3, **{name: ()})
    for name in ("dense", "event"):
        with pytest.raises(TypeError, match=f"`{name}` would be ignored"):
            ODERNN(2, 3, **{name: True})


class Affine(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, t, h):
        return self.layer(h)


@pytest.mark.parametrize("kind", [ODERNN, LatentODE])
def test_a_field_that_does_not_take_the_state_is_refused(kind):
    series, width = ragged(n=2), 3 if kind is LatentODE else 4
    sizes = (2, 3) if kind is LatentODE else (2, 3, 4)
    for field in (nn.Linear(width, width), Affine(width + 1, width), Affine(width, 1)):
        with pytest.raises(ValueError, match=rf"`field` is called .*\(N, {width}\) .*MLPField\({width}, \(50,\)\)"):
            kind(*sizes, field=field)(series)
    for field, words in (("mlp", "must be a module or a function"), (Affine, r"write Affine\(\.\.\.\)")):
        with pytest.raises(TypeError, match=words):
            kind(*sizes, field=field)
    with pytest.raises(ValueError, match=r"contains Dropout"):
        kind(*sizes, field=nn.Sequential(nn.Dropout(0.5), Affine(width, width)))
    with pytest.raises(TypeError, match="`field_hidden` would be ignored beside `field`"):
        kind(*sizes, field=Affine(width, width), field_hidden=20)
    assert kind(*sizes, field=Affine(width, width))(series).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ODERNN, "field_hidden"),
        (NeuralCDE, "field_hidden"),
        (LatentODE, "field_hidden"),
        (LatentODE, "decoder_hidden"),
        (odenets.nn.MLPField, "hidden"),
    ],
)
def test_sizes_of_hidden_layers_are_whole_numbers(kind, name):
    kind(2, 3, **{name: ()}) if kind is not odenets.nn.MLPField else kind(2, **{name: 3})
    for given, words in ((0, "≥ 1, got 0"), ((5, 0), r"\[1\]` must be"), (2.5, r"\(50,\)"), ("50", "sizes of hidden")):
        with pytest.raises((TypeError, ValueError), match=f"`{name}.*{words}"):
            kind(2, **{name: given}) if kind in (odenets.nn.MLPField, LatentODE) else kind(2, 3, **{name: given})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GapGRU(2, 3, dropout=1.0), "`dropout` must be a probability below 1, got 1.0"),
        (lambda: GapGRU(2, 3, layers=0), "`layers` must be an integer ≥ 1, got 0"),
        (lambda: GRUD(2, 3, pool=["last"]), "`pool` must be one of last, mean, got"),
        (lambda: NeuralCDE(2, 3, path=["linear"]), "`path` must be one of linear"),
        (lambda: LatentODE(2, encoder=["gru"]), "`encoder` must be one of gru, ode_rnn, got"),
    ],
)
def test_options_that_are_none_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_attention_is_the_mean_of_what_was_seen_weighted_by_times():
    torch.manual_seed(0)
    model, series = MTAN(2, 3, 4, points=4, features=6, heads=2), ragged(n=3)
    found = model.attended(series, series.rows).unflatten(2, (2, 2, 2))  # (N, points, heads, mean or share, C)
    points = torch.linspace(0, 1, 4)
    assert model.embedded(points)[:, 0].tolist() == points.tolist()
    for i, one in enumerate(series):
        at, x = (one.times[0] - one.start).float(), one.values[0]
        q, k = (f(model.embedded(t)).unflatten(1, (2, 3)) for f, t in ((model.query, points), (model.key, at)))
        for h in range(2):
            score = q[:, h] @ k[:, h].T / math.sqrt(3)
            for c in range(2):
                seen = ~x[:, c].isnan()
                mean = score[:, seen].softmax(1) @ x[seen, c] if seen.any() else torch.zeros(4)
                torch.testing.assert_close(found[i, :, h, 0, c], mean)
                torch.testing.assert_close(found[i, :, h, 1, c], score.softmax(1)[:, seen].sum(1))
    with pytest.raises(ValueError, match="`features` must be a multiple of `heads=3`, got 8"):
        MTAN(2, 3, features=8, heads=3)


def test_each_sample_may_have_steps_of_its_own():
    series, at = ragged(), torch.tensor([0.9, -0.5, 2.0])
    for kind, asked in ((LatentODE, at), (ODERNN, at[2:]), (NeuralCDE, at[2:])):
        found = []
        for own in ({}, {"per_sample": True, "adjoint": odenets.Checkpointed()}):
            torch.manual_seed(0)
            model = kind(2, 3, 8, rtol=1e-6, atol=1e-7, **own)
            found.append(model(series, asked))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_what_was_last_seen_is_found_once(monkeypatch):
    calls, find = [], recurrent.last_values
    monkeypatch.setattr(recurrent, "last_values", lambda values: calls.append(1) or find(values))
    for kind in (GRUD, ODERNN, GapGRU):
        kind(2, 3)(ragged(), torch.tensor([2.0]))
    assert len(calls) == 3


def test_a_cde_goes_through_function_transforms():
    model, series = NeuralCDE(2, 3, 8), ragged()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    found = torch.func.grad(lambda w: torch.func.functional_call(model, w, (series,)).square().sum())(weights)
    model(series).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_compiled_ode_rnn_moves_as_an_eager_one():
    compiled, eager = ODERNN(2, 3, 8, compile=True), ODERNN(2, 3, 8)
    eager.load_state_dict(compiled.state_dict())
    for n in (2, 3):
        h, by = torch.randn(n, 8, requires_grad=True), torch.rand(n, 2)
        found, expected = (model.move(h, by) for model in (compiled, eager))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            *(torch.autograd.grad(x.sum(), h)[0] for x in (found, expected)), rtol=1e-4, atol=1e-4
        )
