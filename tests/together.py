"""The command, with a checkpoint after each update: run as a script by test_together.py."""

from noisin.lab import trainer
from noisin.lab.cli import main

if __name__ == "__main__":
    trainer.SAVE_EVERY = trainer.SAVE_SHARE = 0.0
    main()
