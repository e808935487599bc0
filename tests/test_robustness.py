"""Robustness: the attacks on a network whose worst case is known, the pictures, and the experiment's small form."""

import gzip

import pytest
import torch
from torch import nn

from odenets.data.errors import DataError
from odenets.data.images import load_images
from odenets.experiments import attacks, robustness
from odenets.experiments.robustness import CNN, ODENET, SMALL, STEADY, Config, network, run
from odenets.nn import count_parameters

WEIGHTS = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 0.3, -0.5]])


def linear():
    model = nn.Linear(3, 2, bias=False)
    model.weight = nn.Parameter(WEIGHTS.clone())
    return model


@pytest.mark.parametrize("make", [attacks.fgsm, attacks.pgd, attacks.spsa])
def test_an_attack_on_a_linear_network_is_the_corner_of_the_box(make):
    x, y = torch.full((4, 3), 0.5), torch.tensor([0, 1, 0, 1])
    worst = (WEIGHTS[1 - y] - WEIGHTS[y]).sign() * 0.2 + 0.5
    torch.testing.assert_close(make(0.2)(linear(), x, y), worst)


@pytest.mark.parametrize("make", [attacks.noise, attacks.fgsm, attacks.pgd, attacks.spsa])
def test_pictures_stay_pictures(make):
    x, y = torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1])
    found = make(0.3)(linear(), x, y)
    assert found.shape == x.shape
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    if make is not attacks.noise:
        assert float((found - x).abs().max()) <= 0.3 + 1e-6
    assert torch.equal(make(0.0)(linear(), x, y), x)


def test_the_networks_are_of_equal_size():
    sizes = {count_parameters(network(name, Config(), 0)) for name in (CNN, ODENET, STEADY)}
    assert len(sizes) == 1


def test_the_small_form_runs_and_goes_on(tmp_path):
    config = Config(**SMALL)
    first = run(config, tmp_path, progress=False)
    assert len(first.summary["runs"]) == 6
    for row in first.summary["runs"]:
        assert all(0 <= row[key] <= 1 for key in row if key.split()[0] in (*robustness.KINDS, "clean"))
        if row["network"] == CNN:
            assert row["pgd 0.1"] == row["tight 0.1"]
    again = run(config, tmp_path, resume=True, progress=False)
    assert again.summary["runs"] == first.summary["runs"]
    assert first.lead.count("best:") == 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"data": "cifar"}, "`data` must be one of digits, mnist"),
        ({"seeds": 0}, "`seeds` must be at least 1"),
        ({"rtol": -1.0}, "rtol"),
    ],
)
def test_options_that_make_no_sense(options, text):
    with pytest.raises(ValueError, match=text):
        Config(**options)


# -- pictures


def write_mnist(folder, part="t10k", count=20, zipped=True, cut=0):
    x, y = torch.randint(0, 256, (count, 4, 5)), torch.arange(count) % 10
    for name, magic, values in ((f"{part}-images-idx3-ubyte", 0x803, x), (f"{part}-labels-idx1-ubyte", 0x801, y)):
        head = b"".join(int(n).to_bytes(4) for n in (magic, *values.shape))
        content = (head + bytes(values.flatten().tolist()))[: len(head) + values.numel() - cut]
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    return x, y


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_files_are_read_and_divided(tmp_path, zipped):
    x, y = write_mnist(tmp_path, zipped=zipped)
    images = load_images("mnist", tmp_path)
    parts = (images.train, images.validation, images.test)
    assert [len(part[0]) for part in parts] == [16, 2, 2]
    found = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found[0][:, 0], x[order].float() / 255)
    assert torch.equal(found[1], y[order])


def test_the_official_parts_where_both_are_there(tmp_path):
    (tmp_path / "mnist").mkdir()
    write_mnist(tmp_path / "mnist")
    write_mnist(tmp_path / "mnist", "train", 30)
    images = load_images("mnist", tmp_path)
    assert [len(part[0]) for part in (images.train, images.validation, images.test)] == [27, 3, 20]


def test_mnist_without_files(tmp_path, monkeypatch):
    monkeypatch.delenv("ODENETS_DATA", raising=False)
    with pytest.raises(DataError, match=r"MNIST is read from files: pass `data_dir`"):
        load_images("mnist")
    with pytest.raises(DataError, match=r"There is no t10k-images-idx3-ubyte \(or t10k-images-idx3-ubyte\.gz\) in"):
        load_images("mnist", tmp_path)


def test_a_file_that_is_cut_short(tmp_path):
    write_mnist(tmp_path, zipped=False, cut=3)
    with pytest.raises(DataError, match=r"is damaged: it is no whole file of MNIST's images"):
        load_images("mnist", tmp_path)
    write_mnist(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"cannot be read"):
        load_images("mnist", tmp_path)


def test_the_digits_come_with_scikit_learn():
    images = load_images()
    assert images.train[0].shape == (1439, 1, 8, 8)
    assert images.train[0].max() == 1
    assert len(images.validation[1]) == len(images.test[1]) == 179
