"""The dropout net of epoch_speed.py in PyTorch's plain loop, an epoch when asked.

Started by epoch_speed.py with a Python that has torch, which need not have Keras: reads
a request in JSON from each line of its input, and writes a line that answers it.

The loop is the one of the book's edition for PyTorch. It sums up the loss and, unlike
`fit`, counts no right answers.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BATCH_SIZE = 32


def dropout_net():
    """Dropout 0.2 before each of three dense layers, He's normal weights."""
    stack = [nn.Flatten()]
    for inputs, units in ((784, 100), (100, 100)):
        dense = nn.Linear(inputs, units)
        nn.init.kaiming_normal_(dense.weight, nonlinearity="relu")
        nn.init.zeros_(dense.bias)
        stack += [nn.Dropout(0.2), dense, nn.ReLU()]
    return nn.Sequential(*stack, nn.Dropout(0.2), nn.Linear(100, 10))


def loader(x, y):
    """Batches of a DataLoader that shuffles, as in the book."""
    return DataLoader(TensorDataset(x, y), batch_size=BATCH_SIZE, shuffle=True)


class Gathered:
    """The same batches without a DataLoader: each is gathered by one indexing."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        for rows in torch.randperm(len(self.x)).split(BATCH_SIZE):
            yield self.x[rows], self.y[rows]


WAYS = {"plain loop, DataLoader": loader, "plain loop, batches by indexing": Gathered}


class Trainer:
    """Answers requests; keeps a model for each way."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as data:
            self.x = torch.from_numpy(data["x_train"])
            self.y = torch.from_numpy(data["y_train"].astype("int64"))
        self.models = {}

    def facts(self):
        return f"torch {torch.__version__}"

    def epoch(self, network, way, num_rows):
        """Seconds of one epoch."""
        if way not in self.models:
            torch.manual_seed(0)
            model = dropout_net()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            self.models[way] = model, optimizer
        model, optimizer = self.models[way]
        criterion = nn.CrossEntropyLoss()
        batches = WAYS[way](self.x[:num_rows], self.y[:num_rows])
        began = time.perf_counter()
        model.train()
        total_loss = 0.0
        for x_batch, y_batch in batches:
            loss = criterion(model(x_batch), y_batch)
            total_loss += loss.item()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - began


if __name__ == "__main__":
    trainer = Trainer(sys.argv[1])
    for line in sys.stdin:
        task, *arguments = json.loads(line)
        print(json.dumps(getattr(trainer, task)(*arguments)), flush=True)
