"""How the shipped weights of the tiny world are made; run with `sayso.tinyworld.pretrain`."""
