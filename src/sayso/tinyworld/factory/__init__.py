"""How the shipped weights are made: `python -m sayso.tinyworld.factory.pretrain`."""
