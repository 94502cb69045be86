"""`python -m polycl.cli` is `polycl`."""

from polycl.cli import main

main()
