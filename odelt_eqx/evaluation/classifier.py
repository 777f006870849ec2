"""A small classifier trained on a data set, whose features compare samples of it."""

import dataclasses
from contextlib import closing
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from odelt_eqx.data import Data, Digits, Loading, Source, stream
from odelt_eqx.data.source import read_batches, sample_indices
from odelt_eqx.errors import InputError, check_numbers, check_range
from odelt_eqx.files import check_writable, write_json
from odelt_eqx.interop.safetensors import write_module
from odelt_eqx.nn.classifier import ConvNet, ConvNetConfig
from odelt_eqx.progress import Progress
from odelt_eqx.serialize import to_dict

WEIGHTS, REPORT = "classifier.safetensors", "classifier.json"

SCALE_EXAMPLES = 5000  # training examples, at most, that the scale of features is taken from
BATCH = 500  # examples read at a time once the classifier is trained


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained: AdamW with a cosine schedule.

    Args:
        data: the data set.
        loading: how it is read; `flip` adds mirror images.
        width: channels of the first convolution.
        features: size of the layer whose values are the features.
        steps: training steps.
        batch_size: examples per step.
        learning_rate: the first learning rate.
        weight_decay: decoupled weight decay.
        seed: seed of the weights and of the order of the data.
    """

    data: Data = Digits()
    loading: Loading = Loading()
    width: int = 32
    features: int = 128
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)
        check_range(self, "steps", "batch_size", "width", "features", least=1)
        check_range(self, "weight_decay", "seed", least=0)
        check_range(self, "learning_rate", above=0)


def train_classifier(config: ClassifierConfig, out: Path) -> tuple[float, list[Path]]:
    """Train a classifier and write its weights, its config and its held-out accuracy.

    Its features are scaled to a standard deviation of 1, so that none outweighs another in a
    distance.

    Returns:
        The held-out accuracy, and the files written: classifier.safetensors, classifier.json.

    Raises:
        InputError: the data cannot be read, are not images, or have a single class; the folder
            cannot be written.
    """
    check_writable(out / WEIGHTS)
    train, held_out = config.data.open("train"), config.data.open("held-out")
    if len(train.shape) != 3 or train.num_classes < 2:
        raise InputError(
            f"a classifier needs images of at least 2 classes; {config.data} has shape "
            f"{train.shape} and {train.num_classes}: use other features"
        )
    shape = ConvNetConfig(train.shape, train.num_classes, config.width, config.features)
    network = _fit(config, ConvNet(shape, key=jax.random.key(config.seed)), train)
    examples = read_batches(train, sample_indices(train, SCALE_EXAMPLES), BATCH)
    deviation = np.concatenate([np.asarray(network.features(x)) for x, _ in examples]).std(0)
    network = network.scale_features(jnp.asarray(1 / np.where(deviation > 0, deviation, 1)))
    predict = eqx.filter_jit(lambda images: network.logits(network.features(images)).argmax(-1))
    batches = read_batches(held_out, range(len(held_out)), BATCH)
    hits = np.concatenate([np.asarray(predict(images)) == labels for images, labels in batches])
    accuracy, paths = float(hits.mean()), [out / WEIGHTS, out / REPORT]
    write_module(network, shape, paths[0])
    write_json(paths[1], {**to_dict(config), "held_out": len(held_out), "accuracy": accuracy})
    return accuracy, paths


def _fit(config: ClassifierConfig, network: ConvNet, train: Source) -> ConvNet:
    """Return the network after training."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    state = optimizer.init(eqx.filter(network, eqx.is_inexact_array))

    def cross_entropy(network: ConvNet, images: Array, labels: Array) -> Array:
        logits = network.logits(network.features(images))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @eqx.filter_jit(donate="all")
    def step(
        network: ConvNet, state: optax.OptState, images: Array, labels: Array
    ) -> tuple[ConvNet, optax.OptState, Array]:
        loss, gradient = eqx.filter_value_and_grad(cross_entropy)(network, images, labels)
        weights = eqx.filter(network, eqx.is_inexact_array)
        updates, state = optimizer.update(gradient, state, weights)
        return eqx.apply_updates(network, updates), state, loss

    size = min(config.batch_size, len(train))
    reading = closing(stream(train, size, config.seed, loading=config.loading))
    with reading as batches, Progress("train the classifier", config.steps) as progress:
        for index in range(config.steps):
            batch = next(batches)
            network, state, loss = step(network, state, batch["x"], batch["condition"])
            if index % 50 == 0 or index == config.steps - 1:
                progress.show(loss=float(loss))
            progress.advance()
    return network
