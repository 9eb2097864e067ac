"""`python -m medtrain` and `torchrun -m medtrain`: the console script, found by its entry point."""

from importlib.metadata import entry_points


def main() -> None:
    """Run whatever the console script `medtrain` runs."""
    next(iter(entry_points(group="console_scripts", name="medtrain"))).load()()


if __name__ == "__main__":
    main()
