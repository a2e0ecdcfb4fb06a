"""`python -m halflife` is the command line."""

from halflife.cli import main

main()
