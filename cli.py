"""The command `armillary`."""


def main() -> None:
    """Placeholder."""
