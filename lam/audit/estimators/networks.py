"""Small networks with early stopping on held-out samples; deterministic given the seed, on the CPU."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional

BATCH, EVERY, PATIENCE, MAX_STEPS = 128, 10, 100, 600
LEARNING_RATE, WEIGHT_DECAY, HIDDEN = 3e-3, 3e-2, 64


class LinearAndDeep(nn.Module):
    """A linear map beside a perceptron with two hidden layers, both starting at zero."""

    def __init__(self, inputs: int, outputs: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.head, self.linear = nn.Linear(hidden, outputs), nn.Linear(inputs, outputs)
        for layer in (self.head, self.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Float[Tensor, "samples inputs"]) -> Float[Tensor, "samples outputs"]:
        """The sum of both."""
        return self.head(self.trunk(inputs)) + self.linear(inputs)


def fit(
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    train: Int[np.ndarray, " train"],
    validation: Int[np.ndarray, " validation"],
    seed: int,
    batch: int = BATCH,
) -> bool:
    """Train on batches of row numbers until the validation loss stops falling; keep its best step.

    Returns whether any step was better than the start.
    """
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    held_out = torch.as_tensor(validation)
    best_loss, best_step, best = _value(loss, held_out), 0, _weights(model)
    order = train[:0]
    for step in range(1, MAX_STEPS + 1):
        if len(order) < batch:
            order = rng.permutation(train)
        rows, order = torch.as_tensor(order[:batch]), order[batch:]
        optimizer.zero_grad()
        loss(rows).backward()
        optimizer.step()
        if step % EVERY == 0:
            now = _value(loss, held_out)
            if now < best_loss:
                best_loss, best_step, best = now, step, _weights(model)
            elif step - best_step >= PATIENCE:
                break
    model.load_state_dict(best)
    return best_step > 0


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _value(loss: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    with torch.no_grad():
        return float(loss(rows))


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A model with initial weights of this seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def predicted(
    inputs: Float[np.ndarray, "samples inputs"],
    targets: Float[np.ndarray, "samples dims"],
    train: Int[np.ndarray, " train"],
    validation: Int[np.ndarray, " validation"],
    seed: int,
) -> Float[np.ndarray, "samples dims"]:
    """Targets of all samples by a network trained on some of them; the training mean where nothing can be learned."""
    mean, scale = targets[train].mean(axis=0), targets[train].std(axis=0) + 1e-9
    x, y = _tensor(inputs), _tensor((targets - mean) / scale)
    model = seeded(lambda: LinearAndDeep(x.shape[1], y.shape[1]), seed)
    fit(model, lambda rows: functional.mse_loss(model(x[rows]), y[rows]), train, validation, seed)
    with torch.no_grad():
        return model(x).numpy().astype(np.float64) * scale + mean


class CodeClassifier:
    """Log q(code of each token | action) - log q(code), all tokens from one network."""

    def __init__(
        self,
        inputs: Float[np.ndarray, "samples inputs"],
        codes: Int[np.ndarray, "samples tokens"],
        train: Int[np.ndarray, " train"],
        validation: Int[np.ndarray, " validation"],
        seed: int,
    ) -> None:
        self._inputs, self._codes = _tensor(inputs), torch.as_tensor(codes)
        sizes = [int(size) + 1 for size in codes.max(axis=0)]
        self._base = [_log_frequencies(self._codes[train, token], size) for token, size in enumerate(sizes)]
        self._model = seeded(lambda: LinearAndDeep(inputs.shape[1], sum(sizes)), seed)
        self.learned = fit(self._model, self._loss, train, validation, seed)

    def scores(self, rows: Int[np.ndarray, " rows"]) -> Float32[np.ndarray, "rows rows"]:
        """Summed over tokens: of each action (row) with each latent (column)."""
        with torch.no_grad():
            likelihoods = self._by_code(torch.as_tensor(rows))
            ratios = zip(likelihoods, self._base, self._codes[rows].T, strict=True)
            return sum((given - base)[:, codes] for given, base, codes in ratios).numpy()

    def log_likelihoods(self, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
        """Log q(codes | action) in nats, summed over tokens."""
        with torch.no_grad():
            pairs = zip(self._by_code(torch.as_tensor(rows)), self._codes[rows].T, strict=True)
            total = sum((given.gather(1, codes[:, None])[:, 0] for given, codes in pairs), torch.zeros(len(rows)))
            return total.numpy().astype(np.float64)

    def _by_code(self, rows: Tensor) -> list[Tensor]:
        logits = self._model(self._inputs[rows]).split([len(base) for base in self._base], dim=1)
        return [torch.log_softmax(base + logit, dim=1) for base, logit in zip(self._base, logits, strict=True)]

    def _loss(self, rows: Tensor) -> Tensor:
        columns: Sequence[Tensor] = self._codes[rows].T
        pairs = zip(self._by_code(rows), columns, strict=True)
        return sum((functional.nll_loss(given, codes) for given, codes in pairs), torch.zeros(()))


def _log_frequencies(codes: Tensor, size: int) -> Tensor:
    counts = torch.bincount(codes, minlength=size) + 0.5
    return torch.log(counts / counts.sum())


def _tensor(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)
