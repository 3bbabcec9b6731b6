"""Draw the pictures of the site that need no training."""

from pathlib import Path

from noisin.lab import figures

FOLDER = Path(__file__).parent / "figures"
PATTERNS = {
    "hidden": "hidden * Gaussian(1.0)",
    "weight-noise": "weight_hh + Gaussian(0.05)",
    "drop-connect": "weight_hh * Bernoulli(keep=0.8) @ sequence",
    "variational": "variational(input=0.9, recurrent=0.7, output=0.6)",
    "zaremba": "zaremba(keep=0.5, num_layers=1)",
    "candidate": "candidate * Bernoulli(keep=0.7)",
    "zoneout": "Zoneout(hidden=0.05, cell=0.5)",
}

if __name__ == "__main__":
    figures.loss_surfaces(FOLDER / "one-unit.png")
    figures.variance_fields(FOLDER / "variance-fields.png")
    for name, noise in PATTERNS.items():
        figures.noise_pattern(noise, FOLDER / f"{name}.png")
