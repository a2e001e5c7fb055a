"""How the shipped weights of the tiny world are made: `python -m sayso.tinyworld.factory.pretrain`."""
