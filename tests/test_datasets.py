from importlib.resources import files

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from modgrad.datasets import AVDigits, av_digits

SIZES = {"train": 1297, "test": 500}


@pytest.fixture(scope="module")
def splits() -> dict[str, AVDigits]:
    return dict(zip(SIZES, av_digits(image_noise=0), strict=True))


@pytest.mark.parametrize("name", SIZES)
def test_shapes_dtypes_and_ranges(splits: dict[str, AVDigits], name: str) -> None:
    data, size = splits[name], SIZES[name]
    assert len(data) == size
    assert data.audio.shape == (size, 1, 32, 42)
    assert data.audio.dtype == torch.float32
    assert data.image.shape == (size, 1, 8, 8)
    assert data.image.dtype == torch.float32
    assert data.target.shape == data.index.shape == (size,)
    assert data.target.dtype == data.index.dtype == torch.int64
    assert data.image.min() == 0
    assert data.image.max() == 1


def test_splits_are_disjoint_and_complete(splits: dict[str, AVDigits]) -> None:
    index = torch.cat([data.index for data in splits.values()])
    assert torch.equal(index.sort().values, torch.arange(1797))


@pytest.mark.parametrize("name", SIZES)
def test_every_class_is_in_the_split(splits: dict[str, AVDigits], name: str) -> None:
    assert set(splits[name].target.tolist()) == set(range(10))


def test_audio_is_standardised_on_the_train_split(splits: dict[str, AVDigits]) -> None:
    torch.testing.assert_close(splits["train"].audio.mean(), torch.tensor(0.0), rtol=0, atol=1e-4)
    torch.testing.assert_close(splits["train"].audio.std(), torch.tensor(1.0), rtol=0, atol=1e-4)
    assert splits["test"].audio.mean() != 0


@pytest.mark.parametrize("name", SIZES)
def test_every_utterance_has_content_of_its_own(splits: dict[str, AVDigits], name: str) -> None:
    audio = splits[name].audio.flatten(1)
    assert audio.isfinite().all()
    assert audio.std(dim=1).min() > 0.1
    assert len(np.unique(audio.numpy(), axis=0)) == SIZES[name]


def test_images_and_targets_are_those_of_scikit_learn(splits: dict[str, AVDigits]) -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    for data in splits.values():
        index = data.index.numpy()
        np.testing.assert_array_equal(data.image[:, 0].numpy() * 16, digits.images[index])
        np.testing.assert_array_equal(data.target.numpy(), digits.target[index])


def test_image_noise_is_fixed_and_leaves_the_rest(splits: dict[str, AVDigits]) -> None:
    for clean, noisy, again in zip(splits.values(), av_digits(0.3), av_digits(0.3), strict=True):
        assert torch.equal(noisy.image, again.image)
        assert torch.equal(noisy.audio, clean.audio)
        assert torch.equal(noisy.target, clean.target)
        assert (noisy.image - clean.image).std().item() == pytest.approx(0.3, rel=0.02)


def test_data_loader_round_trip(splits: dict[str, AVDigits]) -> None:
    data = splits["test"]
    inputs, targets = zip(*DataLoader(data, batch_size=64), strict=True)
    assert torch.equal(torch.cat([batch["audio"] for batch in inputs]), data.audio)
    assert torch.equal(torch.cat([batch["visual"] for batch in inputs]), data.image)
    assert torch.equal(torch.cat(targets), data.target)


def test_the_file_is_small() -> None:
    archive = files("modgrad.datasets").joinpath("av_digits.npz").read_bytes()
    assert len(archive) < 2_500_000
