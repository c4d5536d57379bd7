"""What ``modgrad bench`` does: check that all providers agree, then time them side by side."""
