"""`python -m dncli`, for torchrun: `torchrun --nproc-per-node 2 -m dncli train`."""

from dncli.cli import main

main()
