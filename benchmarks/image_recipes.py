"""What the stored size of pictures does to an encoder: one recipe, trained from each form of the same folder.

python benchmarks/image_recipes.py FOLDER [--epochs 180] [--seed 0]      FOLDER/{train,val}/<class>/<picture>.JPEG

The forms: the JPEG files copied (`--fit none`), the shorter side at 128, squares of 84. `vrl3data pretrain-encoder
supervised` trains with the same recipe, seed and number of epochs on each, and scores on the validation pictures of the
same form. About five minutes each on two idle cores with Imagenette's 2,600 pictures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMS = {
    "none": ["--fit", "none"],
    "128": ["--image-size", "128"],
    "84": ["--fit", "crop", "--image-size", "84"],
}
"""name -> options of the conversion."""


def command(*words: object) -> dict[str, object]:
    """Runs vrl3data and returns what it says last: an object in JSON, over one line or several."""
    line = [sys.executable, "-m", "vrl3data", *map(str, words), "--json"]
    found = subprocess.run(line, check=True, capture_output=True, text=True)
    text = found.stdout.strip()
    return dict(json.loads(text[text.rindex("\n{") + 1 if "\n{" in text else 0 :]))


def trained(dataset: Path, out: Path, epochs: int, seed: int) -> dict[str, object]:
    """What the last line says that the training ended with."""
    words = ["pretrain-encoder", "supervised", "--data", dataset, "--out", out, "--seed", seed]
    return command(*words, *(["--epochs", epochs] if epochs else []))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=0, help="those of the recipe, if not given")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for form, options in FORMS.items():
            dataset = Path(name) / form
            receipt = command("convert", "imagenet", arguments.folder, dataset, "--quiet", *options)
            started = time.perf_counter()
            found = trained(dataset, Path(name) / f"encoder-{form}", arguments.epochs, arguments.seed)
            seconds = time.perf_counter() - started
            print(f"{form}: {receipt['samples']} pictures, {int(str(receipt['bytes'])) / 1e6:.0f} MB; "
                  f"trained in {seconds:.0f} s: {json.dumps(found)}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
