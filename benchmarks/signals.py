"""Measure why deep and recurrent networks do not start to learn, and draw it.

    python benchmarks/signals.py

All before training, on a batch of 256 training images of Fashion-MNIST that is drawn
with the weights from the seeds 0 to 4:

- the gradient through 20 hidden layers of 100 units, for five activations and five
  initial weights, beside the product of the factors that `signal_table` reads in each
  layer; the signal on its way up;
- the same for sigmoid with batch normalization, with the share of the pre-activations
  in the sensitive region, where the slope is at least half of the largest;
- the gradient by what a recurrent layer reads at each time step, for SimpleRNN and LSTM
  of 100 units. Half a row of the image is a step, so that there are 56; every second is
  recorded.

Gradients and products are over the gradient at the last place, layer or time step. The
gradient at a layer is the norm of that by its pre-activations, over all images. All
layers but the first are square: there, Glorot's weights are LeCun's as well.

Writes benchmarks/results/signals.csv anew, a row for each place with median, least and
largest value over the seeds, and beside it signals_depth.png, signals_normalization.png
and signals_time.png.
"""

import argparse
import pathlib

import keras
import numpy as np
import pandas as pd
from keras import layers
from matplotlib.figure import Figure
from record import ROOT, surroundings, whole

import train
from recipes import fashion_mnist
from recipes.check_model import signal_table
from recipes.initializers import initializer_for

RESULTS = ROOT / "benchmarks" / "results" / "signals.csv"
NUM_IMAGES = 256
UNITS = 100
NUM_LAYERS = 20
NUM_STEPS = 56
STEPS_PER_RECORD = 2

ACTIVATIONS = ["sigmoid", "tanh", "relu", "elu", "selu"]
NORMALIZED = "sigmoid, batch normalization"
WEIGHTS = {
    "normal, deviation 0.01": lambda: keras.initializers.RandomNormal(stddev=0.01),
    # The limit 1 / sqrt(n_in), once the usual one.
    "uniform, variance 1/(3n)": lambda: keras.initializers.VarianceScaling(
        1 / 3, "fan_in", "uniform"
    ),
    "Glorot, LeCun": lambda: initializer_for("tanh"),
    "He": lambda: initializer_for("relu"),
    "normal, deviation 1": lambda: keras.initializers.RandomNormal(stddev=1.0),
}


def simple_cell(gain):
    """Keras's own recurrent weights, an orthogonal matrix, times the gain."""
    return layers.SimpleRNNCell(
        UNITS, recurrent_initializer=keras.initializers.Orthogonal(gain)
    )


def lstm_cell(forget_bias):
    """Forget gates that start near sigmoid(forget_bias)."""
    cell = layers.LSTMCell(UNITS)
    cell.build((None, 28 * 28 // NUM_STEPS))
    bias = np.zeros((4, UNITS))  # of the input, forget, candidate and output
    bias[1] = forget_bias
    cell.bias.assign(bias.ravel())
    return cell


CELLS = {
    ("SimpleRNN", "recurrent weights halved"): lambda: simple_cell(0.5),
    ("SimpleRNN", "recurrent weights of Keras"): lambda: simple_cell(1.0),
    ("SimpleRNN", "recurrent weights doubled"): lambda: simple_cell(2.0),
    ("LSTM", "forget bias 0"): lambda: lstm_cell(0.0),
    ("LSTM", "forget bias 1, of Keras"): lambda: lstm_cell(1.0),
    ("LSTM", "forget bias 5"): lambda: lstm_cell(5.0),
}


# --- measure


def deep(network, weights):
    """Hidden layers of equal width, compiled; what applies f is a place."""
    stack = [keras.Input((28, 28)), layers.Flatten()]
    for i in range(1, NUM_LAYERS + 1):
        start, name = weights(), f"place_{i}"
        if network == NORMALIZED:
            stack.append(layers.Dense(UNITS, kernel_initializer=start))
            stack.append(layers.BatchNormalization())
            stack.append(layers.Activation("sigmoid", name=name))
        else:
            dense = layers.Dense(UNITS, network, kernel_initializer=start, name=name)
            stack.append(dense)
    return compiled(keras.Sequential([*stack, layers.Dense(10)]))


def unrolled(cell):
    """A recurrent layer step by step, compiled; what it reads are the places."""
    images = keras.Input((28, 28))
    steps = layers.Reshape((NUM_STEPS, -1))(images)
    states = [keras.ops.zeros((1, UNITS))] * len(keras.tree.flatten(cell.state_size))
    for t in range(1, NUM_STEPS + 1):
        read = steps[:, t - 1]
        if t % STEPS_PER_RECORD == 0:
            read = layers.Identity(name=f"place_{t}")(read)
        output, states = cell(read, states)
        # Keras returns it twice, but signal_table watches the output alone.
        states = [output, *states[1:]]
    return compiled(keras.Model(images, layers.Dense(10)(output)))


def compiled(model):
    """With a loss of logits, whose gradient does not end where a softmax saturates."""
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def places(model, x, y):
    """What signal_table says of the places, gradients over that at the last."""
    table = signal_table(model, x, y).filter(like="place_", axis="index")
    last = table["gradient_norm"].iloc[-1]
    return pd.DataFrame(
        {
            "place": table.index.str.removeprefix("place_").astype(int),
            "gradient": table["gradient_norm"].to_numpy() / last,
            "product": table["product"].to_numpy() / last,
            "std": table["std"].to_numpy(),
            "sensitive": table["sensitive"].to_numpy(),
        }
    )


def measure(data, seed):
    """All places of one seed."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(data.x_train), NUM_IMAGES, replace=False)
    x, y = data.x_train[chosen], data.y_train[chosen]
    tables = []
    for network in [*ACTIVATIONS, NORMALIZED]:
        for name, weights in WEIGHTS.items():
            keras.utils.set_random_seed(seed)
            rows = places(deep(network, weights), x, y)
            tables.append(rows.assign(network=network, weights=name))
    for (network, name), cell in CELLS.items():
        keras.utils.set_random_seed(seed)
        rows = places(unrolled(cell()), x, y).drop(columns=["std", "sensitive"])
        if network == "LSTM":  # its product leaves out the way through the state
            rows = rows.drop(columns="product")
        tables.append(rows.assign(network=network, weights=name))
    return pd.concat(tables)


def over_seeds(table):
    """Median, least and largest of each quantity at each place."""
    groups = table.groupby(["network", "weights", "place"], sort=False)
    table = groups[["gradient", "product", "std", "sensitive"]]
    table = table.agg(["median", "min", "max"])
    table.columns = [f"{quantity} {which}" for quantity, which in table.columns]
    return table.reset_index()


# --- draw

# Distinct also to the colour-blind (Okabe, Ito, 2008).
COLORS = ["#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"]
COLOR_OF = dict(zip(WEIGHTS, COLORS, strict=True))


def line(axes, table, network, weights, quantity, **style):
    """Median over the seeds by place; a band from the least to the largest."""
    rows = table[(table["network"] == network) & (table["weights"] == weights)]
    style = {"color": COLOR_OF.get(weights), "label": weights, **style}
    axes.plot(rows["place"], rows[f"{quantity} median"], **style)
    bounds = rows[f"{quantity} min"], rows[f"{quantity} max"]
    axes.fill_between(rows["place"], *bounds, color=style["color"], alpha=0.2, lw=0)


def dots(axes, table, network, weights):
    """The product of the factors, here and there."""
    rows = table[(table["network"] == network) & (table["weights"] == weights)]
    rows = rows.iloc[len(rows) % 3 :: 3]
    axes.plot(rows["place"], rows["product median"], "k.", markersize=4)


def legend(axes, lines, factors_of=None, **options):
    """Of lines from the top down, and of the dots."""
    if factors_of:
        label = f"product of the factors\nof each {factors_of}"
        lines = [*lines, *axes.plot([], [], "k.", markersize=4, label=label)]
    axes.legend(handles=lines, fontsize="small", **options)


def draw_depth(table):
    """The gradient by layer, a panel for each activation."""
    figure = Figure(figsize=(8.5, 6), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True)
    for axes, activation in zip(panels.flat, ACTIVATIONS, strict=False):
        for name in WEIGHTS:
            line(axes, table, activation, name, "gradient")
            dots(axes, table, activation, name)
        axes.set(title=activation, yscale="log", ylim=(1e-12, 1e12))
        axes.set(xlabel="hidden layer", xticks=range(5, NUM_LAYERS + 1, 5))
        axes.grid(alpha=0.3)
    for axes in panels[:, 0]:
        axes.set(ylabel="gradient, over that of the last")
    panels[1, 2].axis("off")
    lines = lines_of(panels[0, 0])[::-1]
    title = "initial weights"
    legend(panels[1, 2], lines, "layer", title=title, loc="center")
    return figure


def draw_normalization(table):
    """What batch normalization does to sigmoid, and the signal of ReLU and sigmoid."""
    figure = Figure(figsize=(8.5, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    # Dashes that leave each other's gaps, for these lines meet.
    dashes = {"Glorot, LeCun": (0, (4, 4)), "normal, deviation 1": (4, (4, 4))}
    for weights, dashed in dashes.items():
        for network in ("sigmoid", NORMALIZED):
            options = {"label": weights}
            if network == NORMALIZED:
                label = f"{weights},\nbatch normalization"
                options = {"label": label, "linestyle": dashed}
            line(panels[0, 0], table, network, weights, "sensitive", **options)
            line(panels[0, 1], table, network, weights, "gradient", **options)
    for axes, network in zip(panels[1], ("relu", "sigmoid"), strict=True):
        for weights in WEIGHTS:
            line(axes, table, network, weights, "std")
        axes.set(title=f"{network}: the signal", ylabel="deviation of the outputs")
        axes.set(yscale="log", ylim=(1e-10, 1e10), xlabel="hidden layer")
    panels[0, 0].set(title="sigmoid: the sensitive region")
    panels[0, 0].set(ylabel="share of pre-activations", ylim=(0, 1.02))
    panels[0, 0].set(xticks=range(5, NUM_LAYERS + 1, 5))
    panels[0, 1].set(title="sigmoid: the gradient", yscale="log")
    panels[0, 1].set(ylabel="gradient, over that of the last")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    legend(panels[0, 1], lines_of(panels[0, 1]))
    legend(panels[1, 1], lines_of(panels[1, 1])[::-1], title="initial weights")
    return figure


def draw_time(table):
    """The gradient by time step, SimpleRNN beside LSTM."""
    figure = Figure(figsize=(8.5, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    colors = COLORS[0], COLORS[2], COLORS[4]
    for axes, network in zip(panels, ("SimpleRNN", "LSTM"), strict=True):
        names = [weights for other, weights in CELLS if other == network]
        for name, color in zip(names, colors, strict=False):
            line(axes, table, network, name, "gradient", color=color)
            if network == "SimpleRNN":
                dots(axes, table, network, name)
        axes.set(title=network, yscale="log", ylim=(1e-12, 1e12))
        axes.set(xlabel=f"time step, of {NUM_STEPS}")
        axes.grid(alpha=0.3)
        is_simple = network == "SimpleRNN"
        lines = lines_of(axes)[::-1]
        legend(axes, lines, "step" if is_simple else None, loc="upper right")
    panels[0].set(ylabel="gradient, over that of the last")
    return figure


def lines_of(axes):
    """The lines that have a name."""
    return axes.get_legend_handles_labels()[0]


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument(
        "--draw", action="store_true", help="draw what is recorded, measure nothing"
    )
    options = parser.parse_args(arguments)
    path = options.results
    if not options.draw:
        facts = {k: v for k, v in surroundings().items() if k != "backend"}
        data = fashion_mnist.load(train.DATA_FOLDER, scale="standardize")
        progress = keras.utils.Progbar(options.seeds, unit_name="seed")
        tables = []
        for seed in range(options.seeds):
            tables.append(measure(data, seed))
            progress.add(1)
        table = over_seeds(pd.concat(tables)).assign(seeds=options.seeds, **facts)
        with whole(path) as new:
            table.to_csv(new, index=False, float_format="%.3g")
    table = pd.read_csv(path)
    for draw in (draw_depth, draw_normalization, draw_time):
        name = draw.__name__.removeprefix("draw")
        with whole(path.with_name(f"{path.stem}{name}.png")) as new:
            draw(table).savefig(new, format="png", dpi=100)


if __name__ == "__main__":
    main()
