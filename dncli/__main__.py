"""`python -m dndetr`, for torchrun: `torchrun --nproc-per-node 2 -m dndetr train`."""

from dndetr.cli import main

main()
