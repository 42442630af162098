"""How long the trainer takes to begin: --help, the first chunk of steps, and the reading of MNIST.

    pip install -e ".[train]" && python tests/speed/startup.py [--data-dir DATA] [--json FILE]

Every time is that of a process of its own, from its start to its end; the candidates take turns. "first chunk" is
`python train/main.py` up to the moment in which the sums of its first chunk of steps are back on the host, with JAX's
persistent compilation cache off, on and empty, and on and filled. MNIST is read from DATA, where it must lie prepared.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import timing

TRAIN = pathlib.Path(__file__).parents[2] / "train"

# The trainer, which ends when its first chunk is done.
FIRST_CHUNK = """
import os
import sys
from trainer import loop
import main
advance = loop.Trainer.advance
def first(trainer, epoch, chunks):
    next(advance(trainer, epoch, [0]))
    os._exit(0)
loop.Trainer.advance = first
sys.exit(main.main())
"""

IMPORTS = "from trainer import data; import tensorflow_datasets"
READ_MNIST = "import sys; from trainer import data; assert len(data.load('mnist', sys.argv[1]).train_labels) == 60_000"

MODELS = {"default": [], "vgg16": ["--model", "vgg16", "--width", "1", "--batch-size", "128"]}


def run(*command: str, cache: str | None = None) -> None:
    """A Python process in the trainer's folder; its output is shown only if it fails."""
    environment = os.environ | ({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {})
    done = subprocess.run([sys.executable, *command], cwd=TRAIN, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def main() -> None:
    options = timing.arguments(__doc__, rounds=5, data_dir="folder with MNIST prepared; without it, it is not read")
    with tempfile.TemporaryDirectory() as folder:

        def first_chunk(model: str, cache: str | None) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as workdir:
                setting = ["--compilation-cache", "on" if cache else "off"]
                run("-c", FIRST_CHUNK, *MODELS[model], *setting, "--workdir", f"{workdir}/run", cache=cache)

        def first_chunk_empty_cache(model: str) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                first_chunk(model, cache)

        candidates = {"--help": lambda: run("main.py", "--help")}
        for model in MODELS:
            candidates |= {
                f"{model}, first chunk, cache off": lambda model=model: first_chunk(model, None),
                f"{model}, first chunk, cache empty": lambda model=model: first_chunk_empty_cache(model),
                f"{model}, first chunk, cache filled": lambda model=model: first_chunk(model, f"{folder}/{model}"),
            }
        if options.data_dir:
            candidates["import of the reading module"] = lambda: run("-c", IMPORTS)
            candidates["MNIST, 60,000 + 10,000 pictures"] = lambda: run("-c", READ_MNIST, options.data_dir)
        times = timing.interleaved(candidates, options.rounds, warmup=1)  # which fills the caches
    rows = [{"from start to end": name, **timing.summary(seconds)} for name, seconds in times.items()]
    timing.report(options.json, {"startup": rows})


if __name__ == "__main__":
    main()
