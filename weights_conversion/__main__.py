"""``python -m weights_conversion``."""

from weights_conversion.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
