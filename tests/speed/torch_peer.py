"""PyTorch's side of the comparisons: where it runs, an optimizer step, VGG, a training step. Torch is imported late."""

import contextlib
import functools
from collections.abc import Callable, Sequence


def device() -> str | None:
    """Where PyTorch runs beside jax, if it is installed and sees the same kind of device."""
    import jax

    with contextlib.suppress(ImportError):
        import torch

        return {"cpu": "cpu", "gpu": "cuda" if torch.cuda.is_available() else None}.get(jax.default_backend())
    return None


def optimizer_step(make, shapes: Sequence[tuple[int, ...]], device: str, block: int = 1) -> Callable[[], object]:
    """`block` steps of `make(params)`, or of the fused "Adam" or "SGD" (with momentum); waits for the device."""
    import torch

    params = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]
    for p in params:
        p.grad = 0.01 * torch.randn_like(p)
    if isinstance(make, str):
        options = {"lr": 1e-3, "fused": True} | ({"momentum": 0.9} if make == "SGD" else {})
        make = functools.partial(getattr(torch.optim, make), **options)
    optimizer = make(params)

    def run():
        for _ in range(block):
            optimizer.step()
        getattr(torch, device).synchronize()

    return run


def authors_rule():
    """A class of optimizer: Algorithm 1, one operation at a time, with the state of the authors' own."""
    import torch

    class AuthorsRule(torch.optim.Optimizer):
        def __init__(self, params, lr=0.1, alpha=0.01, beta=0.9):
            super().__init__(params, {"lr": lr, "alpha": alpha, "beta": beta, "t": 0})
            for p in self.param_groups[0]["params"]:
                self.state[p]["v"] = torch.randn_like(p) * (alpha / lr)

        @torch.no_grad()
        def step(self):
            group = self.param_groups[0]
            group["t"] += 1
            average = (group["beta"] * group["t"] + 1) / (group["t"] + 2)
            for p in group["params"]:
                m = 1 / p.grad.abs().max()
                zeta = p.grad / (1 + (p.grad / m) ** 2)
                self.state[p]["v"] = average * self.state[p]["v"] + (1 - average) * zeta
                p -= group["lr"] * self.state[p]["v"]

    return AuthorsRule


def training_steps(
    model: str, width: float, classes: int, batch: int, steps: int, precision: str, device: str, compiled: bool = False
) -> Callable[[], object]:
    """`steps` steps of a VGG on random pictures: channels-last, fused SGD with momentum; waits for the device."""
    import torch
    from torch import nn

    from trainer import vgg

    layers: list[nn.Module] = []
    previous, dense = 3, vgg.scaled(vgg.DENSE, width)
    for count, features in zip(vgg.CONVOLUTIONS[model], vgg.CHANNELS, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(previous, vgg.scaled(features, width), 3, padding=1), nn.ReLU(inplace=True)]
            previous = vgg.scaled(features, width)
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(previous, dense), nn.ReLU(inplace=True)]
    layers += [nn.Linear(dense, dense), nn.ReLU(inplace=True), nn.Linear(dense, classes)]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    network = nn.Sequential(*layers).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    images = torch.randint(0, 256, (batch, 3, 32, 32), device=device, dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % classes
    if compiled:
        network.compile()

    def run():
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = nn.functional.cross_entropy(network(images.float() / 255), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        getattr(torch, device).synchronize()

    return run
