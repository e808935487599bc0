"""The estimators: scikit-learn's conventions, every form of X, what is scaled by what, and what bad input gets."""

import functools
import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import odenets
from odenets.estimators.base import held_out
from odenets.nn.series import GapGRU
from odenets.series import from_arrays
from odenets.series.forms import SortedRows

NAN = math.nan
SMALL = {"model": "gru", "hidden": 8, "epochs": 3, "batch_size": 16, "lr": 0.03, "random_state": 0, "device": "cpu"}


def ramps(n=40, seed=0, channels=2, static=0):
    """Series that rise or fall, seen at random times, a third of the values missing; and how steep each is."""
    random = np.random.RandomState(seed)
    slopes = random.uniform(-1, 1, n)
    times = [np.sort(random.uniform(0, 10, random.randint(3, 8))) for _ in range(n)]
    values = [s * (t - t[0])[:, None] + 0.1 * random.normal(size=(len(t), channels)) for s, t in zip(slopes, times)]
    for x in values:
        x[1:][random.uniform(size=x[1:].shape) < 0.3] = NAN
    known = random.normal(size=(n, static)) if static else None
    return from_arrays(times, values, static=known, channels=["a", "b"][:channels], dtype=torch.float64), slopes


@functools.cache
def fitted():
    series, slopes = ramps()
    return odenets.SeriesClassifier(**SMALL | {"epochs": 30}).fit(series, np.where(slopes > 0, "up", "down"))


def test_a_classifier_learns_what_can_be_learnt_and_answers_as_scikit_learns_do():
    series, slopes = ramps(seed=1)
    classifier = fitted()
    truth = np.where(slopes > 0, "up", "down")
    assert classifier.classes_.tolist() == ["down", "up"]
    assert classifier.score(series, truth) > 0.85
    likely = classifier.predict_proba(series)
    assert likely.shape == (40, 2)
    np.testing.assert_allclose(likely.sum(1), 1)
    assert (classifier.predict(series) == classifier.classes_[likely.argmax(1)]).all()
    assert classifier.n_features_in_ == 2
    assert len(classifier.history_.records) <= 30
    assert classifier.plot().axes


def test_a_regressor_learns_a_number_of_any_size():
    series, slopes = ramps()
    regressor = odenets.SeriesRegressor(**SMALL | {"epochs": 40, "patience": None}).fit(series, 1e6 + 1e3 * slopes)
    assert regressor.score(series, 1e6 + 1e3 * slopes) > 0.6
    assert regressor.predict(series).shape == (40,)


@pytest.mark.parametrize(
    "model", ["ode_rnn", "gru_d", "cde", "mtan", GapGRU, functools.partial(GapGRU, layers=2)], ids=str
)
def test_every_model_and_those_of_ones_own(model):
    series, slopes = ramps(static=1)
    classifier = odenets.SeriesClassifier(**SMALL | {"model": model, "epochs": 1}).fit(series, slopes > 0)
    assert np.isfinite(classifier.predict_proba(series)).all()
    assert classifier.network_.static == 1


def test_equal_seeds_give_equal_networks_whatever_torch_drew_before():
    series, slopes = ramps(n=20)
    answers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        answers.append(odenets.SeriesClassifier(**SMALL).fit(series, slopes > 0).predict_proba(series))
        assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(*answers)
    other = odenets.SeriesClassifier(**SMALL | {"random_state": 1}).fit(series, slopes > 0).predict_proba(series)
    assert not np.array_equal(other, answers[0])


def objects(samples):
    """An array with an array in each place."""
    found = np.empty(len(samples), dtype=object)
    found[:] = list(samples)
    return found


def test_all_forms_of_x_are_one():
    random = np.random.RandomState(0)
    array, y = random.normal(size=(24, 5, 2)), np.arange(24) % 2
    array[3, 2, 1] = NAN
    times = np.array([0.0, 1.0, 1.5, 4.0, 9.0])
    forms = {
        "array": (array, times),
        "tensor": (torch.as_tensor(array), torch.as_tensor(times)),
        "times for each": (array, np.tile(times, (24, 1))),
        "list": (list(array), [times] * 24),
        "lists": (array.tolist(), times.tolist()),
        "objects": (objects(array), objects([times] * 24)),
        "series": (from_arrays([times] * 24, list(array), dtype=torch.float64), None),
        "dates": (array, pd.Timestamp("2026-01-01").to_datetime64() + pd.to_timedelta(times, unit="h").to_numpy()),
    }
    answers = {
        name: odenets.SeriesClassifier(**SMALL).fit(x, y, times=t).predict_proba(x, times=t)
        for name, (x, t) in forms.items()
    }
    for name, answer in answers.items():
        np.testing.assert_allclose(answer, answers["array"], rtol=1e-4, err_msg=name)
    matrix = array[..., 0]
    one = odenets.SeriesClassifier(**SMALL).fit(matrix, y)
    assert one.n_features_in_ == 5
    np.testing.assert_allclose(one.predict_proba(matrix), one.predict_proba(list(matrix[..., None])), rtol=1e-5)


def test_clones_pickles_searches_and_pipelines():
    series, slopes = ramps(n=24)
    y = (slopes > 0).astype(int)
    classifier = odenets.SeriesClassifier(**SMALL)
    assert clone(classifier).get_params() == classifier.get_params()
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(fitted())).predict_proba(series), fitted().predict_proba(series)
    )
    search = GridSearchCV(odenets.SeriesClassifier(**SMALL | {"epochs": 1}), {"hidden": np.array([4, 8])}, cv=2)
    assert search.fit(series, y).best_params_["hidden"] in (4, 8)
    assert search.predict(series).shape == (24,)
    matrix = np.random.RandomState(0).normal(size=(24, 4))
    assert cross_val_score(make_pipeline(StandardScaler(), classifier), matrix, y, cv=2).shape == (2,)


def test_the_scaling_is_that_of_the_training_part_alone():
    series, slopes = ramps()
    classifier = fitted()
    random = np.random.RandomState(0)
    held = held_out((slopes > 0).astype(int), 0.1, random)
    assert held.sum() == 4
    part = series[np.flatnonzero(~held)].values
    torch.testing.assert_close(classifier.scaling_.mean, part.flatten(0, 1).nanmean(0))
    assert not torch.allclose(classifier.scaling_.mean, series.values.flatten(0, 1).nanmean(0))


def test_the_held_out_part_has_the_shares_of_all_and_never_all_of_a_class():
    y = np.repeat([0, 1, 2], [60, 39, 1])
    for seed in range(20):
        held = held_out(y, 0.2, np.random.RandomState(seed))
        assert np.bincount(y[held], minlength=3).tolist() in ([12, 8, 0], [12, 7, 0], [11, 8, 0])
    assert not held_out(y, 0, np.random.RandomState(0)).any()
    assert not held_out(y, None, np.random.RandomState(0)).any()
    assert not held_out(y[:1], 0.5, np.random.RandomState(0)).any()


def test_a_weight_of_a_class_makes_it_more_probable():
    series, _ = ramps()
    y = (np.arange(40) % 4 == 0).astype(int)  # of no bearing on the series
    plain, weighted = (
        odenets.SeriesClassifier(**SMALL, class_weight=w).fit(series, y).predict_proba(series)[:, 1].mean()
        for w in (None, {0: 1.0, 1: 50.0})
    )
    assert plain < 0.5 < weighted


def changed(name):
    """X, y and more of a fit that cannot be made."""
    series, slopes = ramps(n=12)
    y, more = slopes > 0, {}
    arrays, times = [x.numpy().copy() for x in series.values], [t.numpy().copy() for t in series.times]
    match name:
        case "no observation":
            arrays[3][:] = NAN
        case "never observed":
            for x in arrays:
                x[:, 1] = NAN
        case "infinite":
            arrays[2][0, 1] = math.inf
        case "time":
            times[2][1] = NAN
        case "lengths":
            times[2] = times[2][:-1]
        case "too few times":
            times = times[:-1]
        case "one class":
            y = np.ones(12)
        case "missing outcome":
            y = np.where(np.arange(12) == 5, NAN, 1.0 * y)
        case "too few outcomes":
            y = y[:-1]
        case "no outcomes":
            y = None
        case "static":
            more = {"static": np.zeros((11, 1))}
        case "static text":
            more = {"static": [["old"]] * 12}
    return arrays, y, {"times": times, **more}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no observation", ["sample 3 has no observation", "leave it out"]),
        ("never observed", ["channel '1' was never observed", "leave it out"]),
        ("infinite", ["`values` of sample 2, row 0, channel '1'", "write NaN where a value is missing"]),
        ("time", ["`times` of sample 2, row 1, is nan", "leave the row out"]),
        ("lengths", ["`values` of sample 2", "one row for each of its times"]),
        ("too few times", ["`times` must have an entry for each of the 12 samples, got 11"]),
        ("one class", ["two classes or more, got one class only, 1.0", "add samples of another"]),
        ("missing outcome", ["`y` of sample 5 is nan", "leave the sample out"]),
        ("too few outcomes", ["`y` must have one entry for each of the 12 samples, got 11"]),
        ("no outcomes", ["requires y to be passed"]),
        ("static", ["`static` must have a row for each of the 12 samples", "(11, 1)"]),
        ("static text", ["`static` must be numbers"]),
    ],
)
def test_bad_input_is_told_in_a_sentence(name, words):
    arrays, y, more = changed(name)
    with pytest.raises(ValueError, match=r".") as caught:
        odenets.SeriesClassifier(**SMALL).fit(arrays, y, **more)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("x", [None, "series.csv", np.zeros(4), [1.0, 2.0], np.zeros((2, 2, 2, 2)), {}], ids=repr)
def test_what_is_no_form_of_series_is_told_the_forms(x):
    with pytest.raises(ValueError, match="`X` must be a Series, an array"):
        odenets.SeriesClassifier(**SMALL).fit(x, [0, 1])


def test_text_is_no_amount_and_a_number_no_times():
    with pytest.raises(ValueError, match="`y` of sample 1 is high, no number: classes are for `SeriesClassifier`"):
        odenets.SeriesRegressor(**SMALL).fit(np.eye(2), ["1.5", "high"])
    with pytest.raises(ValueError, match=r"`times` must be \(steps,\) for all samples"):
        odenets.SeriesRegressor(**SMALL).fit(np.eye(2), [0, 1], times=5.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "lstm"}, "`model` must be one of 'ode_rnn', 'gru', 'gru_d', 'cde', 'mtan', or a function"),
        ({"model": torch.nn.Linear(1, 1)}, "returns a new module"),
        ({"solve_options": {"method": "rk4"}}, "leave them out of model='gru'"),
        ({"epochs": 0}, "`epochs` must be an integer"),
        ({"hidden": 0}, "`hidden` must be an integer"),
        ({"lr": -1.0}, "`lr` must be a positive number"),
        ({"validation_fraction": 1.0}, "`validation_fraction` must be from 0 up to, but without, 1, got 1"),
        ({"patience": 0}, "`patience` must be an integer"),
        ({"device": "tpu"}, "`device` is 'tpu'"),
    ],
)
def test_settings_that_cannot_be_are_told_by_fit(options, words):
    series, slopes = ramps(n=12)
    with pytest.raises(ValueError, match=r"`") as caught:
        odenets.SeriesClassifier(**SMALL | options).fit(series, slopes > 0)
    assert words in str(caught.value)


def test_a_prediction_needs_the_channels_of_the_fit():
    classifier, (series, _) = fitted(), ramps(n=3)
    with pytest.raises(ValueError, match="`X` lacks 'b': give the channels of the fit, a, b"):
        classifier.predict(ramps(n=3, channels=1)[0])
    with pytest.raises(ValueError, match="`static` must have the 0 columns of the fit, got 1"):
        classifier.predict(series, static=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="`times` are in the series"):
        classifier.predict(series, times=[1.0])


def test_rows_that_go_back_in_time_are_sorted_and_that_is_said():
    arrays, y, more = changed("none")
    forward = odenets.SeriesClassifier(**SMALL).fit(arrays, y, **more)
    backward = [x[::-1] for x in arrays], [t[::-1] for t in more["times"]]
    with pytest.warns(SortedRows, match="12 samples were not in the order of time, the first 0: sorted"):
        answer = forward.predict_proba(backward[0], times=backward[1])
    assert answer.shape == (12, 2)


def waves(n=48, seed=0):
    """Sines of one period and random phases, seen at random times."""
    random = np.random.RandomState(seed)
    times = [np.sort(random.uniform(0, 10, 16)) for _ in range(n)]
    phases = random.uniform(0, 6.28, n)
    return from_arrays(
        times, [100 + 5 * np.sin(t + p) + 0.2 * random.normal(size=16) for t, p in zip(times, phases)],
        channels=["wave"],
    ), phases  # fmt: skip


@functools.cache
def forecaster():
    options = {**SMALL, "hidden": 16, "epochs": 50, "validation_fraction": 0}
    return odenets.SeriesForecaster(**options).fit(waves()[0])


def test_a_forecast_is_nearer_than_the_last_value_and_knows_how_near():
    series, phases = waves(n=30, seed=1)
    seen = series.until(series.start + 7)
    later = torch.full((30, 1), 1.5, dtype=torch.float64) + seen.end[:, None]
    mean, deviation = forecaster().predict(seen, later, return_std=True)
    assert mean.shape == deviation.shape == (30, 1, 1)
    truth = 100 + 5 * np.sin(later[:, 0].numpy() + phases)
    last = seen.values.gather(1, (seen.lengths - 1)[:, None, None])[:, 0, 0].numpy()
    error = mean[:, 0, 0] - truth
    assert np.square(error).mean() < 0.7 * np.square(last - truth).mean()
    assert (np.abs(error) < 2 * deviation[:, 0, 0]).mean() > 0.7


@pytest.mark.slow
def test_an_ode_rnn_forecasts_a_wave():
    options = {"hidden": 24, "epochs": 150, "batch_size": 16, "lr": 0.02, "validation_fraction": 0, "random_state": 0}
    model, (series, phases) = odenets.SeriesForecaster(**options, device="cpu").fit(waves()[0]), waves(n=30, seed=1)
    assert model.score(series) > 0.7
    later = 1.5 + series.end[:, None]
    mean, deviation = model.predict(series, later, return_std=True)
    error = np.abs(mean[:, 0, 0] - 100 - 5 * np.sin(later[:, 0].numpy() + phases))
    assert (error < 2 * deviation[:, 0, 0]).mean() > 0.8
    assert deviation.mean() < 1.5


def test_times_are_for_all_samples_or_for_each_and_of_the_series_that_were_fitted():
    model, (series, _) = forecaster(), waves()
    at = [11.0, 12.5]
    np.testing.assert_array_equal(model.predict(at), model.predict(series, at))
    np.testing.assert_allclose(model.predict(at), model.predict(torch.tensor([at] * 48)), rtol=1e-6)
    np.testing.assert_allclose(model.predict(series[:3], at), model.predict(at)[:3], rtol=1e-5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(at), model.predict(at))
    assert model.plot(sample=3, cut=7.0).axes[0].get_ylabel() == "wave"


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([-1.0], "`times` of sample 0 has -1.0: give times from its first row on"),
        ([math.nan], "`times` of sample 0 has nan"),
        (np.zeros((3, 1)), r"`times` must be (K,) or (48, K), a row for each sample"),
        (None, "`times` must be the times to predict at"),
    ],
)
def test_times_that_cannot_be_predicted_at(times, words):
    with pytest.raises(ValueError, match="`times`") as caught:
        forecaster().predict(times)
    assert words in str(caught.value)


def test_series_of_one_row_leave_nothing_to_predict():
    with pytest.raises(ValueError, match="no sample with two times"):
        odenets.SeriesForecaster(**SMALL).fit(from_arrays([[0.0], [1.0]], [[1.0], [2.0]]))


FLOAT32 = "networks compute in float32, where sums differ in the last digits with the order of the samples"
UNLIKE = {"check_methods_sample_order_invariance": FLOAT32, "check_methods_subset_invariance": FLOAT32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Skipping check check_array_api_input")
@pytest.mark.parametrize("estimator", [odenets.SeriesClassifier, odenets.SeriesRegressor])
def test_scikit_learn_finds_its_conventions_kept(estimator):
    options = {"hidden": 16, "epochs": 50, "batch_size": 32, "lr": 0.03, "validation_fraction": 0}
    check_estimator(estimator("gru", **options), expected_failed_checks=UNLIKE)
