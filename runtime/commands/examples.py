"""Two examples for each command, printed at the end of its help; ``parity measure`` is ``parity``."""

from __future__ import annotations

EXAMPLES = {
    "separate": ("tfx separate song.mp3", "tfx separate album/ -o stems --format flac --stems vocals"),
    "combine": (
        "tfx combine -m a.tfx -m b.tfx -o ensemble.tfx",
        "tfx combine -m a.tfx -m b.tfx -o ensemble.tfx --weights vocals=2,1",
    ),
    "parity": (
        "tfx parity vocals.tfx --backend ort --audio songs/one",
        "tfx parity vocals.tfx --quick --markdown parity.md",
    ),
    "parity seams": (
        "tfx parity seams vocals.tfx --audio songs/one --picture seams.png",
        "tfx parity seams vocals.tfx --audio songs/one --store -o new.tfx",
    ),
    "parity localize": (
        "tfx parity localize vocals.tfx --backend ort:fp16",
        "tfx parity localize vocals.tfx --backend torchscript --picture layers.png",
    ),
    "sign": ("tfx sign vocals.tfx --key key.pem", "tfx inspect vocals.tfx --verify key.pub"),
    "bench": (
        "tfx bench vocals.tfx --backend ort --backend openvino:bf16 --threads 2",
        "tfx bench vocals.tfx --audio songs/one -o speed",
    ),
    "evaluate": (
        "tfx evaluate vocals.tfx --data songs -o scores",
        "tfx evaluate vocals.tfx --data songs --songs one --backend ort",
    ),
    "inspect": ("tfx inspect vocals.tfx", "tfx inspect tfswa_lite"),
    "doctor": ("tfx doctor", "tfx doctor --json"),
    "models": ("tfx models", "tfx models --json"),
    "train": ("tfx train seed data.root=musdb18hq -o runs/mine", "tfx train --resume -o runs/mine"),
    "new": (
        "tfx new tfswa_lite -o untrained.tfx",
        "tfx new tfswa_lite -o four.tfx --stems vocals,drums,bass,other --seed 1",
    ),
    "import": ("tfx import vocals.ckpt --config vocals.yaml", "tfx import my.pt --family my_family"),
    "data": ("tfx data example -o songs", "tfx data check songs"),
    "data example": ("tfx data example -o songs", "tfx data example -o songs --force"),
    "data check": ("tfx data check songs", "tfx data check songs --partial"),
    "data preview": (
        "tfx data preview example data.root=songs -n 4 -o heard",
        "tfx data preview seed data.root=musdb18hq -o heard",
    ),
    "data musdb": ("tfx data musdb --download", "tfx data musdb --download -o musdb-excerpts"),
    "export": ("tfx export vocals.tfx", "tfx export vocals.tfx --format torchscript -o vocals.ts"),
    "calibrate": (
        "tfx calibrate vocals.tfx --audio songs",
        "tfx calibrate vocals.tfx --audio songs --sensitivity --budget-db 0.05",
    ),
    "build-engine": (
        "tfx build-engine vocals.tfx --flavor rtx --precision fp16",
        "tfx build-engine vocals.tfx --batch 1,4,8",
    ),
}


def epilog(command: str) -> str | None:
    r"""Return the end of a command's help; ``\b`` keeps click from wrapping the lines."""
    if command not in EXAMPLES:
        return None
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in EXAMPLES[command])))
