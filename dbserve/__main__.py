"""`python -m dbserve`."""

from dbserve.cli import main

main()
