"""`odenets fit` and `odenets predict`: a CSV file in, a folder and predictions out, and one line for what is wrong."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from odenets import cli
from odenets.data.errors import DataError
from odenets.tabular.folder import load
from odenets.tabular.read import Columns, as_series, outcomes_of_column, outcomes_of_file, read_csv

QUICK = ("--model", "gru", "--hidden", 4, "--epochs", 2, "--quiet")
COLUMNS = ("--id", "who", "--time", "hour", "--target", "died")


def table(n=24, seed=0):
    """Lines of n samples with ids that begin with zeros; those that rise have died."""
    random = np.random.RandomState(seed)
    parts = []
    for i in range(n):
        hours = np.sort(random.uniform(0, 10, 4)).round(2)
        slope = 1.0 if i % 2 else -1.0
        x = slope * hours + random.normal(size=4)
        y = np.where(random.uniform(size=4) < 0.3, math.nan, random.normal(size=4))
        known = {"age": 40.0 + i, "sex": None if i == 5 else "F" if i % 3 else "M ", "died": i % 2}
        parts.append(pd.DataFrame({"who": f"{i:03}", "hour": hours, "x": x, "y": y, **known}))
    return pd.concat(parts, ignore_index=True)


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


def refusal(*arguments):
    """The one line with which a command ends with code 1."""
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("odenets: ")
    return line


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The file, the folder, and what the command said."""
    place = tmp_path_factory.mktemp("fitted")
    table().to_csv(place / "series.csv", index=False)
    static = ("--static", "age", "--static", "sex")
    result = call("fit", place / "series.csv", *COLUMNS, *static, *QUICK, "--out", place / "out")
    assert result.exit_code == 0, result.output
    return place / "series.csv", place / "out", result


def test_fit_leaves_a_model_without_code_predictions_and_a_report(fitted):
    _, folder, result = fitted
    assert {path.name for path in folder.iterdir()} == {
        "model", "predictions.csv", "report.html", "summary.json", "figures",
    }  # fmt: skip
    assert {path.name for path in (folder / "model").iterdir()} == {
        "settings.json", "weights.safetensors", "manifest.json",
    }  # fmt: skip
    settings = json.loads((folder / "model" / "settings.json").read_text())
    assert settings["columns"]["values"] == ["x", "y"]
    assert settings["classes"] == [0, 1]
    with safe_open(folder / "model" / "weights.safetensors", "pt") as weights:
        assert "gru.weight_ih_l0" in weights.keys()  # noqa: SIM118 — it is no dict
    lines = pd.read_csv(folder / "predictions.csv", dtype={"who": str})
    assert lines["who"].tolist() == [f"{i:03}" for i in range(24)]
    assert lines["part"].value_counts().to_dict() == {"training": 19, "test": 5}
    assert (lines["outcome"] == np.arange(24) % 2).all()
    assert np.allclose(lines["probability of 0"] + lines["probability of 1"], 1)
    page = (folder / "report.html").read_text()
    assert all(words in page for words in ("Learning curve", "Right and wrong", "Precision and recall"))
    assert all(words in page and words in result.stdout for words in ("AUROC", "logistic regression", "always "))
    assert f"Report: {folder / 'report.html'}" in result.stdout.replace("\n", "")


def test_predict_gives_what_fit_gave_and_writes_once(fitted, tmp_path):
    file, folder, _ = fitted
    result = call("predict", folder, file, "--out", tmp_path / "new.csv")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"24 samples: {tmp_path / 'new.csv'}\n"
    then, now = (pd.read_csv(path) for path in (folder / "predictions.csv", tmp_path / "new.csv"))
    pd.testing.assert_frame_equal(now, then.drop(columns=["part", "outcome"]), rtol=1e-5)
    assert "is there already: name another file by `--out`" in refusal(
        "predict", folder, file, "--out", tmp_path / "new.csv"
    )


def test_a_model_that_is_read_again_is_the_one_that_was_written(fitted):
    estimator, columns = load(fitted[1])
    assert (columns.id, columns.time, columns.static) == ("who", "hour", ("age", "sex"))
    assert columns.words == {"sex": ("F", "M")}
    assert estimator.channels_ == ("x", "y")
    assert estimator.get_params()["hidden"] == 4


def test_outcomes_may_be_text_or_amounts_in_a_file_of_their_own(tmp_path):
    frame = table().drop(columns=["died", "sex"]).assign(days=7.0)  # which is no measurement, whatever it holds
    frame.to_csv(tmp_path / "s.csv", index=False)
    stay = pd.DataFrame({"who": [f"{i:03}" for i in range(24)][::-1], "days": np.linspace(1, 9, 24)})
    stay.to_csv(tmp_path / "o.csv", index=False)
    arguments = ("--id", "who", "--time", "hour", "--target", "days", "--outcomes", tmp_path / "o.csv")
    result = call("fit", tmp_path / "s.csv", *arguments, *QUICK, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "always the mean" in result.stdout
    lines = pd.read_csv(tmp_path / "out" / "predictions.csv")
    np.testing.assert_allclose(lines["outcome"], np.linspace(1, 9, 24)[::-1])
    assert load(tmp_path / "out")[1].values == ("x", "y", "age")
    assert "Residuals" in (tmp_path / "out" / "report.html").read_text()


def broken(name, frame):
    match name:
        case "two outcomes":
            frame.loc[6, "died"] = 5
        case "no outcome":
            frame["died"] = frame["died"].where(frame["who"] != "002")
        case "text":
            frame["x"] = frame["x"].astype(object)
            frame.loc[3, "x"] = "high"
        case "no measurement":
            frame.loc[frame["who"] == "001", ["x", "y"]] = math.nan
        case "one class":
            frame["died"] = 1
        case "few":
            frame = frame[frame["who"] < "004"]
        case "no time":
            frame = frame.rename(columns={"hour": "minute"})
        case "text measured":
            frame["x"] = "high"
        case "too many words":
            frame["age"] = [f"born {i}" for i in range(len(frame))]
        case "words and numbers":
            frame["age"] = frame["age"].astype(object)
            frame.loc[3, "age"] = "old"
        case "two zones":
            frame["hour"] = "2020-01-01 01:00+01:00"
            frame.loc[3, "hour"] = "2020-01-01 02:00"
    return frame


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two outcomes", "who '001' has 1 in line 6 and 5 in line 8: mend it, or give `--outcomes`"),
        ("no outcome", "has no 'died' of who 002: add it, or leave these samples out"),
        ("text", "line 5, column 'x': 'high' is not a number: mend it, leave it empty where the value is missing\n"),
        ("words and numbers", "line 5, column 'age': 'old' is not a number: mend it, leave it empty where"),
        ("text measured", "line 2, column 'x': 'high' is no number: name the column by `--static`"),
        ("too many words", "column 'age' has 96 different words, and each becomes a number, at most 50: leave it out"),
        ("two zones", "column 'hour' mixes time zones: write all of them in one form\n"),
        ("no measurement", "who '001' has no measurement at all: leave its lines out"),
        ("one class", "two classes or more"),
        ("few", "has 4 samples: give at least 10"),
        ("no time", "has no column 'hour'; it has who, minute, x, y, age, sex, died"),
    ],
)
def test_a_file_that_is_wrong_is_one_line_and_leaves_nothing(tmp_path, name, words):
    broken(name, table()).to_csv(tmp_path / "s.csv", index=False)
    static = ("--static", "age", "--static", "sex")
    arguments = ("fit", tmp_path / "s.csv", *COLUMNS, *static, *QUICK, "--out", tmp_path / "out")
    assert words in refusal(*arguments) + "\n"
    assert not (tmp_path / "out").exists()


def test_words_of_a_sample_are_numbers_of_0_and_1():
    columns = Columns("who", "hour", ("x", "y"), ("sex", "age"), words={"sex": ("F", "M")})
    static = as_series(table(), Path("s.csv"), columns).static
    assert static[3].tolist() == [0, 1, 43]
    assert static[4].tolist() == [1, 0, 44]
    assert static[5].isnan().tolist() == [True, True, False]


def test_an_unknown_word_is_told_with_its_line(fitted, tmp_path):
    _, folder, _ = fitted
    frame = table()
    frame.loc[frame["who"] == "003", "sex"] = "X"
    frame.to_csv(tmp_path / "s.csv", index=False)
    words = "s.csv, line 14, column 'sex': 'X' is none of F, M, which the model was trained with: mend it, or leave"
    assert words in refusal("predict", folder, tmp_path / "s.csv", "--out", tmp_path / "p.csv")


def test_lines_are_those_of_the_file(tmp_path):
    text = 'who,t,note,x\n\na,0,"two\nlines",1\n   \nb,0,,1\n\nb,1,,high\n'
    (tmp_path / "s.csv").write_text(text)
    number = text[: text.index("b,1")].count("\n") + 1
    frame = read_csv(tmp_path / "s.csv", "who")
    with pytest.raises(DataError, match=f"s.csv, line {number}, column 'x': 'high'"):
        as_series(frame, tmp_path / "s.csv", Columns("who", "t", ("x",)))
    (tmp_path / "o.csv").write_text("who,died\n\na,1\n\n\nb,0\n\nb,1\n")
    with pytest.raises(DataError, match=r"o\.csv, line 8: who 'b' has a line already"):
        outcomes_of_file(tmp_path / "o.csv", "who", "died", ["a", "b"])
    with pytest.raises(DataError, match="0 in line 6 and 1 in line 8"):
        outcomes_of_column(read_csv(tmp_path / "o.csv", "who"), tmp_path / "o.csv", "who", "died", ["a", "b"])


def test_outcomes_of_unknown_samples_and_twice_are_named(tmp_path):
    table().drop(columns=["died", "sex"]).to_csv(tmp_path / "s.csv", index=False)
    outcomes = pd.DataFrame({"who": [f"{i:03}" for i in range(26)], "died": [0, 1] * 13})
    arguments = (tmp_path / "s.csv", *COLUMNS, "--outcomes", tmp_path / "o.csv", *QUICK, "--out", tmp_path / "out")
    outcomes.to_csv(tmp_path / "o.csv", index=False)
    assert "names samples that have no series, 024, 025: leave their lines out" in refusal("fit", *arguments)
    outcomes.iloc[[0, 1, 1]].to_csv(tmp_path / "o.csv", index=False)
    assert "o.csv, line 4: who '001' has a line already" in refusal("fit", *arguments)


def test_wrong_options_and_folders_are_one_line(fitted, tmp_path):
    file, folder, _ = fitted
    fit = ("fit", file, *COLUMNS, "--values", "x", *QUICK, "--out", tmp_path / "out")
    assert "`--task` must be one of auto, classification, regression" in refusal(*fit, "--task", "guess")
    assert "is named by `--values` or `--static`, too" in refusal(*fit, "--static", "died")
    assert "`model` must be one of 'ode_rnn'" in refusal(*fit, "--model", "lstm")
    assert "is not empty. Name another by `--out`" in refusal("fit", file, *COLUMNS, *QUICK, "--out", folder)
    assert "there is no file" in refusal("fit", tmp_path / "no.csv", *COLUMNS, "--out", tmp_path / "out")
    assert "holds no trained model" in refusal("predict", tmp_path, file, "--out", tmp_path / "p.csv")
    table().drop(columns="y").to_csv(tmp_path / "other.csv", index=False)
    assert "has no column 'y'" in refusal("predict", folder, tmp_path / "other.csv", "--out", tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_a_damaged_model_is_told(fitted, tmp_path):
    file, folder, _ = fitted
    weights = folder / "model" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    try:
        assert "The model is damaged" in refusal("predict", folder, file, "--out", tmp_path / "p.csv")
    finally:
        weights.write_bytes(whole)


def test_rows_out_of_order_are_sorted_with_a_note(fitted, tmp_path):
    _, folder, _ = fitted
    table().iloc[::-1].to_csv(tmp_path / "back.csv", index=False)
    result = call("predict", folder, tmp_path / "back.csv", "--out", tmp_path / "p.csv")
    assert result.exit_code == 0
    assert "24 samples were not in the order of time, the first '023': sorted" in result.stderr
