"""The cubic experiment: its data, its networks, how they are trained, and what is made of the numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from odenets.experiments import cubic
from odenets.experiments.cubic import Config, network, points, summarise, table, target, train_one
from odenets.experiments.flow import learned_flow

TINY = Config(epochs=1)


def run_row(setting, network, seed, error, **changes):
    row = {"settings": setting, "network": network, "seed": seed, "out_of_sample": error, "in_sample": 1.0}
    return {**row, "extrapolation": 2.0, "seconds": 3.0, "nfe": None, "parameters": 61, **changes}


# -- data and networks


def test_the_data_are_ten_points_of_the_function_with_noise():
    x, clean = points(seed=3, noise=0.0)
    assert x[:, 0].numpy() == pytest.approx(np.linspace(-2.5, 2.5, 10))
    assert clean.numpy() == pytest.approx(x.numpy() ** 3 + 0.1 * x.numpy(), rel=1e-5)
    noise = torch.cat([points(seed, noise=0.5)[1] - clean for seed in range(200)])
    assert noise.mean().item() == pytest.approx(0.0, abs=0.05)
    assert noise.std().item() == pytest.approx(0.5, rel=0.05)


def test_the_seed_decides_noise_and_weights():
    assert torch.equal(points(1, 1.0)[1], points(1, 1.0)[1])
    assert not torch.equal(points(1, 1.0)[1], points(2, 1.0)[1])
    for kind in cubic.NAMES:
        one, same, other = (next(network(kind, TINY, seed).parameters()) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


@pytest.mark.parametrize(("kind", "count"), [("resnet", 61), ("odenet", 81)])
def test_the_networks_have_the_documents_numbers_of_parameters(kind, count):
    assert sum(p.numel() for p in network(kind, TINY, 0).parameters()) == count


def test_the_resnet_repeats_one_step():
    resnet = network("resnet", replace(TINY, depth=3), 0)
    w1, b1, w2, b2 = resnet.parameters()
    z = x = torch.linspace(-1, 1, 5)[:, None]
    for _ in range(3):
        z = z + torch.tanh(z @ w1.T + b1) @ w2.T + b2
    torch.testing.assert_close(resnet(x), z)


# -- training


def test_the_documents_training_is_gradient_descent_on_all_ten_points(tmp_path):
    trained = train_one("resnet", "document", TINY, 5, tmp_path, resume=False, progress=False)
    plain = network("resnet", TINY, 5)
    x, y = points(5, 1.0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.mse_loss(plain(x), y).backward()
        optimizer.step()
    for ours, theirs in zip(trained.network.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", cubic.NAMES)
def test_a_row_measures_the_trained_network(tmp_path, kind):
    model, row, history = train_one(kind, "chosen", TINY, 0, tmp_path, resume=False, progress=False)
    x, y = points(0, 1.0)
    inside, wide = (torch.linspace(-edge, edge, 101)[:, None] for edge in (2.5, 3.0))
    with torch.no_grad():
        assert row["in_sample"] == pytest.approx(((model(x) - y) ** 2).mean().item(), rel=1e-4)
        assert row["out_of_sample"] == pytest.approx(((model(inside) - target(inside)) ** 2).mean().item(), rel=1e-4)
        assert row["extrapolation"] == pytest.approx(((model(wide) - target(wide)) ** 2).mean().item(), rel=1e-4)
    assert (row["network"], row["settings"], row["seed"]) == (cubic.NAMES[kind], "chosen", 0)
    assert [record["epoch"] for record in history] == [1]
    assert (row["nfe"] is None) == (kind == "resnet")


@pytest.mark.parametrize("setting", cubic.SETTINGS)
def test_iterations_come_in_whole_epochs(setting):
    for training in cubic.SETTINGS[setting].values():
        assert training.iterations % cubic.STEPS_PER_EPOCH == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"settings": "mine"}, "`settings` must be one of document, chosen, both; got 'mine'"),
        ({"noise": -1.0}, "`noise` must be at least 0, got -1.0"),
        ({"noise": float("nan")}, "`noise` must be at least 0, got nan"),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"rtol": -1.0}, "`rtol` must be a number ≥ 0, got -1.0"),
    ],
)
def test_a_config_refuses_what_cannot_be_run(wrong, message):
    with pytest.raises(ValueError, match=message):
        Config(**wrong)


# -- what is made of the numbers


def test_the_summary_is_median_and_range_over_the_seeds():
    errors = [9.0, 1.0, 4.0]
    rows = [run_row("document", "ResNet", seed, error, in_sample=error / 2) for seed, error in enumerate(errors)]
    rows += [run_row("chosen", "ResNet", 0, 100.0)]
    document, chosen = summarise(rows)
    assert (document["out_of_sample"], document["lowest"], document["highest"]) == (4.0, 1.0, 9.0)
    assert (document["in_sample"], document["seeds"], document["document"]) == (2.0, 3, 4.673)
    assert (chosen["settings"], chosen["seeds"], chosen["document"]) == ("chosen", 1, None)


def test_the_table_leaves_out_what_would_say_nothing():
    pair = [run_row("document", name, seed, 1.0) for seed in (0, 1) for name in ("ResNet", "ODE-Net")]
    both = table(summarise([*pair, *(row | {"settings": "chosen"} for row in pair)]))
    assert both.columns == tuple(cubic.COLUMNS.values())
    assert both.title == "Mean squared error, median of 2 seeds"
    document = table(summarise(pair))
    assert document.columns[0] == "network"
    assert "document" in document.columns
    chosen = table(summarise([row | {"settings": "chosen"} for row in pair[:2]]))
    assert set(cubic.COLUMNS.values()) - set(chosen.columns) == {"settings", "document", "lowest", "highest"}
    assert chosen.title == "Mean squared error, one seed"


def test_the_lead_names_the_better_network_of_each_setting_first():
    errors = {("document", "ResNet"): 3.0, ("document", "ODE-Net"): 2.0}
    errors |= {("chosen", "ResNet"): 0.25, ("chosen", "ODE-Net"): 0.5}
    rows = [run_row(setting, name, 0, error) for (setting, name), error in errors.items()]
    document, chosen, about = cubic._lead(rows, ["document", "chosen"], 1).split("\n\n")
    error = "with an out-of-sample mean squared error of"
    nearer = "comes nearer to the function than"
    assert (
        document == f"The document's settings: the ODE-Net {nearer} the ResNet, {error} 2.00 against 3.00 (one seed)."
    )
    assert chosen == f"Settings of our choice: the ResNet {nearer} the ODE-Net, {error} 0.25 against 0.50 (one seed)."
    assert "S. Della Bona and E. Dumez (2021), “the document”" in about


def test_the_lead_counts_the_seeds_of_the_better_network():
    pairs = [(1.0, 2.0), (3.0, 1.0), (1.5, 4.0)]  # medians 1.5 and 2
    rows = [
        run_row("chosen", name, seed, error)
        for seed, pair in enumerate(pairs)
        for name, error in zip(cubic.NAMES.values(), pair)
    ]
    lead = cubic._lead(rows, ["chosen"], 3)
    assert "the ResNet comes nearer" in lead
    assert "1.50 against 2.00 (medians of 3 seeds; nearer in 2 of them)" in lead


@pytest.mark.parametrize(("seeds", "several"), [(1, False), (2, True)])
def test_one_seed_has_no_median_no_range_and_no_strip(tmp_path, seeds, several):
    result = cubic.run(replace(TINY, seeds=seeds, settings="document"), tmp_path, progress=False)
    (section,) = result.sections
    (table,) = section.tables
    words = f"{result.lead} {table.title} {table.note} {' '.join(p.caption for p in section.pictures)}"
    assert any(word in words for word in ("median", "mean of", "range", "lowest")) == several
    assert ("document-errors" in {picture.name for picture in section.pictures}) == several


def test_the_trajectories_of_the_flow_never_cross():
    block = network("odenet", TINY, 0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(4)  # far from the identity, as after training
    (axes,) = learned_flow(block, 2.5, 16).axes
    paths = np.array([line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 61])
    assert paths.shape == (15, 61)
    assert np.abs(paths[:, -1] - paths[:, 0]).max() > 0.5
    assert (np.diff(paths, axis=0) > 0).all()


def test_the_flow_of_a_resnet_is_refused():
    with pytest.raises(TypeError, match="`block` must be an ODEBlock, got FieldSteps"):
        learned_flow(network("resnet", TINY, 0), 2.5, 16)
