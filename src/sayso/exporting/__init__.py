"""What every export shares: the snapshot of the votes, images, pairs, manifest, dataset card."""
