"""PyTorch's side of the comparisons: where it runs, an optimizer step, VGG, a training step. Torch is imported late."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence


def device() -> str | None:
    """Where PyTorch runs beside jax, if it is installed and sees the same kind of device."""
    import jax

    with contextlib.suppress(ImportError):
        import torch

        if jax.default_backend() == "gpu":
            return "cuda" if torch.cuda.is_available() else None
        return "cpu" if jax.default_backend() == "cpu" else None
    return None


def done(device: str) -> None:
    """Waits for the device."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def optimizer_step(make, shapes: Sequence[tuple[int, ...]], device: str, block: int = 1) -> Callable[[], object]:
    """A step of `make(params)`, or of the fused "Adam" or "SGD" (with momentum); each `block` of them waits."""
    import torch

    params = [torch.zeros(shape, device=device, requires_grad=True) for shape in shapes]
    for p in params:
        p.grad = 0.01 * torch.randn_like(p)
    if isinstance(make, str):
        options = {"lr": 1e-3, "fused": True} | ({"momentum": 0.9} if make == "SGD" else {})
        make = functools.partial(getattr(torch.optim, make), **options)
    optimizer, calls = make(params), itertools.count(1)

    def run():
        optimizer.step()
        if next(calls) % block == 0:
            done(device)

    return run


def vgg(counts: Sequence[int], channels: Sequence[int], dense: int, classes: int):
    """For 32 x 32 pictures with 3 channels: so many convolutions and channels per block, two dense layers."""
    from torch import nn

    layers: list[nn.Module] = []
    previous = 3
    for count, features in zip(counts, channels, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(previous, features, 3, padding=1), nn.ReLU(inplace=True)]
            previous = features
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(previous, dense), nn.ReLU(inplace=True)]
    layers += [nn.Linear(dense, dense), nn.ReLU(inplace=True), nn.Linear(dense, classes)]
    return nn.Sequential(*layers)


def training_steps(
    network, batch: int, steps: int, precision: str, device: str, compiled: bool = False
) -> Callable[[], object]:
    """So many training steps on random pictures: channels-last, fused SGD with momentum; waits for the device."""
    import torch
    from torch import nn

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, fused=True)
    images = torch.randint(0, 256, (batch, 3, 32, 32), device=device, dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % network[-1].out_features
    if compiled:
        network.compile()

    def run():
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = nn.functional.cross_entropy(network(images.float() / 255), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        done(device)

    return run
