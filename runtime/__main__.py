"""``python -m tfswa.runtime`` is ``tfx``."""

from tfswa.runtime.cli import main

main()
