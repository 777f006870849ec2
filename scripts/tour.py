"""A tour of odelt_eqx in cells: train, sample, dial, guide, invert, measure, build."""

# %% [markdown]
# # A tour of odelt_eqx
#
# Cells for an editor that knows the percent format (VS Code, PyCharm, Jupyter with jupytext), or
# all of it at once: `python scripts/tour.py`, under five minutes on 2 CPU cores. What it trains and
# draws is in `runs/tour`.

# %%
import dataclasses
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt
from sklearn.datasets import make_moons

import odelt_eqx as odelt
from odelt_eqx.data import digits

FOLDER = Path("runs/tour")


def show(name, rows):
    """Draw rows of images in [-1, 1], each under its title, and save the picture."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 1.2 * len(rows)), squeeze=False)
    for axis, (title, images) in zip(axes[:, 0], rows.items(), strict=True):
        axis.imshow(np.concatenate(np.asarray(images)[..., 0], axis=1), "gray", vmin=-1, vmax=1)
        axis.set_title(title, fontsize=8, loc="left")
        axis.set_axis_off()
    figure.tight_layout()
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", dpi=100)


# %% [markdown]
# ## Train
#
# A preset is a config like any other: here the transformer on 8 x 8 digits, for a quarter of its
# steps. One pass trains every depth. A run that exists goes on where it was stopped.

# %%
RUN = FOLDER / "digits"
config = dataclasses.replace(odelt.preset("digits"), steps=700)
odelt.train(config, RUN, resume=RUN.exists())
model = odelt.load(RUN)
print(f"depths {model.depths} of {model.depth} blocks, shape {model.shape}")

# %% [markdown]
# ## Sample, and turn both dials
#
# The same noise with fewer or more time steps, and with a part of the network or all of it.

# %%
noise = jax.random.normal(jax.random.key(0), (10, *model.shape))
labels = jnp.arange(10)
rows = {
    f"time steps {steps}, depth {depth}": odelt.sample(
        model, noise, labels, time=odelt.FixedSteps(steps=steps), depth=depth
    )
    for steps in (1, 4, 16)
    for depth in model.depths
}
show("dials", rows)

# %% [markdown]
# Any solver of diffrax serves on either axis, and the statistics say what a sample took.

# %%
for plan in (
    odelt.FixedSteps(steps=8, solver="ab2"),
    odelt.FixedSteps(steps=4, solver="heun"),
    odelt.Adaptive(rtol=1e-2),
):
    _, stats = odelt.sample_with_stats(model, noise, labels, time=plan)
    print(f"{plan.solver}: {stats.evaluations[0]} evaluations, {stats.blocks[0]} blocks")

# %% [markdown]
# A compiled sampler is what a server calls.

# %%
config = odelt.SampleConfig(time=odelt.FixedSteps(steps=8, solver="ab2"), depth_guidance=0.5)
sampler = odelt.CompiledSampler(model, noise, labels, config)
start = time.perf_counter()
images, _ = sampler(noise, labels)
print(f"10 images in {1e3 * (time.perf_counter() - start):.1f} ms")

# %% [markdown]
# ## Guide by depth
#
# The velocity of the whole network is pushed away from that of its first blocks, which was computed
# on the way: `v_6 + w (v_6 - v_2)`.

# %%
eight = odelt.FixedSteps(steps=8, solver="ab2")
guided = {
    f"weight {w}": odelt.sample(model, noise, labels, time=eight, depth_guidance=w)
    for w in (0.0, 0.5, 2.0)
}
show("guidance", guided)

# %% [markdown]
# ## Invert
#
# The same ODE leads from data back to noise; with another label it returns as another digit.

# %%
held_out = digits("held-out")
picked = [int(np.flatnonzero(held_out.condition == label)[0]) for label in range(10)]
data = jnp.asarray(held_out.x[np.array(picked)])
fine = odelt.FixedSteps(steps=16, solver="heun")
back = odelt.invert(model, data, labels, time=fine)
again = odelt.sample(model, back, labels, time=fine)
print(f"there and back: mean absolute error {float(jnp.abs(again - data).mean()):.4f}")
other = odelt.sample(model, back, (labels + 1) % 10, time=fine)
show("inversion", {"held-out digits": data, "there and back": again, "as the next digit": other})

# %% [markdown]
# ## Likelihood

# %%
noisy = data + jax.random.uniform(jax.random.key(1), data.shape, minval=-1 / 16, maxval=1 / 16)
found = odelt.log_likelihood(
    model,
    noisy,
    labels,
    time=odelt.FixedSteps(steps=8, solver="heun"),
    probes=4,
    key=jax.random.key(2),
)
bits = found.bits_per_dim + np.log2(16 / 2)  # of the 17 grey levels
print(f"bits per dimension of held-out digits: {float(bits.mean()):.2f}")

# %% [markdown]
# ## Your own block
#
# A block maps the tokens (here one vector) and a condition to new ones. `ODEBlock` makes groups of
# them a vector field over length; all else sees a `Network`.


# %%
class Block(eqx.Module):  # noqa: D101
    mlp: eqx.nn.MLP

    def __call__(self, h, c, *, key=None):  # noqa: D102
        return h + self.mlp(jnp.concatenate([h, c]))


class Net(odelt.Network):  # noqa: D101
    read: eqx.nn.Linear
    groups: tuple[odelt.ODEBlock, ...]
    write: eqx.nn.Linear
    shape, condition_type, depths, flow_index, length = (2,), None, (1, 2, 3), 0, odelt.FixedSteps()
    anytime = True

    def velocity(self, inputs):  # noqa: D102
        h, c = jax.vmap(self.read)(inputs.x), inputs.t[:, None]
        read = lambda u, depth: jax.vmap(self.write)(u)
        extent = inputs.depth, inputs.length, read
        return odelt.integrate_length(self.groups, h, c, *extent, tolerance=inputs.tolerance)


first, *keys, last = jax.random.split(jax.random.key(0), 5)
groups = tuple(odelt.ODEBlock((Block(eqx.nn.MLP(33, 32, 64, 1, key=key)),)) for key in keys)
net = Net(eqx.nn.Linear(2, 32, key=first), groups, eqx.nn.Linear(32, 2, key=last))  # pyright: ignore[reportCallIssue]

optimizer, steps = optax.adamw(2e-3), 1500
objective = odelt.objective.DeepSupervision(odelt.objective.FlowMatching())
step = odelt.make_train_step(objective, optimizer, steps=steps, ema=0.99)
state = odelt.init_state(net, optimizer)
for i in range(steps):
    points = jnp.asarray(make_moons(256, noise=0.05, random_state=i)[0], jnp.float32)
    state, metrics = step(state, points, None, jax.random.key(i))
print(f"own network: loss {float(metrics['loss']):.3f}")

# %%
start_points = jax.random.normal(jax.random.key(3), (500, 2))
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True)
for axis, depth in zip(axes, net.depths, strict=True):
    moons = odelt.sample(state.ema, start_points, time=odelt.FixedSteps(steps=16), depth=depth)
    axis.scatter(*np.asarray(moons).T, s=3)
    axis.set_title(f"depth {depth}", fontsize=9)
figure.tight_layout()
figure.savefig(FOLDER / "own-network.png", dpi=100)
print(f"pictures: {', '.join(sorted(str(path) for path in FOLDER.glob('*.png')))}")
