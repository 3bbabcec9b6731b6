"""How other packages' trainers are called in tests: a few steps, quietly, nothing written."""

import pytest

QUIET = {
    "max_steps": 6,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
# theirs: advice on workers, loggers and validation, and what they use of torch that is ending
lightning_warns = pytest.mark.filterwarnings(
    "ignore::Warning:lightning.*",
    "ignore::Warning:pytorch_forecasting.*",
    "ignore:.pin_memory. argument is set as true",
    "ignore:Total length of .list. across ranks is zero",
    "ignore:.isinstance.treespec, LeafSpec.",
)
