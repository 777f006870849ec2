"""A small classifier trained on a data set itself, where Inception has nothing to say of it."""

import dataclasses
import json
from contextlib import closing
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from odelt_eqx.data import Data, Digits, Loading, Source, open_source, stream
from odelt_eqx.data.reading import in_batches, some
from odelt_eqx.errors import InputError
from odelt_eqx.files import replacing
from odelt_eqx.interop.safetensors import write_module
from odelt_eqx.nn.classifier import ConvNet, ConvNetConfig
from odelt_eqx.progress import Progress
from odelt_eqx.serial import converter

WEIGHTS = "classifier.safetensors"
REPORT = "classifier.json"

SCALED_BY = 5000
"""Training pictures at most whose features are brought to a deviation of 1."""


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained: AdamW whose rate falls along a cosine.

    Args:
        data: what it learns.
        loading: how that is read; `flip` shows mirror images as well.
        width: channels of the first convolution.
        features: values in the layer that pictures are compared by.
        steps: training steps.
        batch_size: examples per step.
        learning_rate: the first rate.
        weight_decay: decoupled weight decay.
        seed: decides the first weights and the order of the data.
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
        """Check the ranges."""
        if self.steps < 1:
            raise InputError(f"steps must be at least 1; got {self.steps}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be positive; got {self.learning_rate}")


def train_classifier(config: ClassifierConfig, out: Path) -> tuple[float, list[Path]]:
    """Train a classifier and write its weights, and beside them what it was trained on.

    Args:
        config: how it is trained.
        out: the folder to write to.

    Returns:
        The share of held-out pictures that it names rightly, and the files written:
        classifier.safetensors, classifier.json.

    Raises:
        InputError: the data cannot be read, or is of one class.
    """
    train, held_out = open_source(config.data, "train"), open_source(config.data, "held-out")
    if train.num_classes < 2:
        raise InputError("a classifier needs two classes; this data has one: use other features")
    rows, columns, channels = train.image_shape
    shape = ConvNetConfig(
        (rows, columns, channels), train.num_classes, config.width, config.features
    )
    network = _fitted(config, ConvNet(shape, key=jax.random.key(config.seed)), train)
    network = _in_standard_units(network, train)
    accuracy = held_out_accuracy(network, held_out)
    out.mkdir(parents=True, exist_ok=True)
    weights, report = out / WEIGHTS, out / REPORT
    write_module(network, shape, weights)
    told = {**converter(Data).unstructure(config), "held_out": len(held_out), "accuracy": accuracy}
    with replacing(report) as beside:
        beside.write_text(json.dumps(told, indent=2) + "\n")
    return accuracy, [weights, report]


def _fitted(config: ClassifierConfig, network: ConvNet, train: Source) -> ConvNet:
    """Return the network after training."""
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimizer = optax.adamw(rate, weight_decay=config.weight_decay)
    state = optimizer.init(eqx.filter(network, eqx.is_inexact_array))

    @eqx.filter_jit(donate="all")
    def step(
        network: ConvNet, state: optax.OptState, images: Array, labels: Array
    ) -> tuple[ConvNet, optax.OptState, Array]:
        loss, gradient = eqx.filter_value_and_grad(_cross_entropy)(network, images, labels)
        weights = eqx.filter(network, eqx.is_inexact_array)
        updates, state = optimizer.update(gradient, state, weights)
        return eqx.apply_updates(network, updates), state, loss

    size = min(config.batch_size, len(train))
    reading = closing(stream(train, size, config.seed, loading=config.loading))
    with reading as batches, Progress("train the classifier", config.steps) as progress:
        for index in range(config.steps):
            batch = next(batches)
            network, state, loss = step(network, state, batch["image"], batch["label"])
            if index % 50 == 0 or index == config.steps - 1:
                progress.show(loss=float(loss))
            progress.advance()
    return network


def _in_standard_units(network: ConvNet, train: Source) -> ConvNet:
    """Return a network of the same answers whose features deviate by 1 over the training data.

    So no feature outweighs others in a distance. Features are rectified: scaling the layer that
    makes them scales them.
    """
    batches = in_batches(train, some(train, SCALED_BY), 500)
    seen = np.concatenate([np.asarray(network.features(images)) for images, _ in batches])
    deviation = seen.std(0)
    scale = jnp.asarray(1 / np.where(deviation > 0, deviation, 1))
    hidden, out = network.hidden, network.out
    assert hidden.bias is not None  # for the type checker
    return eqx.tree_at(
        lambda n: (n.hidden.weight, n.hidden.bias, n.out.weight),
        network,
        (hidden.weight * scale[:, None], hidden.bias * scale, out.weight / scale),
    )


def _cross_entropy(
    network: ConvNet,
    images: Float[Array, "batch height width channels"],
    labels: Int[Array, " batch"],
) -> Float[Array, ""]:
    logits = network.logits(network.features(images))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def held_out_accuracy(network: ConvNet, held_out: Source, batch_size: int = 500) -> float:
    """Return the share of pictures that the network names rightly."""
    named = eqx.filter_jit(lambda images: network.logits(network.features(images)).argmax(-1))
    right = [
        np.asarray(named(images)) == labels
        for images, labels in in_batches(held_out, range(len(held_out)), batch_size)
    ]
    return float(np.concatenate(right).mean())
