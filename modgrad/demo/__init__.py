"""What ``modgrad demo`` does: train on AV-Digits with and without balancing, and compare."""
