"""`python -m notebook_to_prod` is `n2p`."""

from notebook_to_prod.cli.app import main

main()
